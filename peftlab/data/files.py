"""Local data files (jsonl, json, csv, parquet; each also gzipped), read with the place of every fault.

They are read here rather than through `datasets`, because its readers guess types (a CSV cell `NA` becomes
null, a label `01` the number 1), copy everything into a cache and do not name the line that is broken.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.errors import DataError, one_line
from peftlab.world.hardware import available_host_bytes

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
LARGEST_CELL = 2**31 - 1
LARGEST_COLUMNS = 1000
# Text shrinks to a fifth or a twentieth; what unpacks to more than this is made to fill a memory.
LARGEST_EXPANSION = 200
UNSUSPICIOUS_BYTES = 256 * 1024**2


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
    assert kind is not None, "only files of a known kind are read"
    if kind == ".parquet":
        columns = _read_parquet(content, path)
    else:
        text = _decode(content, path)
        columns = {".jsonl": _read_lines, ".json": _read_json, ".csv": _read_csv}[kind](text, path)
    table = Table(str(path), columns)
    if not len(table):
        raise DataError(f"{path}: contains no rows")
    return table


def _read_bytes(path: Path) -> bytes:
    try:
        _refuse_unreadable(path)
        content = path.read_bytes()
        return _unpack(content, path) if path.name.lower().endswith(".gz") else content
    except FileNotFoundError:
        raise DataError(f"{path}: no such file (relative paths start at {Path.cwd()})") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: is not a whole gzip file ({error}); download it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _refuse_unreadable(path: Path) -> None:
    """Raise DataError for what would wait for ever (a pipe) or fill the memory."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path}: is not a regular file; write the rows to one")
    if found.st_size > (free := available_host_bytes()):
        raise DataError(f"{path}: has {found.st_size:,} bytes and {free:,} of memory are free; use a part of it")


def _unpack(content: bytes, path: Path) -> bytes:
    limit = max(UNSUSPICIOUS_BYTES, LARGEST_EXPANSION * len(content))
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        plain = file.read(limit + 1)
    if len(plain) > limit:
        raise DataError(
            f"{path}: unpacks to more than {LARGEST_EXPANSION} times its size, which text does not; inspect it, and"
            " name the unpacked file if it is what you expect"
        )
    return plain


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
        if len(names) > LARGEST_COLUMNS:
            raise DataError(f"{path}:{line}: more than {LARGEST_COLUMNS} columns; rows should share their keys")
    return {name: [row.get(name) for row in rows] for name in names}


def _read_lines(text: str, path: Path) -> dict[str, list[Any]]:
    rows, lines = [], []
    # Not splitlines(): it also breaks at U+2028 and its like, which JSON strings may contain.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        rows.append(_parse_json(line, path, number))
        lines.append(number)
    return _columns(rows, path, lines)


def _parse_json(text: str, path: Path, line: int | None = None) -> Any:
    """Return the value of a JSON text; `line` is the file's line that it is, if it is one."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}:{line or error.lineno}"
        raise DataError(f"{where}: is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise DataError(f"{path}{f':{line}' if line else ''}: is nested too deeply for a row") from None
    except ValueError:  # Python's own limit
        raise DataError(f"{path}{f':{line}' if line else ''}: contains a number of thousands of digits") from None


def _read_json(text: str, path: Path) -> dict[str, list[Any]]:
    """Read a list of objects; a file of one object a line is what many programs call `.json` too."""
    if text.lstrip().startswith("{"):
        return _read_lines(text, path)
    if not text.strip():
        return {}
    rows = _parse_json(text, path)
    if not isinstance(rows, list):
        raise DataError(f"{path}: must be a list of objects, not {type(rows).__name__}")
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
                    " quote cells that contain commas"
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
        table = parquet.read_table(pyarrow.BufferReader(content))
        names = table.column_names
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: is not a parquet file: {one_line(error)}") from None
    return {name: _as_python(column, name, path) for name, column in zip(names, table.columns, strict=True)}


def _as_python(column: Any, name: str, path: Path) -> list[Any]:
    """Return a parquet column's values; their writers check neither texts nor dates, and Python has not all of them."""
    import pyarrow

    faults = (pyarrow.ArrowException, ValueError, OverflowError)
    try:
        return column.to_pylist()
    except faults:
        for row, cell in enumerate(column, start=1):
            try:
                cell.as_py()
            except faults as error:
                reason = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else one_line(error, 80)
                raise DataError(
                    f"{path}: row {row}, column {name!r}: {reason}; write the value as plain text"
                ) from None
        raise
