"""Files as streams of bytes, unpacked where they are compressed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from peftlab.errors import DataError

# Text shrinks to a fifth or a twentieth; what unpacks to more than this is made to fill a memory.
LARGEST_EXPANSION = 200
UNSUSPICIOUS_BYTES = 256 * 1024**2
BUFFER_BYTES = 1024**2


def _open_zst(path: Path) -> Any:
    import pyarrow  # Python has no reader of its own before 3.14

    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")


PACKINGS: dict[str, Callable[[Path], Any]] = {
    ".gz": lambda path: gzip.open(path),
    ".zst": _open_zst,
    ".xz": lambda path: lzma.open(path),
    ".bz2": lambda path: bz2.open(path),
}


def packing_of(name: str) -> str | None:
    """Return the suffix in `PACKINGS` that a file's name ends in, or None."""
    return next((suffix for suffix in PACKINGS if name.lower().endswith(suffix)), None)


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read its bytes, unpacked. Raises DataError if it is missing or broken, also while it is read."""
    packing = packing_of(path.name)
    try:
        _refuse_special(path)
        if packing is None:
            with path.open("rb", buffering=BUFFER_BYTES) as file:
                yield file
        else:
            with io.BufferedReader(_Unpacked(path, packing), BUFFER_BYTES) as unpacked:
                yield unpacked
    except FileNotFoundError:
        raise DataError(f"{path}: no such file (relative paths start at {Path.cwd()})") from None
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise _broken(path, packing, error) from None
    except OSError as error:
        if packing is not None and error.errno is None:  # of bz2 and zst: it is the content
            raise _broken(path, packing, error) from None
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _broken(path: Path, packing: str | None, error: Exception) -> DataError:
    kind = {".gz": "gzip"}.get(packing or "", (packing or "").lstrip("."))
    return DataError(f"{path}: is not a whole {kind} file ({error}); download it again")


def _refuse_special(path: Path) -> None:
    """Raise DataError for what would wait for ever, such as a pipe."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"{path}: is not a regular file; write the rows to one")


class _Unpacked(io.RawIOBase):
    """The content of a compressed file. Raises DataError where it is much longer than text would be."""

    def __init__(self, path: Path, packing: str) -> None:
        self._path, self._file, self._given = path, PACKINGS[packing](path), 0
        self._limit = max(UNSUSPICIOUS_BYTES, LARGEST_EXPANSION * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        self._given += len(content)
        if self._given > self._limit:
            raise DataError(
                f"{self._path}: unpacks to more than {LARGEST_EXPANSION} times its size, which text does not;"
                " inspect it, and name the unpacked file if it is what you expect"
            )
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
