"""The lock on a run directory: one run at a time, and the kernel lets go when the run dies.

POSIX only (`flock`). A process that is killed, even by SIGKILL, loses its lock at once, so there is no stale
lock to judge by age or by process id; what the file says of its holder is only for people to read.
Network file systems: NFS on Linux turns `flock` into a byte-range lock that holds across machines where the
server's lock service runs (not with the mount option `local_lock`); after a machine is lost the server lets go
by its own timeout. Lustre needs the mount option `flock`; some FUSE file systems lock only within one machine.
Where the system offers no locks at all, the run is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path

from peftlab.errors import StorageError

_held: set[int] = set()


class RunLock:
    """Holds the lock file at `path` while the context lasts; StorageError if a living process holds it.

    The file stays when the lock is released: removing it would let a third process lock a file of its own.
    """

    def __init__(self, path: Path):
        self.path = path
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _describe_holder(descriptor)
        except BaseException as error:
            told = self._tell(descriptor, error)
            os.close(descriptor)
            raise told from None
        _held.add(descriptor)
        self._descriptor = descriptor
        return self

    def __exit__(self, *_) -> None:
        # A forked child that leaves the context has no lock any more: see `_close_in_child`.
        if self._descriptor in _held:
            _held.discard(self._descriptor)
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
        self._descriptor = None

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be locked: {error.strerror}; choose another run.output") from None

    def _tell(self, descriptor: int, error: BaseException) -> BaseException:
        if isinstance(error, BlockingIOError):
            told = f"is in use by {_read_holder(descriptor)}; wait for it to end, or set run.output=OTHER"
            return StorageError(f"{self.path.parent}: {told}")
        if isinstance(error, OSError):
            told = f"cannot be locked: {error.strerror}; set run.output to a folder on a local disk"
            return StorageError(f"{self.path}: {told}")
        return error


def _describe_holder(descriptor: int) -> None:
    started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _read_holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}, which started it at {holder['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        # The holder has locked the file and not yet written who it is.
        return "another process"


def _close_in_child() -> None:
    """Keep forked children, data workers above all, from holding the lock of a parent that died."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
