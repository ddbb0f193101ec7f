"""Local data files: which kinds there are, their rows with the place of every fault, and their columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import file_digest
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from peftlab.errors import DataError
from peftlab.tables import arrow_files, text_files
from peftlab.tables.packed import PACKINGS, open_file, packing_of
from peftlab.tables.row import Row

# JSON has no header: the keys of so many first rows are its columns.
HEADER_ROWS = 100


@dataclass(frozen=True)
class Kind:
    """A kind of file: its reader, whether rows are counted in lines, and what reads its column names alone."""

    read: Callable[[BinaryIO, Path, int], Iterator[Row]]
    in_lines: bool = True
    columns: Callable[[BinaryIO, Path], list[str]] | None = None


def _header(separator: str) -> Callable[[BinaryIO, Path], list[str]]:
    return lambda file, path: text_files.read_header(file, path, separator=separator)


KINDS = {
    ".jsonl": Kind(text_files.read_json_lines),
    ".ndjson": Kind(text_files.read_json_lines),
    ".json": Kind(text_files.read_json),
    ".csv": Kind(text_files.read_csv, columns=_header(",")),
    ".tsv": Kind(text_files.read_tsv, columns=_header("\t")),
    ".txt": Kind(text_files.read_plain_lines, columns=lambda file, path: [text_files.TEXT_COLUMN]),
    ".parquet": Kind(arrow_files.read_parquet, in_lines=False, columns=arrow_files.read_parquet_columns),
    ".arrow": Kind(arrow_files.read_arrow, in_lines=False, columns=arrow_files.read_arrow_columns),
}
SUFFIXES = tuple(KINDS)


def file_kind(path: str) -> str | None:
    """Return the suffix in `SUFFIXES` that says how to read this file, or None."""
    plain = path.lower()
    plain = plain.removesuffix(packing_of(plain) or "")
    return next((suffix for suffix in SUFFIXES if plain.endswith(suffix)), None)


@dataclass(frozen=True)
class FilePiece:
    """The rows of one file."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        return self.path.is_file()

    def place(self, number: int) -> str:
        """Return how messages name the row of this number."""
        return f"{self.path}:{number}" if self._kind.in_lines else f"{self.path}: row {number}"

    def rows(self, skip: int = 0) -> Iterator[Row]:
        """Yield the rows after the first `skip`. Raises DataError where no more can be read."""
        with open_file(self.path) as file:
            yield from self._kind.read(file, self.path, skip)

    def columns(self) -> list[str]:
        """Return the column names, without reading the rows where the file names them."""
        if self._kind.columns is None:
            return list(dict.fromkeys(name for row in islice(self.rows(), HEADER_ROWS) for name in row.cells))
        with open_file(self.path) as file:
            return self._kind.columns(file, self.path)

    def files(self) -> list[Path]:
        return [self.path]

    def digest(self) -> str | None:
        """Return the sha256 of the file's bytes; None for a pipe and the like, which would wait for a writer."""
        if not self.path.is_file():
            return None
        with self.path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()

    @property
    def _kind(self) -> Kind:
        kind = file_kind(self.path.name)
        if kind is None:
            raise DataError(
                f"{self.path}: unknown file type; the name must end in {', '.join(SUFFIXES)}"
                f" (or one of these and {', '.join(PACKINGS)})"
            )
        return KINDS[kind]


@dataclass(frozen=True)
class Table:
    """Rows by column in memory; `name` is how messages call them. All columns are equally long."""

    name: str
    cells: dict[str, list[Any]]

    def place(self, number: int) -> str:
        return f"{self.name}: row {number}"

    def rows(self, skip: int = 0) -> Iterator[Row]:
        names = list(self.cells)
        for number, values in enumerate(zip(*self.cells.values(), strict=True), start=1):
            if number > skip:
                yield Row(number, dict(zip(names, values, strict=True)))

    def columns(self) -> list[str]:
        return list(self.cells)

    def files(self) -> list[Path]:
        return []

    def digest(self) -> None:
        """Return nothing: rows in memory have no state that is known without reading them."""
