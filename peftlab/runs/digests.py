"""The digests of a run: the size and SHA-256 of every file that it keeps, in its `MANIFEST.json`, written last.

A run that has not ended, and one that was killed, have none, or only those of the weights. Checkpoints have manifests
of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from peftlab.checkpoint.manifest import NAME, FileRecord, Manifest, read_manifest, record_file, refuse_change, render
from peftlab.errors import StorageError
from peftlab.files import why, write_atomically

RECORD = ("result.json", "recipe.yaml")
METRICS, SCORES, TEXTS = "metrics.jsonl", "scores.json", "generations.jsonl"
PICTURE, WEIGHTS, LAST, HELD_OUT = "loss.png", "weights", "last", "held_out"
KEPT = (*RECORD, METRICS, SCORES, TEXTS, PICTURE, WEIGHTS, LAST, HELD_OUT)

# What peft and transformers look for in a folder, in any of its forms, and Python code.
LOADED_SUFFIXES = frozenset(
    (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".pkl", ".pickle", ".json", ".jinja")
    + (".model", ".spm", ".bpe", ".tiktoken", ".py", ".so")
)
LOADED_NAMES = frozenset(("vocab.txt", "merges.txt"))
REMOVE = "remove it"


def write_digests(folder: Path, step: int, parts: Collection[str] = KEPT, known: Mapping[str, FileRecord] = {}) -> None:
    """Write the manifest of a run directory for these parts of it; `known` records are not computed again."""
    files = {name: path for part in parts for name, path in files_of(folder, part).items()}
    try:
        records = {name: known.get(name) or record_file(path) for name, path in files.items()}
        write_atomically(folder / NAME, render(Manifest(step=step, files=records, facts={})))
    except OSError as error:
        raise StorageError(f"{folder / NAME}: cannot be written: {why(error)}") from None


def remove_digests(folder: Path) -> None:
    """Remove the manifest of a run that is about to change."""
    (folder / NAME).unlink(missing_ok=True)


def read_digests(folder: Path) -> Manifest | None:
    """Return the manifest of a run directory, None without one (an earlier version, or a killed run).

    Raises StorageError if it is damaged.
    """
    return read_manifest(folder, "run") if (folder / NAME).exists() else None


def find_faults(folder: Path, parts: Collection[str] = KEPT, contents: bool = True) -> dict[str, str]:
    """Return what is missing or changed of these parts of a run, a line each; empty without a manifest.

    Without `contents` only sizes are compared. Raises StorageError if the manifest itself is damaged.
    """
    manifest, faults = read_digests(folder), {}
    for name, record in manifest.files.items() if manifest else ():
        part = name.partition("/")[0]
        if part in parts and part not in faults and (fault := find_fault(folder / name, record, contents)):
            faults[part] = fault
    for path in find_extra(folder, manifest, [part for part in (WEIGHTS, LAST) if part in parts]):
        if is_loaded(path):
            faults.setdefault(path.relative_to(folder).parts[0], describe_extra(path))
    return faults


def describe_extra(path: Path) -> str:
    """Return the line on a file that a run did not write and that a loader may read."""
    return f"{path}: is not a file of the run, and what loads its folder may read it; {REMOVE}"


def find_extra(folder: Path, manifest: Manifest | None, parts: Collection[str] = (WEIGHTS, LAST)) -> list[Path]:
    """Return the files in folders of a run of which its manifest says nothing, while it has others of that folder."""
    recorded = manifest.files if manifest else {}
    known = {name.partition("/")[0] for name in recorded if "/" in name}
    return [
        path for part in parts if part in known for name, path in files_of(folder, part).items() if name not in recorded
    ]


def is_loaded(path: Path) -> bool:
    """Return whether a library that loads weights or a tokenizer from a folder may read a file of this name."""
    return path.suffix.lower() in LOADED_SUFFIXES or path.name in LOADED_NAMES


def find_fault(path: Path, record: FileRecord, contents: bool = True) -> str | None:
    """Return a line on a file that is not what its record says; None if it is."""
    try:
        refuse_change(path, record, contents)
    except StorageError as error:
        return str(error)
    except FileNotFoundError:
        return f"{path}: is missing"
    except OSError as error:
        return f"{path}: cannot be read: {why(error)}"
    return None


def refuse_changed(folder: Path, parts: Collection[str], contents: bool = True) -> None:
    """Raise StorageError with the first file of these parts of a run that is missing or has changed."""
    if faults := find_faults(folder, parts, contents):
        fault = next(iter(faults.values()))
        way = "or" if fault.endswith(REMOVE) else "restore it, or"
        raise StorageError(f"{fault}; {way} --no-verify uses the run as it is")


def files_of(folder: Path, part: str) -> dict[str, Path]:
    """Return the files of a part of a run, a file or a folder, by their path inside the run."""
    path = folder / part
    found = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    return {one.relative_to(folder).as_posix(): one for one in found if one.is_file()}
