"""Predictions for the rows of a file, as rows: in constant memory, and resumable where they are written to a file."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from peftlab.data.parts import read_header
from peftlab.data.row_reader import Header
from peftlab.data.sources import Piece, read_source
from peftlab.errors import DataError, StorageError, UsageError
from peftlab.files import decode_json, refuse_output_file, why, write_atomically
from peftlab.runs.digests import read_digests
from peftlab.runs.launch import launched
from peftlab.runs.predict_rows import Predicted, Predictor, open_predictor
from peftlab.runs.use import open_run
from peftlab.tables.files import FilePiece
from peftlab.tables.row import Row, Unreadable
from peftlab.tables.text_files import read_json_lines
from peftlab.world.open import open_world
from peftlab.world.quiet import quiet_libraries

STANDARD = "-"
# Batches of one chunk: its rows are sorted by length, predicted and written together.
BATCHES = 16
NAME = "prediction"
PROGRESS = ".progress"


@dataclass(frozen=True)
class PredictionReport:
    """How many rows were predicted, of them before this call, and how many have an error instead; the first one.

    Rows and errors are those of the whole output, also where an earlier call wrote a part of it; `notes` are on the
    rows of this call.
    """

    rows: int
    resumed: int = 0
    errors: int = 0
    first_error: str | None = None
    notes: tuple[str, ...] = ()


class Numbered(NamedTuple):
    """A row of the input, its place for messages, and the piece that it is in."""

    piece: Piece
    row: Row

    @property
    def place(self) -> str:
        return self.piece.place(self.row.number)


def predict(
    folder: Path,
    source: str,
    output: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    name: str = NAME,
    resume: bool = False,
    overwrite: bool = False,
    verify: bool = True,
) -> PredictionReport:
    """Write each row of `source` with what a run predicts for it, as JSON lines in their order.

    `source` is what `data` reads, or `-` for JSON lines on standard input; without `output` rows go to standard
    output. A row keeps its columns and gains `name` and columns whose names begin with it; one that cannot be used
    gains `name` null and an error. `resume` continues a file that an earlier call began. Raises StorageError where
    the file exists, or was begun with other settings.
    """
    quiet_libraries()
    directory, recipe = open_run(folder, overrides, verify)
    world = open_world(recipe.run.device)
    if world.processes > 1:
        raise UsageError("predict runs in one process; start it without a launcher")
    digests = read_digests(folder)
    weights = sorted(str(one) for path, one in digests.files.items() if path.startswith("weights/")) if digests else []
    facts = {"source": describe_source(source), "overrides": list(overrides), "name": name, "weights": weights}
    if output is not None:
        refuse_output_file(output, files_of(source))
    rows = read_rows(source)
    with launched(world), open_output(output, facts, resume, overwrite) as sink:
        predictor = open_predictor(directory, recipe, world)
        return _write_all(islice(rows, sink.rows, None), predictor, sink, name)


def _write_all(rows: Iterator[Numbered], predictor: Predictor, sink: Sink, name: str) -> PredictionReport:
    before = sink.rows
    opened: Piece | None = None
    while chunk := list(islice(rows, predictor.batch_size * BATCHES)):
        for run in _by_piece(chunk):
            if run[0].piece is not opened:
                opened = run[0].piece
                predictor.open(_header(opened, run[0].row))
            found = predict_chunk(run, predictor)
            wrong = [f"{one.place}: {answer.error}" for one, answer in zip(run, found, strict=True) if answer.error]
            sink.write([join(one.row, answer, name) for one, answer in zip(run, found, strict=True)], wrong)
    if sink.rows == 0:
        raise DataError("no rows to predict")
    notes = (predictor.note_long(),) if predictor.long else ()
    return PredictionReport(sink.rows, before, sink.errors, sink.first_error, notes)


def predict_chunk(rows: Sequence[Numbered], predictor: Predictor) -> list[Predicted]:
    """Return what is predicted for each row; an error for one that cannot be read."""
    good = iter(predictor.predict([one.row.cells for one in rows if one.row.fault is None]))
    return [next(good) if one.row.fault is None else Predicted({}, one.row.fault) for one in rows]


def join(row: Row, found: Predicted, name: str) -> dict[str, Any]:
    """Return a row with what was predicted. Raises DataError where it has such a column already."""
    cells = {key: None if isinstance(value, Unreadable) else value for key, value in row.cells.items()}
    added: dict[str, Any] = {f"{name}{ending}": value for ending, value in found.columns.items()}
    if found.error is not None:
        added = {name: None, f"{name}_error": found.error}
    if taken := cells.keys() & added.keys():
        raise DataError(f"the rows have a column {min(taken)!r} already; name another one with --name")
    return {**cells, **added}


def _by_piece(rows: Sequence[Numbered]) -> Iterator[list[Numbered]]:
    run: list[Numbered] = []
    for row in rows:
        if run and run[-1].piece is not row.piece:
            yield run
            run = []
        run.append(row)
    if run:
        yield run


def _header(piece: Piece, first: Row) -> Header:
    if isinstance(piece, StandardInput):
        return Header(piece.name, list(first.cells), first.cells)
    return read_header(piece)


@dataclass(frozen=True)
class StandardInput:
    """The JSON lines of standard input, which can be read once."""

    file: BinaryIO
    name: str = "standard input"

    def place(self, number: int) -> str:
        return f"{self.name}:{number}"

    def rows(self, skip: int = 0) -> Iterator[Row]:
        return read_json_lines(self.file, Path(self.name), skip)

    def columns(self) -> list[str]:
        return []

    def files(self) -> list[Path]:
        return []

    def digest(self) -> None:
        return None


def read_rows(source: str) -> Iterator[Numbered]:
    """Yield the rows of a source, or of standard input. Raises DataError where it cannot be read, at once."""
    if source == STANDARD:
        piece: Piece = StandardInput(sys.stdin.buffer)
        found = (Numbered(piece, row) for row in piece.rows())
    else:
        opened = read_source(source, "test")
        found = (Numbered(opened.pieces[cursor.piece], row) for cursor, row in opened.rows())
    first = next(found, None)
    if first is None:
        raise DataError(f"{'standard input' if source == STANDARD else source}: contains no rows")
    return chain([first], found)


def files_of(source: str) -> list[Path]:
    """Return the files of this machine in which the rows are."""
    if source == STANDARD:
        return []
    pieces = read_source(source, "test").pieces
    return [piece.path for piece in pieces if isinstance(piece, FilePiece) and piece.exists()]


def describe_source(source: str) -> list[Any]:
    """Return what a source is known by when a call resumes: its name, and the sizes of its files."""
    return [source, *(path.stat().st_size for path in files_of(source))]


class Sink:
    """Where rows are written: standard output, or a file beside which `FILE.progress` says how much of it counts.

    The file is opened, and an earlier one of its name replaced, when there are rows to write.
    """

    def __init__(self, open_file: Callable[[], BinaryIO], progress: Path | None, facts: dict[str, Any]) -> None:
        self._open_file, self._progress, self._facts = open_file, progress, facts
        self._file: BinaryIO | None = None
        self.rows, self.errors = 0, 0
        self.first_error: str | None = None

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._progress is not None:
            with suppress(OSError) if kind is not None else nullcontext():  # the first error is reported
                if self._file is not None:
                    self._file.close()
            if kind is None:
                self._progress.unlink(missing_ok=True)

    def write(self, rows: Sequence[dict[str, Any]], wrong: Sequence[str] = ()) -> None:
        """Write rows, and then the note that they are there: what a killed call wrote after it is written again.

        `wrong` has a line for each of them that has an error. Raises StorageError for a file that cannot be written.
        """
        try:
            self._write(rows, wrong)
        except OSError as error:
            if self._progress is None:  # a pipe that its reader has closed
                raise
            advice = "; when that is mended, --resume continues it"
            raise StorageError(f"{error.filename or self._name}: cannot be written: {why(error)}{advice}") from None

    @property
    def _name(self) -> str:
        return str(self._progress).removesuffix(PROGRESS)

    def _write(self, rows: Sequence[dict[str, Any]], wrong: Sequence[str]) -> None:
        file = self._file or self._open()
        for row in rows:
            file.write(encode_row(row) + b"\n")
        file.flush()
        self.rows, self.errors = self.rows + len(rows), self.errors + len(wrong)
        self.first_error = self.first_error or next(iter(wrong), None)
        if self._progress is not None:
            os.fsync(file.fileno())
            self._note(self._progress, file.tell())

    def _open(self) -> BinaryIO:
        if self._progress is not None and not self.rows:
            self._note(self._progress, 0)  # first: --resume never takes a file for complete that a kill left empty
        self._file = self._open_file()
        return self._file

    def _note(self, path: Path, size: int) -> None:
        counts = {"rows": self.rows, "errors": self.errors, "first_error": self.first_error}
        write_atomically(path, json.dumps({**counts, "bytes": size, **self._facts}) + "\n")


def encode_row(row: dict[str, Any]) -> bytes:
    """Return a row as a line of JSON, which has no number that is not finite: it is null."""
    try:
        text = json.dumps(row, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        text = json.dumps(without_nan(row), ensure_ascii=False, default=str)
    return text.encode(errors="backslashreplace")


def without_nan(value: Any) -> Any:
    """Return a value of JSON with null for every number that is not finite."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def open_output(path: Path | None, facts: dict[str, Any], resume: bool, overwrite: bool) -> Any:
    """Return a context of the sink. Raises StorageError for a file that may not be written."""
    if path is None:
        if resume:
            raise UsageError("--resume needs the --output that it should continue")
        return nullcontext(Sink(lambda: sys.stdout.buffer, None, facts))
    progress = path.with_name(f"{path.name}{PROGRESS}")
    try:
        if resume:
            return _reopen(path, progress, facts)
        if path.exists() and not overwrite:
            ways = "--resume continues it, " if progress.exists() else ""
            raise StorageError(f"{path} exists already; {ways}--overwrite replaces it")
        return Sink(lambda: path.open("wb"), progress, facts)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {why(error)}") from None


def _reopen(path: Path, progress: Path, facts: dict[str, Any]) -> Sink:
    """Return the sink of an interrupted call, without what it wrote after its last note."""
    if not progress.exists():
        state = "is complete" if path.exists() else "does not exist"
        raise StorageError(f"{path} {state}, so there is nothing to resume; remove --resume")
    try:
        note = decode_json(progress.read_bytes())
        rows, size = int(note.pop("rows")), int(note.pop("bytes"))
        errors, first_error = int(note.pop("errors", 0)), note.pop("first_error", None)  # earlier versions wrote none
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StorageError(f"{progress}: is damaged; --overwrite begins again") from None
    if changed := sorted(key for key in facts if note.get(key) != facts[key]):
        raise StorageError(f"{path}: was begun with another {changed[0]}; --overwrite begins again")
    if not path.exists() or path.stat().st_size < size:
        raise StorageError(f"{path}: has lost rows that were written; --overwrite begins again")
    sink = Sink(lambda: _open_after(path, size), progress, facts)
    sink.rows, sink.errors, sink.first_error = rows, errors, first_error
    return sink


def _open_after(path: Path, size: int) -> BinaryIO:
    """Return a file opened to write after its first `size` bytes, cut there."""
    file = path.open("r+b")
    file.truncate(size)
    file.seek(size)
    return file
