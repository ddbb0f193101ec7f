"""Rows that are read while training runs: shuffled in a buffer, mixed by weight, resumed at the exact row."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from peftlab.data.batches import Layout, deal_by_length
from peftlab.data.orders import SourceDraws
from peftlab.data.parts import DataReader, Read, Tally
from peftlab.data.row_reader import Wanted, wanted_columns
from peftlab.data.rows import Batch, Rows, ShuffledRows, StepCount
from peftlab.data.sources import START, Cursor, Source, read_source
from peftlab.data.token_rows import TokenRow
from peftlab.errors import DataError, StorageError
from peftlab.recipe.schema import list_sources
from peftlab.tables.files import FilePiece
from peftlab.tasks.formats import Example

BUFFER_ORDER = 8
# `allow_dropped` judges a stream from so many rows on, as one bad row among the first two says little.
JUDGED_ROWS = 1000
# The numbers of a step's rows are kept for so many steps, for a message about a loss that is not finite.
REMEMBERED_STEPS = 1000
# So many rows are read before training, for reports, plans and trials.
SAMPLE = 1000
LONGEST_ROWS = 64


Opened = tuple[Source, Wanted]


@dataclass
class Buffered:
    """The examples of `sources`, one source after another without an end, in a random order within a buffer of `size`.

    A buffer is filled, given in the order that seed, epoch and number of the buffer decide, and filled again; at the
    end it begins with the first source again. So where it stands is where its buffer begins (a source and a cursor),
    and how many examples it gave.
    """

    reader: DataReader
    sources: Sequence[Opened]
    tally: Tally
    seed: int
    number: int
    size: int
    epoch: int = 0
    buffer: int = 0
    begin: tuple[int, Cursor] = (0, START)
    taken: int = 0
    _rows: list[tuple[int, Example]] = field(default_factory=list)
    _reading: Iterator[tuple[int, Read]] | None = None
    _end: tuple[int, Cursor] = (0, START)

    def take(self) -> tuple[int, Example]:
        """Return the next example and the number of its row in its source, from 0. Raises DataError for a bad row."""
        while self._reading is None or self.taken == len(self._rows):
            self._fill()
        found = self._rows[self.taken]
        self.taken += 1
        return found

    def _fill(self) -> None:
        """Read the buffer that begins at `begin`, or the one after it where that one was given."""
        if self._reading is not None:
            self._move_on()
        if self._reading is None:
            self._reading = self._read()
        found = list(islice(self._reading, self.size))
        self.reader.judge(self.tally, JUDGED_ROWS)
        if not found and self.begin == (0, START):
            raise DataError(f"{self.sources[0][0].text}: contains no rows to train on")
        self._end = (found[-1][0], found[-1][1].cursor) if found else self.begin
        chance = np.random.Generator(
            np.random.PCG64(np.random.SeedSequence([BUFFER_ORDER, self.seed, self.number, self.epoch, self.buffer]))
        )
        ordered = (found[place][1] for place in chance.permutation(len(found)))
        self._rows = [(read.cursor.total - 1, read.example) for read in ordered]

    def _read(self) -> Iterator[tuple[int, Read]]:
        first, after = self.begin
        for number, (source, wanted) in enumerate(self.sources[first:], start=first):
            for read in self.reader.read(source, wanted, self.tally, after if number == first else START):
                yield number, read

    def _move_on(self) -> None:
        if len(self._rows) < self.size:
            self.epoch, self.buffer, self.begin, self._reading = self.epoch + 1, 0, (0, START), None
        else:
            self.buffer, self.begin = self.buffer + 1, self._end
        self.taken = 0

    def state(self) -> list[int]:
        return [self.epoch, self.buffer, self.begin[0], *self.begin[1], self.taken]

    def restore(self, state: Sequence[int]) -> None:
        self.epoch, self.buffer = state[:2]
        self.begin, self.taken = (state[2], Cursor(*state[3:6])), state[6]
        self._rows, self._reading = [], None


@dataclass(frozen=True)
class StreamedSources:
    """The sources of a recipe's training rows, open and not read, in groups that are drawn by weight.

    Without weights all sources are one group.
    """

    reader: DataReader
    groups: Sequence[Sequence[Opened]]
    weights: tuple[float, ...]

    @property
    def sources(self) -> list[Opened]:
        return [one for group in self.groups for one in group]

    @classmethod
    def open(cls, reader: DataReader) -> StreamedSources:
        """Open the sources of `data.train`. Raises DataError."""
        entries = list_sources(reader.section.train)
        opened = [
            (read_source(entry.source, "train", streaming=True), wanted_columns(reader.section, entry))
            for entry in entries
        ]
        weights = tuple(entry.weight for entry in entries if entry.weight is not None)
        return cls(reader, [[one] for one in opened], weights) if weights else cls(reader, [opened], (1.0,))

    def sample(self, tally: Tally) -> list[Example]:
        """Return the first examples of all sources, about `SAMPLE` of them. Raises DataError for bad rows."""
        share, found = -(-SAMPLE // len(self.sources)), list[Example]()
        for source, wanted in self.sources:
            read = list(islice(self.reader.read(source, wanted, tally), share))
            if not read:
                raise DataError(f"{source.text}: contains no rows to train on")
            found += [one.example for one in read]
        self.reader.judge(tally, JUDGED_ROWS)
        return found

    def labels(self, sample: Sequence[Example]) -> list[str] | None:
        """Return the classes of all rows, which are read for it; None for a task without classes."""
        task, known = self.reader.task, dict[str, Example]()
        if task.list_labels(sample) is None:
            return None
        for source, wanted in self.sources:
            for one in self.reader.read(source, wanted, Tally()):
                known |= {label: one.example for label in task.labels_of(one.example) if label not in known}
        return task.list_labels(list(known.values()))

    def fingerprint(self) -> str:
        """Return what identifies the sources without reading them: the sizes of their files, else their names."""
        sizes = [
            [piece.path.stat().st_size if isinstance(piece, FilePiece) else piece.name for piece in source.pieces]
            for source, _ in self.sources
        ]
        return repr(sizes)


@dataclass(frozen=True)
class Stream:
    """What a recipe streams: its sources, and the function that makes rows of one example.

    `sample` are the first rows, of which reports and plans are made; no row is longer than `longest` tokens, and no
    answer beside an encoder longer than `longest_answer`.
    """

    opened: StreamedSources
    tokenise: Callable[[Example], list[TokenRow]]
    sample: Sequence[TokenRow]
    longest: int
    longest_answer: int

    def longest_rows(self) -> list[TokenRow]:
        """Return rows as long as any row of the stream can be: those of the sample, repeated to that length."""
        return [row.lengthened(self.longest, self.longest_answer) for row in self.sample[:LONGEST_ROWS]]


class StreamedRows:
    """The rows of a stream in the order of its buffers. Steps have to be taken in order, from 1 or a restored one.

    Every process reads and tokenises all rows and takes its own: so a step has the same rows with any number of
    processes, and its targets are known without communication. Which rows remain is known only after tokenising.
    """

    def __init__(
        self,
        stream: Stream,
        layout: Layout,
        batch_size: int,
        accumulation: int,
        process: int,
        processes: int,
        seed: int,
    ) -> None:
        self.stream, self.layout, self.seed = stream, layout, seed
        self.batch_size, self.accumulation, self.process, self.processes = batch_size, accumulation, process, processes
        self.tally = Tally()
        self._lock = threading.Lock()  # a step is counted in one thread while the next one is collated in another
        self._restart()

    def _restart(self) -> None:
        opened = self.stream.opened
        self._sources = [
            Buffered(opened.reader, group, self.tally, self.seed, number, self.buffer)
            for number, group in enumerate(opened.groups)
        ]
        self._draws = SourceDraws(opened.weights, self.seed)
        self._drawn, self._last, self._first = 0, 0, 1
        self._left: deque[tuple[int, TokenRow]] = deque()
        self._used, self._before = 0, self._places()
        self._steps: dict[int, list[tuple[int, TokenRow]]] = {}
        self._numbers: dict[int, list[list[int]]] = {}
        self._states: dict[int, dict[str, Any]] = {0: self._state()}

    @property
    def per_step(self) -> int:
        return self.batch_size * self.accumulation * self.processes

    def batches(self, step: int) -> list[Batch]:
        rows = self._rows(step)
        return [self.layout.batch([rows[place][1] for place in micro]) for micro in self._micro_batches(rows)]

    def count(self, step: int) -> StepCount:
        rows = [row for _, row in self._rows(step)]
        return StepCount(sum(row.supervised for row in rows), sum(len(row.tokens) for row in rows))

    def numbers(self, step: int) -> list[list[int]]:
        """Return the rows of the sources that each micro-batch has; none for a step long before the last one."""
        return self._numbers.get(step) or [[] for _ in range(self.accumulation)]

    def longest(self) -> Rows:
        rows = self.stream.longest_rows()
        plain = ShuffledRows(
            rows, self.layout, self.batch_size, self.accumulation, self.process, self.processes, self.seed
        )
        return plain.longest()

    @property
    def buffer(self) -> int:
        return self.stream.opened.reader.section.shuffle_buffer

    def state(self, step: int) -> dict[str, Any]:
        with self._lock:
            return self._states[step]

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put a state back: the next step takes the next rows, however many those before it had."""
        mine = self._identity()
        if any(state.get(key) != value for key, value in mine.items()):
            other = {key: state.get(key) for key in mine}
            raise StorageError(f"the checkpoint was written with another order of rows: {other}, here {mine}")
        with self._lock:
            self._restart()
            self._put_back(state)

    def _put_back(self, state: Mapping[str, Any]) -> None:
        self._last, self._first, self._drawn = state["step"], state["step"] + 1, state["drawn"]
        for source, place in zip(self._sources, state["places"], strict=True):
            source.restore(place)
        self._before, self._used = self._places(), 0
        for _ in range(state["used"]):
            self._next_row()
        self._states = {state["step"]: self._state()}

    def _identity(self) -> dict[str, Any]:
        return {
            "order": "streamed",
            "seed": self.seed,
            "buffer": self.buffer,
            "weights": list(self.stream.opened.weights),
        }

    def _state(self) -> dict[str, Any]:
        drawn, places = self._before
        return self._identity() | {"step": self._last, "drawn": drawn, "places": places, "used": self._used}

    def _places(self) -> tuple[int, list[list[int]]]:
        return self._drawn, [source.state() for source in self._sources]

    def _micro_batches(self, rows: Sequence[tuple[int, TokenRow]]) -> list[list[int]]:
        """Return which of a step's rows each micro-batch of this process has."""

        def length(place: int) -> int:
            return len(rows[place][1].input_ids)

        places = iter(range(len(rows)))
        step_rows = [
            [list(islice(places, self.batch_size)) for _ in range(self.processes)] for _ in range(self.accumulation)
        ]
        return self.layout.regroup([micro[self.process] for micro in deal_by_length(step_rows, length)], length)

    def _rows(self, step: int) -> list[tuple[int, TokenRow]]:
        with self._lock:
            if step < self._first or (step <= self._last and step not in self._steps):
                raise ValueError(f"step {step} of a stream was taken already; it is at step {self._last}")
            while self._last < step:
                self._take_step()
            return self._steps[step]

    def _take_step(self) -> None:
        rows = [self._next_row() for _ in range(self.per_step)]
        self._last += 1
        self._steps[self._last] = rows
        self._numbers[self._last] = [[rows[place][0] for place in micro] for micro in self._micro_batches(rows)]
        self._states[self._last] = self._state()
        for kept, length in ((self._steps, 3), (self._states, 4), (self._numbers, REMEMBERED_STEPS)):
            kept.pop(self._last - length, None)

    def _next_row(self) -> tuple[int, TokenRow]:
        """Return the next row; examples without a supervised token are counted and skipped."""
        while not self._left:
            self._before, self._used = self._places(), 0
            source = self._draws.draw(self._drawn)[0] if len(self._sources) > 1 else 0
            self._drawn += 1
            number, example = self._sources[source].take()
            rows = self.stream.tokenise(example)
            self.tally.dropped += not rows
            self.stream.opened.reader.judge_dropped(self.tally, JUDGED_ROWS)
            self._left.extend((number, row) for row in rows)
        self._used += 1
        return self._left.popleft()
