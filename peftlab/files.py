"""Paths as users write them, files that are replaced atomically, and records that may be damaged."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peftlab.errors import StorageError, UsageError, one_line

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
MISPLACED = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


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


def why(error: Exception) -> str:
    """Return the reason that the system gives for an error, also through safetensors, and what to do about it."""
    reason = getattr(error, "strerror", None) or one_line(error)
    code = re.search(r"os error (\d+)", reason)
    number = int(code[1]) if code else getattr(error, "errno", None)
    if number in FULL:
        return f"{reason}; free some space"
    if number in FORBIDDEN:
        return f"{reason}; check the permissions of the file and its folder"
    if number in MISPLACED:
        return f"{reason}; check the path"
    return f"{reason}; check the disk"


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of peftlab. Raises StorageError with the file's name, whatever is there."""
    return parse_json(path, read_text(path))


def parse_json(path: Path, text: str) -> Any:
    """Return the value of a JSON text, which is the content of `path`. Raises StorageError."""
    try:
        return decode_json(text)
    except ValueError as error:
        reason = "it is empty" if not text.strip() else f"it is not JSON ({one_line(error, 80)})"
        raise StorageError(f"{path}: is damaged: {reason}") from None


def decode_json(text: str | bytes) -> Any:
    """Return the value of a JSON text from anywhere. Raises ValueError, also for one that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file. Raises StorageError with its name, also for a pipe, which would never end."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise StorageError(f"{path}: is not a regular file")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise StorageError(f"{path}: is damaged: byte {error.start + 1} is not UTF-8") from None
    except FileNotFoundError:
        raise StorageError(f"{path}: is missing") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {why(error)}") from None


def refuse_output_file(path: Path, reads: Iterable[Path] = ()) -> None:
    """Raise StorageError for a file that a command could not write when its work is done.

    A link stands for the file that it names, whose folder must exist. Raises UsageError for a file that the command
    `reads` itself.
    """
    if (fault := _fault_of_output(path)) is not None:
        raise StorageError(f"{path}: cannot be written: {fault}; name another file")
    if path.exists() and any(one.exists() and path.samefile(one) for one in reads):
        raise UsageError(f"{path} is read by this command, and would be lost; name another file")


def _fault_of_output(path: Path) -> str | None:
    try:
        real = path.resolve()
        mode = real.stat().st_mode if real.exists() else None
    except (OSError, RuntimeError):  # which one depends on the version of Python
        return "it is a link to itself"
    folder = real.parent
    parents = [one for one in real.parents if one.exists()]
    if not parents[0].is_dir():
        return f"{parents[0]} is a file, not a folder"
    if mode is not None and stat.S_ISDIR(mode):
        return "it is a folder"
    if mode is not None and not stat.S_ISREG(mode):  # a device would be replaced by a file, for all who use it
        return "it is not a regular file"
    if parents[0] != folder:
        return f"there is no folder {folder}"
    if not os.access(folder, os.W_OK):
        return f"the folder {folder} may not be written"
    return None if mode is None or os.access(real, os.W_OK) else "it may not be written"


def write_output(path: Path, content: str | bytes) -> None:
    """Write a file that a user named, as `write_atomically` does; a link stays: the file that it names is replaced."""
    write_atomically(path.resolve(), content)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the content of `path`, so that readers and crashes see the old file or the new one.

    A link is replaced too, and the file that it names is left as it is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        # "x" follows no link that somebody put there.
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # what failed for the user, and not the temporary name
        raise
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
