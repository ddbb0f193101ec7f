"""Local data files (jsonl, json, csv, parquet; each also gzipped), read with the place of every fault.

They are read here rather than through `datasets`, because its readers guess types (a CSV cell `NA` becomes
null, a label `01` the number 1), copy everything into a cache and do not name the line that is broken.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
LARGEST_CELL = 2**31 - 1


@dataclass(frozen=True)
class Table:
    """Rows of one source, by column; `name` is how messages call the source. All columns are equally long."""

    name: str
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, rows: slice) -> Table:
        return Table(self.name, {column: values[rows] for column, values in self.columns.items()})


def file_kind(path: str) -> str | None:
    """Return the suffix in `SUFFIXES` that says how to read this file, or None."""
    plain = path.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if plain.endswith(suffix)), None)


def read_file(path: Path) -> Table:
    """Read every row of a local file. Raises DataError with file and line."""
    content = _read_bytes(path)
    kind = file_kind(path.name)
    if kind == ".parquet":
        columns = _read_parquet(content, path)
    else:
        text = _decode(content, path)
        columns = {".jsonl": _read_lines, ".json": _read_json, ".csv": _read_csv}[kind](text, path)
    table = Table(str(path), columns)
    if not len(table):
        raise DataError(f"{path}: holds no rows")
    return table


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.name.lower().endswith(".gz") else content
    except FileNotFoundError:
        raise DataError(f"{path}: no such file (relative paths start at {Path.cwd()})") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: is not a whole gzip file ({error}); get it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise DataError(f"{path}:{line}: is not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8") from None


def _columns(rows: list[Any], path: Path, lines: list[int]) -> dict[str, list[Any]]:
    """Turn JSON objects into columns; a key that a row lacks is null there."""
    names: dict[str, None] = {}
    for row, line in zip(rows, lines, strict=True):
        if not isinstance(row, dict):
            raise DataError(f"{path}:{line}: a row must be an object {{...}}, not {type(row).__name__}")
        names.update(dict.fromkeys(row))
    return {name: [row.get(name) for row in rows] for name in names}


def _read_lines(text: str, path: Path) -> dict[str, list[Any]]:
    rows, lines = [], []
    # Not splitlines(): it also breaks at U+2028 and its like, which JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: is not JSON: {error.msg} at column {error.colno}") from None
        lines.append(number)
    return _columns(rows, path, lines)


def _read_json(text: str, path: Path) -> dict[str, list[Any]]:
    """Read a list of objects; a file of one object a line is what many programs call `.json` too."""
    if text.lstrip().startswith("{"):
        return _read_lines(text, path)
    if not text.strip():
        return {}
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: is not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: must hold a list of objects, not {type(rows).__name__}")
    return _columns(rows, path, [1] * len(rows))


def _read_csv(text: str, path: Path) -> dict[str, list[Any]]:
    """Read comma-separated values with a header; every cell stays the string that it is."""
    csv.field_size_limit(LARGEST_CELL)  # the default of 131,072 characters is too short for documents
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if twice := {name for name in header if header.count(name) > 1}:
            raise DataError(f"{path}:1: the header names {sorted(twice)[0]!r} twice")
        columns: dict[str, list[Any]] = {name: [] for name in header}
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}:{reader.line_num}: has {len(cells)} cells, the header {len(header)};"
                    " quote cells that hold commas"
                )
            for name, cell in zip(header, cells, strict=True):
                columns[name].append(cell)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: is not CSV: {error}") from None
    return columns


def _read_parquet(content: bytes, path: Path) -> dict[str, list[Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(pyarrow.BufferReader(content)).to_pydict()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is not a parquet file: {str(error).splitlines()[0]}") from None
