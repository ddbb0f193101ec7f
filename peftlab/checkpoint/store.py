"""The folder of checkpoints: written atomically, found by step, rotated, cleaned.

A checkpoint is written to `.step-000010.PID.partial` and renamed to `step-000010` after every byte of it and
its `MANIFEST.json` are on the disk. Functions that write need the run's lock. Checkpoints are ordered by step,
never by time.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from peftlab.checkpoint.manifest import NAME, FileRecord, Manifest, record_file, render, verify, walk_files
from peftlab.errors import StorageError
from peftlab.files import sync, sync_folders, why

WHOLE = re.compile(r"step-(\d{6,})")
PARTS = re.compile(r"\.step-\d{6,}\.parts")
UNFINISHED = re.compile(r"\.step-\d{6,}\.\d+\.partial")
REPLACED = re.compile(r"\.(step-\d{6,})\.\d+\.former")

# Space for what `disk_usage` does not show: file-system blocks, the manifest, other writers of a shared disk.
SPARE_BYTES = 8 * 1024**2
SPARE_FRACTION = 0.02


Records = Mapping[str, FileRecord]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was verified, every byte of it."""

    step: int
    path: Path
    manifest: Manifest


def write_checkpoint(
    root: Path, step: int, write: Callable[[Path], Records | None], facts: dict[str, Any], needed_bytes: int = 0
) -> Path:
    """Write the checkpoint of `step` with the files that `write(folder)` makes; return its folder.

    `write` may return the records of files that others have hashed and synced already. `facts` is JSON for the
    manifest. On return the checkpoint is on the disk; an earlier one of the same step is replaced. Raises StorageError
    if `needed_bytes` do not fit or writing fails; after that, as after any other exception, the folder is unchanged.
    """
    target = root / name_of(step)
    with _storage_errors(target), _partial(root, step) as partial:
        _make_root(root)
        refuse_full_disk(root, needed_bytes)
        partial.mkdir()
        known = write(partial) or {}
        paths = {path.relative_to(partial).as_posix(): path for path in walk_files(partial)}
        files = {name: known.get(name) or record_file(path, sync=True) for name, path in paths.items()}
        manifest = Manifest(step=step, files=files, facts=facts)
        _write_synced(partial / NAME, render(manifest))
        sync_folders(partial)
        _commit(partial, target)
    return target


def find_latest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the intact checkpoint of the highest step, and the fault of each higher one that was skipped."""
    faults: list[str] = []
    for step, path in sorted(list_steps(root).items(), reverse=True):
        try:
            return Checkpoint(step, path, _verify_step(path, step)), faults
        except StorageError as error:
            faults.append(str(error))
    return None, faults


def find_step(root: Path, step: int) -> Checkpoint | None:
    """Return the checkpoint of one step, verified; None without one. Raises StorageError if it is damaged."""
    path = list_steps(root).get(step)
    return Checkpoint(step, path, _verify_step(path, step)) if path else None


def list_steps(root: Path) -> dict[int, Path]:
    """Return the folders that have a checkpoint's name, by step; their content is not verified."""
    steps = {int(match[1]): root / match[0] for match in _matches(root, WHOLE)}
    return {step: path for step, path in sorted(steps.items()) if path.name == name_of(step)}


def rotate(root: Path, keep: int, protected: set[int]) -> list[int]:
    """Remove all but the `keep` highest steps and the protected ones; return the removed steps.

    The caller protects the last one that it wrote, the best, and the one that it resumed from, because a damaged
    one of a higher step counts among the highest. Raises StorageError if one cannot be removed.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    steps = list_steps(root)
    removed = [step for step in list(steps)[:-keep] if step not in protected]
    for step in removed:
        # Rename first: a kill in the middle then leaves no checkpoint with half of its files.
        with _storage_errors(steps[step], "removed"), _partial(root, step) as partial:
            os.rename(steps[step], partial)
            shutil.rmtree(partial)
    return removed


def clean_leftovers(root: Path) -> None:
    """Remove only what killed writers left. Call it under the run's lock, before `find_latest`."""
    with _storage_errors(root, "cleaned"):
        for match in _matches(root, REPLACED):
            # Its writer was killed after moving this one away and before renaming the new one: move it back.
            if not (root / match[1]).exists():
                os.rename(root / match[0], root / match[1])
            else:
                shutil.rmtree(root / match[0])
        for match in (*_matches(root, UNFINISHED), *_matches(root, PARTS)):
            shutil.rmtree(root / match[0])


def refuse_full_disk(root: Path, needed_bytes: int) -> None:
    """Raise StorageError if the disk under `root`, which need not exist yet, lacks space for a checkpoint."""
    place = next(path for path in (root, *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    needed = needed_bytes + SPARE_BYTES + int(needed_bytes * SPARE_FRACTION)
    if free < needed:
        raise StorageError(
            f"{root}: a checkpoint needs {needed / 1e6:,.0f} MB, but only {free / 1e6:,.0f} MB are free; earlier "
            "checkpoints are intact; free some space or lower run.keep_checkpoints, then use --resume"
        )


def name_of(step: int) -> str:
    return f"step-{step:06}"


def parts_folder(root: Path, step: int) -> Path:
    """Return the folder in which processes leave their parts of a step's checkpoint, before it is complete."""
    return root / f".{name_of(step)}.parts"


def _matches(root: Path, pattern: re.Pattern) -> list[re.Match]:
    """Return the matches among the names of folders in `root`; symbolic links are never checkpoints."""
    try:
        entries = [entry.name for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return [match for name in sorted(entries) if (match := pattern.fullmatch(name))]


def _verify_step(path: Path, step: int) -> Manifest:
    manifest = verify(path)
    if manifest.step != step:
        raise StorageError(f"{path}: is not the checkpoint of step {step}: its {NAME} says step {manifest.step}")
    return manifest


@contextmanager
def _storage_errors(target: Path, action: str = "written") -> Iterator[None]:
    """Turn an error of the file system or of safetensors into a StorageError of one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        advice = "then use --resume; earlier checkpoints are intact"
        raise StorageError(f"{target}: cannot be {action}: {why(error)}, {advice}") from None


@contextmanager
def _partial(root: Path, step: int) -> Iterator[Path]:
    """Yield an unused path for a folder in `root`; what is there at the end is removed."""
    partial = root / f".{name_of(step)}.{os.getpid()}.partial"
    # In containers every run may have the same process id: a folder of this name is then a killed run's.
    _remove(partial)
    try:
        yield partial
    finally:
        _remove(partial)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _commit(partial: Path, target: Path) -> None:
    """Rename the folder to `target`. No rename replaces a folder that has files, so an earlier one moves away first."""
    previous = partial.with_suffix(".former")
    _remove(previous)
    if target.exists():
        os.rename(target, previous)
    try:
        os.rename(partial, target)
    except OSError:
        if previous.exists():
            os.rename(previous, target)
        raise
    sync(target.parent)
    _remove(previous)


def _make_root(root: Path) -> None:
    if not root.is_dir():
        root.mkdir(parents=True, exist_ok=True)  # another process that writes its part may be faster
        sync(root.parent)


def _write_synced(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
