"""A folder that a command writes beside its place, and that appears there only when it is whole."""

from __future__ import annotations

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
    """Yield a folder beside `out`, which is removed unless it was renamed."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        temporary.chmod(0o755)
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


def put_in_place(temporary: Path, out: Path) -> None:
    """Move a finished temporary folder to `out`, and replace what is there."""
    sync_files(temporary)
    if out.exists():
        shutil.rmtree(out)
    temporary.rename(out)
