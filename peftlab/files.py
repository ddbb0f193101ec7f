"""Paths as users write them, and files that are replaced atomically."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(text: str) -> Path:
    """Return the path that a user wrote, with `~` expanded; it need not exist.

    Raises ValueError with the reason for a name that no file can have or a place that may not be read.
    """
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, RuntimeError) as error:  # RuntimeError: the home of an unknown user
        raise ValueError(getattr(error, "strerror", None) or str(error).rstrip(".")) from None
    return path


def write_atomically(path: Path, text: str) -> None:
    """Replace the content of `path` by `text`, so that readers and crashes see the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_files(folder: Path) -> None:
    """Flush every file below `folder` to the disk, then the names in each folder."""
    for path, _, names in os.walk(folder):
        for name in names:
            sync(Path(path, name))
        sync(Path(path))


def sync_folders(folder: Path) -> None:
    """Flush the names inside a folder and its subfolders to the disk."""
    for path, _, _ in os.walk(folder):
        sync(Path(path))


def sync(path: Path) -> None:
    """Flush one file's bytes, or the names in one folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
