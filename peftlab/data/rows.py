"""Which rows each optimiser step takes, on every process, and their batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from peftlab.data.batches import Layout, deal_by_length
from peftlab.data.orders import Order, Shuffled
from peftlab.data.token_arrays import sizes_of
from peftlab.data.token_rows import TokenRow
from peftlab.errors import StorageError

Batch = dict[str, torch.Tensor]


class StepCount(NamedTuple):
    """What a whole step has on all processes: targets, which its loss is a mean over, and tokens."""

    targets: int
    tokens: int


class Rows(Protocol):
    """The rows of a training: what each step takes. Steps count from 1."""

    @property
    def per_step(self) -> int:
        """Rows of one step on all processes."""

    def batches(self, step: int) -> list[Batch]:
        """Return the micro-batches of this process, on the CPU."""

    def count(self, step: int) -> StepCount:
        """Return the targets and tokens of the step on all processes, without communication."""

    def numbers(self, step: int) -> list[list[int]]:
        """Return which training rows each micro-batch of this process has."""

    def longest(self) -> Rows:
        """Return rows of which every step takes the longest ones, in at most two micro-batches a process."""

    def state(self, step: int) -> dict[str, Any]:
        """Return what a run that resumes after `step`, the last one taken, needs to take the same rows.

        It is of plain values.
        """

    def restore(self, state: dict[str, Any]) -> None:
        """Put a state back. Raises StorageError if it belongs to other rows."""


@dataclass
class ShuffledRows:
    """Rows in a random order, by default a new one each epoch: a function of seed, step, micro-batch and process.

    `rows` are all tokenised training rows; every process has all of them, so that the number of targets of a
    step on all processes is known without communication.
    """

    rows: Sequence[TokenRow]
    layout: Layout
    batch_size: int
    accumulation: int
    process: int
    processes: int
    seed: int
    order: Order | None = None
    ahead: int = 0
    """By how many rows the steps that a resumed run has done had more than as many steps have here."""

    def __post_init__(self) -> None:
        self.order = self.order or Shuffled(self.seed, len(self.rows))

    @property
    def per_step(self) -> int:
        return self.batch_size * self.accumulation * self.processes

    def batches(self, step: int) -> list[Batch]:
        return [self.layout.batch([self.rows[i] for i in numbers]) for numbers in self.numbers(step)]

    def count(self, step: int) -> StepCount:
        micros = ((micro, process) for micro in range(self.accumulation) for process in range(self.processes))
        rows = [self.rows[i] for micro, process in micros for i in self.indices(step, micro, process)]
        return StepCount(sum(row.supervised for row in rows), sum(len(row.tokens) for row in rows))

    def numbers(self, step: int) -> list[list[int]]:
        def length(number: int) -> int:
            return len(self.rows[number].input_ids)

        step_rows = [
            [self.indices(step, micro, process) for process in range(self.processes)]
            for micro in range(self.accumulation)
        ]
        return self.layout.regroup([micro[self.process] for micro in deal_by_length(step_rows, length)], length)

    def indices(self, step: int, micro: int, process: int) -> list[int]:
        """Return the rows of one micro-batch of one process, as the order has them, before they are dealt by length.

        A step has the same rows however it is split.
        """
        assert self.order is not None, "set when it was made"
        first = (((step - 1) * self.accumulation + micro) * self.processes + process) * self.batch_size + self.ahead
        return [self.order.row(first + offset) for offset in range(self.batch_size)]

    def longest(self) -> LongestRows:
        micro_batches = min(self.accumulation, 2)
        padded = self.batch_size if self.layout.pads else 0
        chosen = longest_rows(self.rows, self.batch_size * micro_batches, padded)
        return LongestRows(chosen, self.layout, self.batch_size, self.processes)

    def state(self, step: int = 0) -> dict[str, Any]:
        assert self.order is not None, "set when it was made"
        return self.order.state() | {"step": step, "taken": step * self.per_step + self.ahead}

    def restore(self, state: dict[str, Any]) -> None:
        """Put a state back: the next step takes the next rows, however many those before it had."""
        assert self.order is not None, "set when it was made"
        mine, saved = self.order.state(), dict(state)
        step, taken = saved.pop("step", 0), saved.pop("taken", 0)  # version 0.1.0 wrote neither
        if saved != mine:
            raise StorageError(f"the checkpoint was written with another order of rows: {saved}, here {mine}")
        self.ahead = taken - step * self.per_step


@dataclass
class LongestRows:
    """Steps that need the most memory which a step can need, whatever order a seed gives the rows.

    Every process has the longest batch in its last micro-batch, when the gradients of the one before are there.
    """

    rows: Sequence[TokenRow]
    layout: Layout
    batch_size: int
    processes: int

    @property
    def per_step(self) -> int:
        return len(self.rows) * self.processes

    def batches(self, step: int) -> list[Batch]:
        return [self.layout.batch([self.rows[i] for i in numbers]) for numbers in self.numbers(step)]

    def count(self, step: int) -> StepCount:
        targets, tokens = (sum(row.supervised for row in self.rows), sum(len(row.input_ids) for row in self.rows))
        return StepCount(targets * self.processes, tokens * self.processes)

    def numbers(self, step: int) -> list[list[int]]:
        numbers, size = list(range(len(self.rows))), self.batch_size
        return [numbers[start : start + size] for start in range(0, len(numbers), size)][::-1]

    def longest(self) -> LongestRows:
        return self

    def state(self, step: int = 0) -> dict[str, Any]:
        return {"order": "longest", "rows": len(self.rows)}

    def restore(self, state: dict[str, Any]) -> None:
        if state != self.state():
            raise StorageError(f"the checkpoint was written with another order of rows: {state}, here {self.state()}")


def longest_rows(rows: Sequence[TokenRow], count: int, padded: int = 0) -> list[TokenRow]:
    """Return `count` rows that need at least what any `count` of `rows` do, repeated from the first if there are fewer.

    The first is as long as any, has as long an answer and as many targets as any, though no row may have all of it; the
    second has what comes second of each, and so on. With `padded`, so many rows are a batch with one width: where rows
    differ in length, each has padding, as its mask costs more than a token.
    """
    sizes = sizes_of(rows)
    ordered = np.lexsort((-sizes.supervised, -sizes.tokens))[:count].tolist()
    largest = (np.sort(-one)[:count].tolist() for one in (sizes.inputs, sizes.answers, sizes.supervised))
    chosen = [_resized(rows[i], *(-size for size in own)) for i, *own in zip(ordered, *largest, strict=True)]
    repeated = [chosen[i % len(chosen)] for i in range(count)]
    differ = len(sizes.inputs) > 0 and sizes.inputs.min() < sizes.inputs.max()
    return _with_padding(repeated, padded) if padded > 1 and differ else repeated


def _resized(row: TokenRow, inputs: int, answer: int, supervised: int) -> TokenRow:
    if (len(row.input_ids), row.answer) != (inputs, answer):
        row = row.lengthened(inputs, answer)
    return row if row.supervised == supervised else row.with_targets(supervised)


def _with_padding(rows: list[TokenRow], size: int) -> list[TokenRow]:
    """Return the rows of batches of `size`, of which one that has rows of one length has its last a token shorter."""
    found: list[TokenRow] = []
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        last = batch[-1]
        if len(batch) > 1 and {len(row.input_ids) for row in batch} == {len(last.input_ids)}:
            batch[-1] = _resized(last, len(last.input_ids) - 1, last.answer, last.supervised)
        found += batch
    return found


class BatchesAhead:
    """Collates the next step's batches in a thread while the present step computes.

    `stage` is applied to each batch there (pinning, for a CUDA device). Steps must be taken in order.
    """

    def __init__(self, rows: Rows, last_step: int, stage: Callable[[Batch], Batch]):
        self.rows, self.last_step, self.stage = rows, last_step, stage
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="collate")
        self._next: tuple[int, Future[list[Batch]]] | None = None

    def __enter__(self) -> BatchesAhead:
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self, step: int) -> list[Batch]:
        """Return the batches of `step`, and begin those of the next one."""
        if self._next is not None and self._next[0] == step:
            batches = self._next[1].result()
        else:
            batches = self._collate(step)
        self._next = (step + 1, self._pool.submit(self._collate, step + 1)) if step < self.last_step else None
        return batches

    def _collate(self, step: int) -> list[Batch]:
        return [self.stage(batch) for batch in self.rows.batches(step)]
