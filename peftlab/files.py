"""Paths as users write them, and files of which a reader, or a crash, meets the old one or the new one whole."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(text: str) -> Path:
    """Return the path that a user wrote, `~` replaced by the home; it need not exist.

    Raises ValueError with the reason for what no file can be called, or may not be looked at.
    """
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, RuntimeError) as error:  # RuntimeError: a user's home that is not there
        raise ValueError(getattr(error, "strerror", None) or str(error).rstrip(".")) from None
    return path


def write_atomically(path: Path, text: str) -> None:
    """Write `text` beside `path` and rename, so that a reader sees the old file or the new one whole."""
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
    """Bring every file below `folder` to the disk, then the names of each."""
    for path, _, names in os.walk(folder):
        for name in names:
            sync(Path(path, name))
        sync(Path(path))


def sync_folders(folder: Path) -> None:
    """Bring the names inside a folder and its subfolders to the disk."""
    for path, _, _ in os.walk(folder):
        sync(Path(path))


def sync(path: Path) -> None:
    """Bring one file's bytes, or the names in one folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
