"""The folder of tokens that are kept between runs: entries by their key, written by one process and mapped by all.

`$PEFTLAB_CACHE`, else `$XDG_CACHE_HOME/peftlab`, else `~/.cache/peftlab`. An entry appears as a whole, by a rename, and
every byte of it is checked before it is used. Its writer has locked it (`flock`): processes that need the same tokens
wait for it, and a writer that is killed loses the lock. The folder may be one that contains other files too: only what
has a name that peftlab gives is listed, counted and deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from zlib import crc32

from peftlab.files import decode_json

ENTRY = "entry.json"
BUILDING, LOCKS = "building", "locks"
VERSION = 1
# The names that peftlab gives here: of an entry, of an entry that is being written or deleted, of a file that is kept.
KEY = re.compile("[0-9a-f]{64}")
UNFINISHED = re.compile("(?P<key>[0-9a-f]{64})-.{8}|removed-[0-9a-f]{16}-[0-9]+")
KEPT = re.compile(r"[0-9a-f]{64}\.json")
CHUNK = 4 * 1024**2
# A folder that a writer left behind this long ago is of a process that was killed.
ABANDONED_SECONDS = 24 * 3600
# An entry that nothing used for so long is deleted when another one is written.
UNUSED_SECONDS = 30 * 24 * 3600


class DamagedEntry(Exception):
    """An entry whose files are not those that were written, with the reason as its text."""


@dataclass(frozen=True)
class Entry:
    """One entry: its folder, what was written of it, and how many bytes it has."""

    folder: Path
    content: dict[str, Any]
    size: int

    @property
    def key(self) -> str:
        return self.folder.name

    @property
    def used(self) -> float:
        """When it was last made or read, in seconds since the epoch; 0 where another process deleted it."""
        return changed_at(self.folder)


def cache_folder() -> Path:
    """Return the folder in which peftlab keeps what it can make again."""
    named = os.environ.get("PEFTLAB_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "peftlab"


def measured_folder() -> Path:
    """Return the folder with a file for each measurement of memory that is kept, changed when it was used last."""
    return cache_folder() / "memory"


def base_figures_folder() -> Path:
    """Return the folder with a file for each evaluation of a base that is kept, changed when it was used last."""
    return cache_folder() / "evaluations"


def plans_folder() -> Path:
    """Return the folder with a file for each plan of memory that is kept, changed when it was used last."""
    return cache_folder() / "plans"


def kept_files(folder: Path) -> list[Path]:
    """Return the files in a folder that runs kept for later ones, in the order of their names."""
    try:
        return sorted(path for path in folder.iterdir() if KEPT.fullmatch(path.name) and _is_own(path, path.is_file()))
    except OSError:
        return []


class TokenStore:
    """The entries of one folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (cache_folder() if folder is None else folder) / "tokens"

    def find(self, key: str) -> Entry | None:
        """Return the entry of a key, every byte of it checked; None without one. Raises DamagedEntry."""
        try:
            entry = read_entry(self.folder / key)
            if entry is not None:
                _check_bytes(entry)
                with contextlib.suppress(OSError):
                    os.utime(entry.folder)
            return entry
        except OSError as error:
            raise DamagedEntry(f"cannot be read ({error.strerror or error})") from None

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Lock one key, waiting for a process that has. Without locks in the file system several may write it."""
        path = self.folder / LOCKS / f"{key}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(descriptor)

    @contextmanager
    def building(self, key: str) -> Iterator[Path]:
        """Give a new folder to write the entry of a locked key in; what is left of it in the end is deleted."""
        place = self.folder / BUILDING
        place.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(place, key)
        folder = Path(mkdtemp(dir=place, prefix=f"{key}-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, folder: Path, key: str | None, content: dict[str, Any]) -> Entry:
        """Make a written folder the entry of a key, and return it; without a key it stays where it is.

        Nothing is flushed: what a crash of the machine leaves is seen by the checksums. Raises OSError.
        """
        files = {path.name: [path.stat().st_size, _checksum(path)] for path in sorted(folder.iterdir())}
        content = {"version": VERSION, "made": time.time(), "files": files, **content}
        sealed = {"sha256": _digest(content), "content": content}
        (folder / ENTRY).write_text(json.dumps(sealed), encoding="utf-8")
        if key is not None:
            with contextlib.suppress(OSError):  # another process was first, in a file system without locks
                os.rename(folder, self.folder / key)
                folder = self.folder / key
            self._remove_unused()
        return Entry(folder, content, sum(size for size, _ in files.values()))

    def _remove_unused(self) -> None:
        for entry in self.entries():
            if time.time() - entry.used > UNUSED_SECONDS:
                self.remove(entry.key)

    def remove(self, key: str) -> None:
        """Delete an entry; processes that have mapped it keep what they have."""
        gone = self.folder / BUILDING / f"removed-{key[:16]}-{os.getpid()}"
        with contextlib.suppress(OSError):
            gone.parent.mkdir(parents=True, exist_ok=True)
            os.rename(self.folder / key, gone)
            if gone.is_symlink():
                gone.unlink()
            shutil.rmtree(gone, ignore_errors=True)

    def entries(self) -> Iterator[Entry]:
        """Yield all entries, the one used last first; those that cannot be read have no content."""
        folders = {path: changed_at(path) for path in _folders(self.folder, KEY)}
        for path in sorted(folders, key=lambda path: folders[path], reverse=True):
            try:
                found = read_entry(path)
            except (DamagedEntry, OSError):
                found = Entry(path, {}, size_of(path))
            if found is not None:
                yield found

    def abandoned(self) -> list[Path]:
        """Return the folders in which no process writes an entry any more: their writers were killed."""
        return [folder for folder in _folders(self.folder / BUILDING, UNFINISHED) if not self._has_writer(folder)]

    def _has_writer(self, folder: Path) -> bool:
        """Return whether the process that writes a folder may still have the lock of its key."""
        found = UNFINISHED.fullmatch(folder.name)
        return bool(found and found["key"]) and _is_locked(self.folder / LOCKS / f"{folder.name[:64]}.lock")


def read_entry(folder: Path) -> Entry | None:
    """Return what was written of an entry, unchecked; None where there is none. Raises DamagedEntry and OSError."""
    try:
        sealed = decode_json((folder / ENTRY).read_bytes())
        content = sealed["content"]
        if sealed["sha256"] == _digest(content) and content["version"] == VERSION:
            return Entry(folder, content, sum(size for size, _ in content["files"].values()))
    except (FileNotFoundError, NotADirectoryError):
        if not folder.exists():
            return None
        raise DamagedEntry(f"{ENTRY} is missing") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise DamagedEntry(f"{ENTRY} is not what was written")


def _digest(content: dict[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_bytes(entry: Entry) -> None:
    for name, (size, checksum) in entry.content["files"].items():
        path = entry.folder / name
        if not path.is_file() or path.stat().st_size != size or _checksum(path) != checksum:
            raise DamagedEntry(f"{name} is not what was written")


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            found = crc32(chunk, found)
    return found


def _lock(path: Path) -> int:
    """Return the descriptor of a locked file that still has this name."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        with contextlib.suppress(OSError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        os.close(descriptor)


def _is_locked(path: Path) -> bool:
    """Return whether a process may have locked a file: where a lock cannot be tried, one may."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError as error:
        return not isinstance(error, FileNotFoundError)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _remove_abandoned(place: Path, key: str) -> None:
    """Delete what writers left that were killed: of this key, which is locked, and whatever is old."""
    for folder in _folders(place, UNFINISHED):
        if folder.name.startswith(key) or time.time() - changed_at(folder) > ABANDONED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def changed_at(path: Path) -> float:
    """Return when a file or folder was changed last, in seconds since the epoch; 0 where it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of the files in a folder; 0 where they are gone."""
    try:
        files = path.iterdir() if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files if file.is_file())
    except OSError:
        return 0


def _folders(place: Path, names: re.Pattern[str]) -> list[Path]:
    """Return the folders in a place whose names are of a form; links are not."""
    try:
        return [path for path in place.iterdir() if names.fullmatch(path.name) and _is_own(path, path.is_dir())]
    except OSError:
        return []


def _is_own(path: Path, kind: bool) -> bool:
    """Return whether what is there is of the wanted kind and not a link, which peftlab makes none of."""
    return kind and not path.is_symlink()
