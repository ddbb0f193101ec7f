"""The lock on a run directory: one run at a time; the kernel releases it when the run ends, however it ends.

POSIX only (`flock`). A process that is killed, even by SIGKILL, loses its lock at once, so there are no stale
locks to detect by age or process id; the holder's name in the file is only for error messages.
Network file systems: NFS on Linux turns `flock` into a byte-range lock that works across machines where the
server's lock service runs (not with the mount option `local_lock`); if a machine is lost, the server releases
the lock after its own timeout. Lustre needs the mount option `flock`; some FUSE file systems lock only within
one machine. Where the system has no locks at all, the run is refused.
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
from peftlab.files import decode_json

_held: set[int] = set()


class RunLock:
    """Locks the file at `path` for the duration of the context; StorageError if a running process has locked it.

    The file is kept when the lock is released: removing it would let a third process lock a new file of that name.
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
            refusal = self._refusal(descriptor, error)
            os.close(descriptor)
            raise refusal from None
        _held.add(descriptor)
        self._descriptor = descriptor
        return self

    def __exit__(self, *_: object) -> None:
        # In a forked child the lock is closed already: see `_close_in_child`.
        if self._descriptor is not None and self._descriptor in _held:
            _held.discard(self._descriptor)
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
        self._descriptor = None

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot be locked: {error.strerror}; set run.output to another directory"
            ) from None

    def _refusal(self, descriptor: int, error: BaseException) -> BaseException:
        """Return the StorageError for what the system refused; any other error as it is."""
        if isinstance(error, BlockingIOError):
            message = f"is in use by {_read_holder(descriptor)}; wait until it ends, or set run.output=OTHER"
            return StorageError(f"{self.path.parent}: {message}")
        if isinstance(error, OSError):
            message = f"cannot be locked: {error.strerror}; set run.output to a directory on a local disk"
            return StorageError(f"{self.path}: {message}")
        return error


def _describe_holder(descriptor: int) -> None:
    started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _read_holder(descriptor: int) -> str:
    try:
        holder = decode_json(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}, started at {holder['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        # The holder has locked the file but not yet written its name into it.
        return "another process"


def _close_in_child() -> None:
    """Close the locks in a forked child, so that data workers do not keep the lock of a dead parent."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
