"""The parts of a recipe's data, read: examples of every row, and what was skipped and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, NamedTuple

from peftlab.data.columns import Column, find_column
from peftlab.data.kept_examples import Kept
from peftlab.data.keys import Keys
from peftlab.data.recognise import Choice, open_reader, recognise, refuse_foreign_row
from peftlab.data.row_reader import Header, Reader, RowReader, Wanted, wanted_columns
from peftlab.data.sources import START, Cursor, Piece, Source, read_source
from peftlab.errors import DataError, listed, nearest
from peftlab.recipe.schema import Data, DataSource, Sources, list_sources
from peftlab.tables.files import FilePiece, Table
from peftlab.tables.row import Unreadable
from peftlab.tasks import TASKS, find_format, tasks_taking
from peftlab.tasks.base import Task
from peftlab.tasks.formats import Example

LISTED_FAULTS = 3
# In the report of a part: the columns that its rows may lack and all have; whether its labels are whole numbers.
OPTIONAL_ROLES = "optional"
NUMBER_LABELS = "number_labels"
TRAINED_ON = "the file that the run was trained on"
FIRST_ROWS = 100
# Smaller files fit; to ask for the free memory loads torch.
LARGE_BYTES = 2**30


@dataclass
class Tally:
    """What was read of a part: rows, those without content, those with a fault (the first ones by name).

    `written` has the layouts of its files, `unread` the columns of which nothing is in the rows. `numbers` is whether
    the cells of labels are whole numbers in all rows, None before the first.
    """

    rows: int = 0
    empty: int = 0
    bad: int = 0
    dropped: int = 0
    faults: list[str] = field(default_factory=list)
    written: dict[str, None] = field(default_factory=dict)
    unread: dict[str, None] = field(default_factory=dict)
    numbers: bool | None = None

    def note_labels(self, cells: Iterable[Any]) -> None:
        for cell in cells:
            self.numbers = self.numbers is not False and _are_whole(cell)

    def add_fault(self, fault: str) -> None:
        self.bad += 1
        if len(self.faults) < LISTED_FAULTS:
            self.faults.append(fault)

    def describe(self) -> dict[str, Any]:
        """Return what a report says: only what occurred."""
        found = {"empty": self.empty, "bad": self.bad, "faults": self.faults}
        found |= {"read_as": list(self.written), "unread": list(self.unread), NUMBER_LABELS: self.numbers}
        return {key: value for key, value in found.items() if value}


class Read(NamedTuple):
    """A row that was read: the cursor after it, its example, and its cell of a column that was asked for."""

    cursor: Cursor
    example: Example
    value: Any


@dataclass(frozen=True)
class Part:
    """The examples of a part, keys of the cells of a column that was asked for, and how many each source gave."""

    examples: Sequence[Example]
    values: Keys | None
    sizes: list[int]


class DataReader:
    """Reads the parts of a data section. The first file read decides the format where the recipe names none."""

    def __init__(
        self,
        section: Data,
        task: Task,
        keep: Callable[[], Kept] = list,
        open_source: Callable[[str, str], Source] = read_source,
    ) -> None:
        if section.format is not None and not task.takes(section.format):
            taken, owners = (
                " or ".join(names) for names in ((f.name for f in task.formats), tasks_taking(section.format))
            )
            raise DataError(
                f"data.format {section.format} does not suit model.task {task.name}: it belongs to task {owners}, and "
                f"{task.name} needs format {taken}"
            )
        self.section, self.task, self.keep, self.open_source = section, task, keep, open_source
        self.facts: dict[str, dict[str, Any]] = {}
        self._optional_roles: tuple[frozenset[str], str] | None = None

    def expect_roles(self, roles: Iterable[str] | None) -> None:
        """Take the optional roles that the training rows of an earlier run had; None where that is not known."""
        if roles is not None:
            self._optional_roles = frozenset(roles), TRAINED_ON

    def describe_roles(self) -> dict[str, Any]:
        """Return for a report which roles that rows of the task may lack are in every row; nothing for other tasks."""
        if self._optional_roles is None or not any(one.optional - one.nullable for one in self.task.formats):
            return {}
        return {OPTIONAL_ROLES: sorted(self._optional_roles[0])}

    def read_part(
        self, part: Literal["train", "evaluation", "test"], column: str | None = None, part_default: str | None = None
    ) -> Part:
        """Return all examples of a part, and keys of a column's cells in its rows; `facts` gains what was skipped.

        Raises DataError with file, line and reason. With `data.on_error: skip` bad rows are counted instead, up to
        `data.allow_dropped` of all.
        """
        sources: Sources = getattr(self.section, part)
        tally, examples, sizes = Tally(), self.keep(), list[int]()
        values = None if column is None else Keys()
        for entry in list_sources(sources):
            source = self.open_source(entry.source, part_default or part)
            if isinstance(examples, list):
                refuse_too_large(source)
            before, rows = len(examples), tally.rows
            for one in self.read(source, wanted_columns(self.section, entry), tally, column=column):
                examples.append(one.example)
                if values is not None:
                    values.add(repr(one.value))
            if tally.rows == rows:
                raise DataError(_without_rows(source))
            sizes.append(len(examples) - before)
        self.judge(tally)
        if not len(examples):
            raise DataError(f"{describe_sources(sources)}: all of {tally.rows} rows are empty")
        self.facts[part] = tally.describe() | self.describe_roles()
        return Part(examples, values, sizes)

    def read(
        self, source: Source, wanted: Wanted, tally: Tally, after: Cursor = START, column: str | None = None
    ) -> Iterator[Read]:
        """Yield what is read of each row of a source; the tally counts rows that are empty or bad."""
        piece: Piece | None = None
        for cursor, row in source.rows(after):
            if piece is not source.pieces[cursor.piece]:
                piece = source.pieces[cursor.piece]
                header = read_header(piece)
                reader = self._open(header, wanted, tally)
                labels = _label_columns(reader, self.task)
                value = _find_value(column, header)
            tally.rows += 1
            try:
                if row.fault is not None:
                    raise ValueError(row.fault)
                if reader.is_empty(row.cells):
                    tally.empty += 1
                else:
                    refuse_foreign_row(reader.format, wanted, row.cells)
                    example = reader.read(row.cells)
                    tally.note_labels(column.cell(row.cells) for column in labels)
                    yield Read(cursor, example, value.cell(row.cells) if value else None)
            except ValueError as error:
                tally.add_fault(f"{source.place(cursor, row)}: {error}")

    def judge_dropped(self, tally: Tally, judged_rows: int) -> None:
        """Raise DataError where more examples than allowed have no supervised token."""
        if tally.dropped > self.section.allow_dropped * max(tally.rows, judged_rows):
            raise DataError(
                f"data.train: {tally.dropped:,} of {tally.rows:,} rows have no supervised token, more than"
                f" data.allow_dropped ({self.section.allow_dropped:g}); raise data.max_length or data.allow_dropped"
            )

    def _open(self, header: Header, wanted: Wanted, tally: Tally) -> Reader:
        choice = recognise(self.task.formats, self.section.format, header, wanted)
        self._settle(choice, tally)
        reader = open_reader(choice, header, wanted)
        self._refuse_other_roles(reader, header.name)
        tally.unread |= dict.fromkeys(name for name in header.columns if name not in reader.read_columns)
        return reader

    def _settle(self, choice: Choice, tally: Tally) -> None:
        """Keep the format that the first file has."""
        recognised = self.section.format is None and choice.format != self.task.formats[0]
        if recognised or choice.layout is not None:
            tally.written[choice.title] = None
        if self.section.format != choice.format.name:
            self.section = self.section.model_copy(update={"format": choice.format.name})

    def _refuse_other_roles(self, reader: Reader, name: str) -> None:
        """Raise DataError where a file has an optional column that another lacks, as the second of two texts."""
        roles, first = self._optional_roles or (reader.optional_roles, name)
        self._optional_roles = roles, first
        refuse_other_roles(roles, first, reader.optional_roles, name)

    def judge(self, tally: Tally, judged_rows: int = 0) -> None:
        """Raise DataError for bad rows; where they are skipped, for too many of `judged_rows` or more."""
        if not tally.bad:
            return
        others = f" ({tally.bad - 1:,} more of {tally.rows:,} rows are bad)" if tally.bad > 1 else ""
        if self.section.on_error == "stop":
            raise DataError(f"{tally.faults[0]}{others}; correct such rows, or set data.on_error: skip")
        if tally.bad > self.section.allow_dropped * max(tally.rows, judged_rows):
            raise DataError(
                f"{tally.faults[0]}; {tally.bad:,} of {tally.rows:,} rows are bad, more than data.allow_dropped"
                f" ({self.section.allow_dropped:g})"
            )


def _label_columns(reader: Reader, task: Task) -> list[Column]:
    """Return the columns that labels are read from as they are."""
    if not task.has_labels or not isinstance(reader, RowReader):
        return []
    return [reader.columns[role] for role in task.answer_roles if role in reader.columns]


def _are_whole(cell: Any) -> bool:
    """Return whether a cell of labels has whole numbers alone."""
    return all(type(one) is int for one in cell) if isinstance(cell, list | tuple) else type(cell) is int


def refuse_other_roles(roles: frozenset[str], first: str, found: frozenset[str], name: str) -> None:
    """Raise DataError where the file `name` has `found` as optional columns, and `first` has `roles`."""
    if roles == found:
        return
    missing, extra = roles - found, found - roles
    what = f"has {'no' if missing else 'a'} column for {listed(sorted(missing or extra))!r}"
    other = "has one" if missing else "has none"
    raise DataError(f"{name}: {what}, and {first} {other}; all files of a recipe need it, or none of them")


def refuse_too_large(source: Source) -> None:
    """Raise DataError for files that fill the memory where all rows are kept in it."""
    size = sum(piece.path.stat().st_size for piece in source.pieces if isinstance(piece, FilePiece) and piece.exists())
    if size < LARGE_BYTES:
        return
    from peftlab.world.hardware import available_host_bytes

    if size > (free := available_host_bytes()):
        raise DataError(
            f"{source.text}: has {size:,} bytes and {free:,} of memory are free; set data.streaming to true, or use a"
            " part of it"
        )


def read_header(piece: Piece) -> Header:
    """Return what a file looks like, from its header and its first rows."""
    rows = list(islice(piece.rows(), FIRST_ROWS))
    first = next((row.cells for row in rows if row.fault is None), None)
    if first is None and rows:
        raise DataError(f"{piece.place(rows[0].number)}: {rows[0].fault}")
    return Header(piece.name, piece.columns(), first or {})


def describe_sources(sources: Any) -> str:
    """Return how messages name the sources of a part; empty for rows that are held out."""
    names = [entry.source for entry in list_sources(sources)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def read_examples(source: Source | Table, section: Data, task: Task | None = None) -> list[Example]:
    """Return the examples of a source that is open already; of a task that has the section's format, or of `task`."""
    opened = source if isinstance(source, Source) else Source(source.name, [source])
    if task is None:
        task = TASKS[tasks_taking(find_format(section.format or "text").name)[0]]
    reader, tally = DataReader(section, task), Tally()
    examples = [one.example for one in reader.read(opened, wanted_columns(section, DataSource(source="-")), tally)]
    reader.judge(tally)
    if not examples:
        raise DataError(_without_rows(opened))
    return examples


def read_table(text: str) -> Table:
    """Return all rows of a source by column, null where a row has no such key. Raises DataError for a bad row."""
    source, rows = read_source(text, "train"), list[dict[str, Any]]()
    for cursor, row in source.rows():
        bad = [f"column {name!r} {cell.reason}" for name, cell in row.cells.items() if isinstance(cell, Unreadable)]
        if fault := row.fault or next(iter(bad), None):
            raise DataError(f"{source.place(cursor, row)}: {fault}")
        rows.append(row.cells)
    if not rows:
        raise DataError(_without_rows(source))
    names = dict.fromkeys(name for cells in rows for name in cells)
    return Table(text, {name: [cells.get(name) for cells in rows] for name in names})


def _find_value(column: str | None, header: Header) -> Column | None:
    if column is None:
        return None
    found = find_column(column, header.columns, header.first)
    if found is None:
        hint = f"{nearest(column, header.columns)}; its columns: {listed(header.columns)}"
        raise DataError(f"data.group_by: {header.name} has no column {column!r}{hint}")
    return found


def _without_rows(source: Source) -> str:
    if source.bounds != (None, None) and source.count:
        return f"{source.text}: selects none of {source.count} rows"
    return f"{source.text}: contains no rows"
