"""Rows of text files: JSON lines, JSON, comma- and tab-separated values, and plain lines.

They are read here rather than through `datasets`, because its readers guess types (a CSV cell `NA` becomes
null, a label `01` the number 1), copy everything into a cache and do not name the line that is broken.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from peftlab import quantities
from peftlab.errors import DataError
from peftlab.tables.row import Row

LARGEST_CELL = 2**31 - 1
LARGEST_COLUMNS = 1000
NOT_UTF_8 = "is not UTF-8 (byte 0x{:02x}); save the file as UTF-8"
TEXT_COLUMN = "text"
BOM = "\ufeff"
SEPARATORS = {",": "commas", "\t": "tabs"}
SURROGATES = re.compile("[\ud800-\udfff]")


def read_json_lines(file: BinaryIO, path: Path, skip: int = 0) -> Iterator[Row]:
    """Yield a row for each line that is not blank, from the one after the first `skip`."""
    for number, line in _lines_after(file, skip):
        try:
            yield _as_row(number, _parse_json(line.rstrip(b"\r\n").decode()))
        except UnicodeDecodeError as error:
            yield Row(number, {}, NOT_UTF_8.format(line[error.start]))
        except ValueError as error:
            yield Row(number, {}, str(error))


def read_plain_lines(file: BinaryIO, path: Path, skip: int = 0) -> Iterator[Row]:
    """Yield a row of one column, `text`, for each line that is not blank."""
    for number, line in _lines_after(file, skip):
        try:
            yield Row(number, {TEXT_COLUMN: line.decode().rstrip("\r\n")})
        except UnicodeDecodeError as error:
            yield Row(number, {}, NOT_UTF_8.format(line[error.start]))


def _lines_after(file: BinaryIO, skip: int) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of the lines that are not blank. Only a line feed ends one: JSON may contain U+2028."""
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        if skip:
            skip -= 1
            continue
        yield number, line


def _as_row(number: int, value: Any) -> Row:
    if not isinstance(value, dict):
        return Row(number, {}, f"a row must be an object {{...}}, not {type(value).__name__}")
    if len(value) > LARGEST_COLUMNS:
        return Row(number, {}, f"more than {LARGEST_COLUMNS} columns; rows should share their keys")
    if halved := [name for name in value if not name.isascii() and SURROGATES.search(name)]:
        return Row(number, {}, f"has a column {halved[0]!r}, whose name contains half of a surrogate pair")
    return Row(number, value)


class _KeyTwiceError(ValueError):
    """An object that names a key twice: one of its values would be lost."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these keys and values. Raises _KeyTwiceError."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise _KeyTwiceError(f"names the key {twice!r} twice in one object")
    return value


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _parse_json(text: str) -> Any:
    """Return the value of a JSON text. Raises ValueError with the reason."""
    if text.startswith(BOM):
        raise ValueError("begins with a byte order mark, as where files were joined; remove the mark")
    try:
        return DECODER.decode(text)
    except _KeyTwiceError:
        raise
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("is nested too deeply for a row") from None
    except ValueError:  # Python's own limit
        raise ValueError("contains a number of thousands of digits") from None


def read_json(file: BinaryIO, path: Path, skip: int = 0) -> Iterator[Row]:
    """Yield the objects of a list, or those of a file of objects, which many programs call `.json` too.

    The file is in memory as a whole, unless each object has a line of its own.
    """
    first = next((line for line in file if line.removeprefix(codecs.BOM_UTF8).strip()), b"")
    file.seek(0)
    if _is_object(first):
        yield from read_json_lines(file, path, skip)
        return
    for index, row in enumerate(_read_values(_decode(file.read(), path), path)):
        if index >= skip:
            yield row


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: {NOT_UTF_8.format(content[error.start])}") from None


def _read_values(text: str, path: Path) -> Iterator[Row]:
    """Yield the items of a list, or values one after another, each with the line where it begins."""
    place = _after_blanks(text, 0)
    in_list = text.startswith("[", place)
    line, counted = 1, 0
    place = _after_blanks(text, place + in_list)
    closed = not in_list
    while place < len(text):
        if in_list and text[place] == "]":
            closed, place = True, _after_blanks(text, place + 1)
            break
        line, counted = line + text.count("\n", counted, place), place
        value, place = _decode_value(text, place, path, line)
        if not in_list and not isinstance(value, dict):
            raise DataError(f"{path}: must be a list of objects, not {type(value).__name__}")
        yield _as_row(line, value)
        place = _after_blanks(text, place)
        if in_list and text.startswith(",", place):
            place = _after_blanks(text, place + 1)
        elif in_list and not text.startswith("]", place):
            raise DataError(f"{path}:{line + text.count(chr(10), counted, place)}: is not JSON: expected ',' or ']'")
    if not closed or (in_list and place < len(text)):
        raise DataError(f"{path}: is not JSON: " + ("text after its list" if closed else "the list has no end"))


def _after_blanks(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _decode_value(text: str, place: int, path: Path, line: int) -> tuple[Any, int]:
    try:
        return DECODER.raw_decode(text, place)
    except _KeyTwiceError as error:
        raise DataError(f"{path}:{line}: {error}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise DataError(f"{path}:{line}: is nested too deeply for a row") from None
    except ValueError:  # Python's own limit
        raise DataError(f"{path}:{line}: contains a number of thousands of digits") from None


def read_separated(file: BinaryIO, path: Path, skip: int = 0, *, separator: str) -> Iterator[Row]:
    """Yield a row for each record after the header; every cell stays the string that it is."""
    with _open_separated(file, separator) as reader:
        header = _read_header(reader, path, separator)
        for number, cells in _records(reader):
            if skip:
                skip -= 1
            elif isinstance(cells, str):
                yield Row(number, {}, cells)
            else:
                yield _as_record(number, header, cells, separator)


def _records(reader: Any) -> Iterator[tuple[int, list[str] | str]]:
    """Yield the first line and the cells of each record that is not blank, or its fault as text."""
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield number, f"is not CSV: {error}"
            continue
        if cells is None:
            return
        if cells:
            yield number, cells


def _as_record(number: int, header: list[str], cells: list[str], separator: str) -> Row:
    for cell in cells:
        if not cell.isascii() and (byte := _undecoded(cell)) is not None:
            return Row(number, {}, NOT_UTF_8.format(byte))
    if separator == "\t" and any("\t" in cell and "\n" in cell for cell in cells):
        return Row(number, {}, "a quotation mark that opens a cell takes in more lines; write it twice, in quotes")
    if len(cells) != len(header):
        name, found = SEPARATORS[separator], quantities.number(len(cells), "cell")
        fault = f"has {found}, the header {len(header)}; quote cells that contain {name}"
        return Row(number, {}, fault)
    if len(header) > 1 and cells[-1] == header[-1] and [cells[0].removeprefix(BOM), *cells[1:]] == header:
        return Row(number, {}, "repeats the header, as where files were joined; remove this line")
    return Row(number, dict(zip(header, cells, strict=True)))


def _undecoded(cell: str) -> int | None:
    """Return the first byte that is not UTF-8, which the decoder left as half of a surrogate pair; None without one."""
    return next((ord(character) - 0xDC00 for character in cell if "\udc80" <= character <= "\udcff"), None)


@contextmanager
def _open_separated(file: BinaryIO, separator: str) -> Iterator[Any]:
    csv.field_size_limit(LARGEST_CELL)  # the default of 131,072 characters is too short for documents
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        yield csv.reader(text, strict=True, delimiter=separator)
    finally:
        text.detach()  # else it closes the file, which belongs to the caller


def _read_header(reader: Any, path: Path, separator: str) -> list[str]:
    header: list[str]
    try:
        header = next(reader, [])
    except csv.Error as error:
        remedy = f"separate the names of the columns with {SEPARATORS[separator]}"
        raise DataError(f"{path}:1: is not CSV: {error}; {remedy}") from None
    for name in header:
        if (byte := _undecoded(name)) is not None:
            raise DataError(f"{path}:1: {NOT_UTF_8.format(byte)}")
    if twice := [name for place, name in enumerate(header) if name in header[:place]]:
        raise DataError(f"{path}:1: the header names {twice[0]!r} twice")
    return header


def read_header(file: BinaryIO, path: Path, *, separator: str) -> list[str]:
    """Return the column names of comma- or tab-separated values."""
    with _open_separated(file, separator) as reader:
        return _read_header(reader, path, separator)


read_csv = partial(read_separated, separator=",")
read_tsv = partial(read_separated, separator="\t")
