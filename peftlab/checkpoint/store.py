"""The folder of checkpoints: written whole or not at all, found by step, rotated, cleaned.

A checkpoint grows in `.step-000010.PID.partial` and gets its name `step-000010` by one rename, after every
byte of it is on the disk and `MANIFEST.json` says so. All functions that write expect the run's lock to be
held. Order is by step: no clock is ever asked.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from peftlab.checkpoint.manifest import NAME, Manifest, record_file, render, verify, walk_files
from peftlab.errors import StorageError
from peftlab.files import sync, sync_folders

WHOLE = re.compile(r"step-(\d{6,})")
UNFINISHED = re.compile(r"\.step-\d{6,}\.\d+\.partial")
REPLACED = re.compile(r"\.(step-\d{6,})\.\d+\.former")

# Room for what statvfs does not show: file-system blocks, the manifest, other writers of a shared disk.
SPARE_BYTES = 8 * 1024**2
SPARE_FRACTION = 0.02


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every byte was verified."""

    step: int
    path: Path
    manifest: Manifest


def write_checkpoint(
    root: Path, step: int, write: Callable[[Path], None], facts: dict[str, Any], needed_bytes: int = 0
) -> Path:
    """Write the checkpoint of `step` with the files that `write(folder)` makes, and return its folder.

    `facts` is JSON that the manifest states beside the files. When this returns, the checkpoint is on the
    disk; a former one of the same step is replaced. Raises StorageError where there is no room for
    `needed_bytes`, or the disk refuses; then, as after any other exception, the folder is as it was.
    """
    target = root / name_of(step)
    with _told(target), _partial(root, step) as partial:
        _make_root(root)
        refuse_full_disk(root, needed_bytes)
        partial.mkdir()
        write(partial)
        files = {path.relative_to(partial).as_posix(): record_file(path, sync=True) for path in walk_files(partial)}
        manifest = Manifest(step=step, files=files, facts=facts)
        _write_synced(partial / NAME, render(manifest))
        sync_folders(partial)
        _commit(partial, target)
    return target


def find_latest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the whole checkpoint of the highest step, and why each higher one was passed over."""
    faults = []
    for step, path in sorted(list_steps(root).items(), reverse=True):
        try:
            return Checkpoint(step, path, _verify_step(path, step)), faults
        except StorageError as error:
            faults.append(str(error))
    return None, faults


def list_steps(root: Path) -> dict[int, Path]:
    """Return what has a checkpoint's name, by step, verified or not."""
    steps = {int(match[1]): root / match[0] for match in _matches(root, WHOLE)}
    return {step: path for step, path in sorted(steps.items()) if path.name == name_of(step)}


def rotate(root: Path, keep: int, protected: set[int]) -> list[int]:
    """Remove all but the `keep` highest steps and the protected ones; return the steps removed.

    The caller protects the last one that it wrote, the best and the one that it resumed from: a damaged one of
    a higher step takes a place here. Raises StorageError where one cannot be removed.
    """
    if keep < 1:
        raise ValueError("at least the last checkpoint is kept")
    steps = list_steps(root)
    removed = [step for step in list(steps)[:-keep] if step not in protected]
    for step in removed:
        # Under its new name it is no checkpoint any more: a kill in the middle leaves none with half its files.
        with _told(steps[step], "removed"), _partial(root, step) as partial:
            os.rename(steps[step], partial)
            shutil.rmtree(partial)
    return removed


def clean_leftovers(root: Path) -> None:
    """Remove what killed writers left, and nothing else. Only under the run's lock, before `find_latest`."""
    with _told(root, "cleaned"):
        for match in _matches(root, REPLACED):
            # Its writer was killed between moving this one away and giving its place to the new one.
            if not (root / match[1]).exists():
                os.rename(root / match[0], root / match[1])
            else:
                shutil.rmtree(root / match[0])
        for match in _matches(root, UNFINISHED):
            shutil.rmtree(root / match[0])


def refuse_full_disk(root: Path, needed_bytes: int) -> None:
    """Raise StorageError if the disk under `root`, which need not be there yet, lacks room for a checkpoint."""
    place = next(path for path in (root, *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    needed = needed_bytes + SPARE_BYTES + int(needed_bytes * SPARE_FRACTION)
    if free < needed:
        raise StorageError(
            f"{root}: a checkpoint needs {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free; checkpoints that "
            "were whole still are; free some space or keep fewer checkpoints, then go on with --resume"
        )


def name_of(step: int) -> str:
    return f"step-{step:06}"


def _matches(root: Path, pattern: re.Pattern) -> list[re.Match]:
    """Return the matches among the names of real folders in `root`; links are never ours."""
    try:
        entries = [entry.name for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return [match for name in sorted(entries) if (match := pattern.fullmatch(name))]


def _verify_step(path: Path, step: int) -> Manifest:
    manifest = verify(path)
    if manifest.step != step:
        raise StorageError(f"{path}: is no checkpoint of step {step}: its {NAME} says step {manifest.step}")
    return manifest


@contextmanager
def _told(target: Path, done: str = "written") -> Iterator[None]:
    """Tell what the system refuses in one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
        told = "checkpoints that were whole still are; free some space or check the disk, then use --resume"
        raise StorageError(f"{target}: cannot be {done}: {reason}; {told}") from None


@contextmanager
def _partial(root: Path, step: int) -> Iterator[Path]:
    """Give a name beside the checkpoints that is free, and is free again afterwards."""
    partial = root / f".{name_of(step)}.{os.getpid()}.partial"
    # In a container every run may have the same process id: what lies here is then a killed one's.
    _remove(partial)
    try:
        yield partial
    finally:
        _remove(partial)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _commit(partial: Path, target: Path) -> None:
    """Give the folder its name. Nothing can replace a folder that has files at once, so it moves away first."""
    former = partial.with_suffix(".former")
    _remove(former)
    if target.exists():
        os.rename(target, former)
    try:
        os.rename(partial, target)
    except OSError:
        if former.exists():
            os.rename(former, target)
        raise
    sync(target.parent)
    _remove(former)


def _make_root(root: Path) -> None:
    if not root.is_dir():
        root.mkdir(parents=True)
        sync(root.parent)


def _write_synced(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
