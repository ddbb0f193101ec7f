"""A folder that a command writes beside its place, and that appears there only when it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from safetensors import SafetensorError

from peftlab.errors import StorageError, UsageError, one_line
from peftlab.files import sync_files, why


def refuse_output(out: Path, run: Path, overwrite: bool, record: str, what: str) -> None:
    """Raise UsageError for a folder that may not be written: only `what` has a file called `record`."""
    if out.resolve() == run.resolve() or run.resolve() in out.resolve().parents:
        raise UsageError(f"{out} is inside the run; choose another folder")
    if out.name in ("", ".."):
        raise UsageError(f"{out} has no name of its own to write a folder under; name a new folder")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out} is not a folder; choose another one")
    if (above := next((one for one in out.parents if one.exists()), None)) is not None and not above.is_dir():
        raise UsageError(f"{out}: {above} is a file, not a folder; choose another place")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / record).is_file():
        raise UsageError(f"{out} contains files that are not {what} of peftlab; choose another folder")
    if not overwrite:
        raise UsageError(f"{out} already contains {what}; --overwrite replaces it")


@contextmanager
def temporary_folder(out: Path) -> Iterator[Path]:
    """Yield a folder beside `out`, which is removed unless it was renamed, as are those of killed processes."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(out)
        temporary = Path(mkdtemp(dir=out.parent, prefix=prefix_of(out)))
        temporary.chmod(0o755)
        lock = lock_folder(temporary)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written: {why(error)}") from None
    try:
        yield temporary
    except OSError as error:
        raise StorageError(f"{out}: cannot be written: {why(error)}") from None
    except SafetensorError as error:
        if "os error" in str(error):  # of the system, while it writes
            raise StorageError(f"{out}: cannot be written: {why(error)}") from None
        fault = f"the weights that it is made of cannot be read: {one_line(str(error))}"
        raise StorageError(f"{out}: not written: {fault}; `peftlab verify RUN` names the file that changed") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def lock_folder(folder: Path) -> int | None:
    """Return the lock of a folder, which ends with its process; None where another has it, or there are no locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def prefix_of(out: Path) -> str:
    """Return how the names of the temporary folders beside `out` begin."""
    return f".{out.name}.peftlab-"


def remove_abandoned(out: Path) -> None:
    """Remove the temporary folders of processes that were killed, which nothing else would remove."""
    for folder in [path for path in out.parent.iterdir() if path.name.startswith(prefix_of(out))]:
        with contextlib.suppress(OSError):
            if (lock := lock_folder(folder)) is not None:
                shutil.rmtree(folder)
                os.close(lock)


def put_in_place(temporary: Path, out: Path) -> None:
    """Move a finished temporary folder to `out`, and replace what is there, which is gone only after that."""
    sync_files(temporary)
    former = out.with_name(f"{prefix_of(out)}{os.getpid():08}")
    if out.exists():
        out.rename(former)
    try:
        temporary.rename(out)
    except OSError:
        if former.exists():
            former.rename(out)
        raise
    shutil.rmtree(former, ignore_errors=True)
