"""Rows of parquet and arrow files and of memory maps; a cell that Python has no value for is `Unreadable`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from peftlab.errors import DataError, one_line
from peftlab.tables.packed import packing_of
from peftlab.tables.row import Row, Unreadable

ROWS_AT_ONCE = 1000


def read_parquet(file: BinaryIO, path: Path, skip: int = 0) -> Iterator[Row]:
    """Yield the rows after the first `skip`; row groups that lie before are not read."""
    import pyarrow

    try:
        opened = _open_parquet(file, path)
        sizes = [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]
        first = before = 0
        while first < len(sizes) and before + sizes[first] <= skip:
            before, first = before + sizes[first], first + 1
        groups = list(range(first, len(sizes)))
        batches = opened.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=groups) if groups else ()
        yield from rows_of(batches, _features(opened.schema_arrow), before, skip)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is not a parquet file: {one_line(str(error).splitlines()[0])}") from None


def read_parquet_columns(file: BinaryIO, path: Path) -> list[str]:
    """Return the column names, from the file's own schema."""
    import pyarrow

    try:
        return _open_parquet(file, path).schema_arrow.names
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is not a parquet file: {one_line(str(error).splitlines()[0])}") from None


def _open_parquet(file: BinaryIO, path: Path) -> Any:
    from pyarrow import parquet

    opened = parquet.ParquetFile(_seekable(file, path))
    _refuse_twice(opened.schema_arrow.names, path)
    return opened


def read_arrow(file: BinaryIO, path: Path, skip: int = 0) -> Iterator[Row]:
    """Yield the rows after the first `skip` of an arrow file or an arrow stream."""
    import pyarrow

    try:
        schema, batches = _open_arrow(file, path)
        yield from rows_of(batches, _features(schema), 0, skip)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is not an arrow file: {one_line(str(error).splitlines()[0])}") from None


def read_arrow_columns(file: BinaryIO, path: Path) -> list[str]:
    """Return the column names, from the file's own schema."""
    import pyarrow

    try:
        return _open_arrow(file, path)[0].names
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is not an arrow file: {one_line(str(error).splitlines()[0])}") from None


def _open_arrow(file: BinaryIO, path: Path) -> tuple[Any, Iterator[Any]]:
    """Return schema and batches of a file with an index at its end, or of a stream without one."""
    import pyarrow

    seekable = _seekable(file, path)
    try:
        indexed = pyarrow.ipc.open_file(seekable)
        schema, batches = indexed.schema, (indexed.get_batch(i) for i in range(indexed.num_record_batches))
    except pyarrow.ArrowInvalid:
        seekable.seek(0)
        streamed = pyarrow.ipc.open_stream(seekable)
        schema, batches = streamed.schema, iter(streamed)
    _refuse_twice(schema.names, path)
    return schema, batches


def _seekable(file: BinaryIO, path: Path) -> Any:
    """Return what pyarrow can read at any place: the file itself, or the content of a compressed one in memory."""
    import pyarrow

    return pyarrow.BufferReader(file.read()) if packing_of(path.name) else pyarrow.PythonFile(file)


def _refuse_twice(names: list[str], path: Path) -> None:
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise DataError(f"{path}: has two columns {twice[0]!r}")


def _features(schema: Any) -> Any:
    """Return the features that `datasets` wrote into a file, with the names of class labels; None without them."""
    if b"huggingface" not in (schema.metadata or {}):
        return None
    import datasets

    return datasets.Features.from_arrow_schema(schema)


def rows_of(batches: Iterable[Any], features: Any, before: int = 0, skip: int = 0) -> Iterator[Row]:
    """Yield rows of record batches (or tables); `before` rows are before the first, those up to `skip` are left out.

    Objects inside a cell lose their fields that are null: Arrow gives all objects of a column the same fields, so that
    a tool call has the arguments of every other call too.
    """
    for batch in map(_with_short_numbers, batches):
        for row, cells in enumerate(_cells(batch), start=before + 1):
            if row > skip:
                cells = {name: without_nulls(value) for name, value in cells.items()}
                yield Row(row, _named(cells, features) if features is not None else cells)
        before += batch.num_rows


def _with_short_numbers(batch: Any) -> Any:
    """Return a batch whose numbers of 32 and 16 bits have no more digits than they need: 0.1, not 0.10000000149."""
    import pyarrow
    from pyarrow import types

    for place, field in enumerate(batch.schema):
        if types.is_float32(field.type) or types.is_float16(field.type):
            digits = batch.column(place).cast(pyarrow.float32()).cast(pyarrow.string())
            batch = batch.set_column(place, field.with_type(pyarrow.float64()), digits.cast(pyarrow.float64()))
    return batch


def _cells(batch: Any) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except Exception:  # the faults of values share no base: UnicodeDecodeError, OverflowError, ValueError, Arrow's own
        columns = {name: [_value(cell) for cell in batch.column(name)] for name in batch.schema.names}
        return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        return Unreadable(f"is not UTF-8 (byte 0x{error.object[error.start]:02x} at position {error.start})")
    except Exception as error:  # as above
        return Unreadable(f"has a value that cannot be read as {cell.type}: {one_line(error)}")


def without_nulls(value: Any) -> Any:
    """Return a value whose objects, however deep in lists and objects, have no field that is null."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return [without_nulls(item) for item in value]
    return value


def _named(cells: dict[str, Any], features: Any) -> dict[str, Any]:
    """Return the cells with the names of class labels in place of their numbers."""
    return {name: name_labels(value, features.get(name)) for name, value in cells.items()}


def name_labels(value: Any, feature: Any) -> Any:
    """Return a value with the names of class labels, also inside lists and objects; -1 means no label, and is null."""
    import datasets

    if value is None or feature is None or isinstance(value, Unreadable):
        return value
    if isinstance(feature, datasets.ClassLabel):
        if isinstance(value, str):
            return value
        return feature.names[value] if 0 <= value < len(feature.names) else None
    if isinstance(value, list) and (inner := getattr(feature, "feature", None)) is not None:
        return [name_labels(item, inner) for item in value]
    if isinstance(value, dict) and isinstance(feature, dict):
        return {key: name_labels(item, feature.get(key)) for key, item in value.items()}
    return value
