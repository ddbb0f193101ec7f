"""One training run in miniature, on fake tensors: two optimiser steps, an evaluation, an answer, for the ledger."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from peftlab.data.batches import PackedBatch, RowGroup
from peftlab.data.token_rows import LINE, LINE_POSITIONS, TARGETS, BatchSize
from peftlab.memory.allocator import slack_bytes
from peftlab.memory.constants import ALLOCATION_ROUNDING
from peftlab.memory.depth import LayerPlace, Segments, Stack
from peftlab.memory.fakes import FakeModel
from peftlab.memory.generation import Answers, write_last_token
from peftlab.memory.ledger import Ledger
from peftlab.memory.private import active_mode, cuda_scratch, in_backward, tensors_in
from peftlab.optimization.average import keep_average
from peftlab.optimization.in_backward import InBackward
from peftlab.optimization.step import Stepper, optimizer_step
from peftlab.optimizers import AdamW, Optimizer
from peftlab.parameters.trainable import find_base, find_body
from peftlab.recipe.speed import Speed
from peftlab.speed.loss import loss_of
from peftlab.tasks import DEFAULT_TASK, TASKS, Task
from peftlab.world.cuda_rules import cuda_rules
from peftlab.world.single import Single


@dataclass(frozen=True)
class Workload:
    """What goes through the model: the longest batch of training and of evaluation.

    `rows` of `length` tokens are padded to it, or lie end to end in one line where `packed`, in these `groups`.
    `supervised` is the share of tokens that the loss is computed on (in evaluation the same, unless it is given),
    `outputs` the number of the head's outputs, `answer_length` the longest answer of a decoder that has an encoder
    beside it, `padded` whether rows differ in length. Without evaluation rows nothing
    is evaluated, without answers nothing is generated.
    """

    rows: int
    length: int
    evaluation_rows: int
    evaluation_length: int
    task: Task = TASKS[DEFAULT_TASK]
    supervised: float = 1.0
    evaluation_supervised: float | None = None
    outputs: int = 1
    answer_length: int = 0
    evaluation_answer_length: int = 0
    padded: bool = True
    packed: bool = False
    groups: tuple[RowGroup, ...] = ()
    micro_batches: int = 1
    precision: torch.dtype = torch.float32
    optimizer: Optimizer = AdamW()
    average: float | None = None
    cuda: bool = False
    answers: Answers | None = None
    speed: Speed = Speed()
    in_backward: bool = False

    @property
    def evaluation_share(self) -> float:
        return self.supervised if self.evaluation_supervised is None else self.evaluation_supervised

    def training_batch(self) -> dict[str, torch.Tensor]:
        if not self.packed:
            return self._batch(BatchSize(self.rows, self.length, self.supervised, self.outputs, self.answer_length))
        groups = self.groups or (RowGroup(self.length, self.rows),)
        tokens = sum(length * rows for length, rows in groups)
        if self.task.row_class.pooled:
            rows, longest = sum(one.rows for one in groups), max(one.length for one in groups)
            packed = PackedBatch(self._batch(BatchSize(rows, longest, self.supervised, self.outputs)))
            packed |= {LINE: torch.empty(tokens, dtype=torch.int64)}
            packed |= {LINE_POSITIONS: torch.empty(1, tokens, dtype=torch.int64)}
        else:
            size = BatchSize(1, tokens, self.supervised, self.outputs)
            packed = PackedBatch(self._batch(size, ("input_ids", "position_ids")))
        packed.groups = groups
        return packed

    def evaluation_batch(self) -> dict[str, torch.Tensor]:
        sizes = self.evaluation_rows, self.evaluation_length, self.evaluation_share
        return self._batch(BatchSize(*sizes, self.outputs, self.evaluation_answer_length))

    def _batch(
        self, size: BatchSize, inputs: Sequence[str] = ("input_ids", "attention_mask")
    ) -> dict[str, torch.Tensor]:
        row_class = self.task.row_class
        sizes: dict[str, tuple[int, ...]] = dict.fromkeys(inputs, (size.rows, size.width))
        sizes |= row_class.target_sizes(size)
        types = dict.fromkeys(sizes, torch.int64) | {TARGETS: getattr(torch, row_class.target_type)}
        return {name: torch.empty(shape, dtype=types[name]) for name, shape in sizes.items()}


@dataclass(frozen=True)
class Trace:
    """Segments in full depth, keyed (phase, pass through the model, place, ...).

    The one under ("state",) ends with what lives before the first phase.
    `slack` is what CUDA's allocator would keep beyond the traced peak, for each byte that is not a weight.
    """

    segments: Segments
    slack: float = 0.0


def trace_whole(fake: FakeModel, work: Workload, takes_gradients: bool = False) -> Trace:
    """Return the trace of a run of a model with its method; of equal layers only a few are run.

    `takes_gradients` says that no gradient remains after a backward pass, but for a step's last one.
    Raises UnpredictableError where the model cannot run on fake tensors, UnmeasuredError where only generation cannot.
    """
    stack = Stack(fake.model)
    try:
        with fake.running(work.padded), cuda_rules(_watched) if work.cuda else contextlib.nullcontext():
            base, ledger = _trace(fake.model, work, stack, None, takes_gradients)
            longer = {run: _trace(fake.model, work, stack, run, takes_gradients)[0] for run in stack.long_runs}
    finally:
        stack.restore()
    return Trace(stack.extend(base, longer), _slack(base, ledger) if work.cuda else 0.0)


def _watched() -> bool:
    """Whether a ledger sees this call: within an operation (its formula for fake tensors) autocast is done already."""
    return isinstance(active_mode(), Ledger)


def _slack(segments: Segments, ledger: Ledger) -> float:
    weights = segments[("state",)][:, -1].sum()
    passing = max(part.sum(0).max() for part in segments.values()) - weights
    return slack_bytes(ledger.events()) / max(int(passing), 1)


def _trace(
    model: nn.Module, work: Workload, stack: Stack, longer: int | None, takes_gradients: bool
) -> tuple[Segments, Ledger]:
    kept = stack.keep(longer)
    ledger = Ledger(ALLOCATION_ROUNDING, scratch=cuda_scratch) if work.cuda else Ledger()
    parts = _stepper(model, work)
    with ledger.watch(model, parts.optimizer), _marking(model, kept, ledger) as marker, _updates(parts), ledger:
        ledger.mark(("state",))
        ledger.adopt(model)
        if takes_gradients:
            parts.world = TakingWorld(lambda: _take_gradients(parts.optimizer, ledger, marker))
        for phase in ("first_step", "steady_step"):
            marker.enter(phase)
            model.train()
            _step(parts, work, marker)
        model.eval()
        if work.evaluation_rows:
            marker.enter("evaluation")
            _evaluate(parts, work)
        if work.answers is not None:
            marker.enter("generation")
            _generate(parts, work.answers, marker)
    return _by_place(ledger.segments()), ledger


@contextlib.contextmanager
def _updates(parts: Stepper) -> Iterator[None]:
    """Leave the model's parameters without the hooks of updates in the backward pass."""
    try:
        yield
    finally:
        if parts.in_backward is not None:
            parts.in_backward.remove()


class TracedWorld(Single):
    """One process on the CPU, where fake tensors are."""

    def __init__(self):
        self.device, self.process, self.processes, self.notes = torch.device("cpu"), 0, 1, ()


class TakingWorld(TracedWorld):
    """One that calls `take` after each backward pass but a step's last one."""

    def __init__(self, take: Callable[[], object]):
        super().__init__()
        self._take = take

    @contextlib.contextmanager
    def accumulating(self, model: nn.Module) -> Iterator[None]:
        yield
        self._take()


def _take_gradients(optimizer: torch.optim.Optimizer, ledger: Ledger, marker: _Marker) -> None:
    """Free the gradients in a segment of their own: as many events as there are layers would be in another one."""
    ledger.adopt_gradients(optimizer)
    marker.mark("taking")
    optimizer.zero_grad(set_to_none=True)


def _stepper(model: nn.Module, work: Workload) -> Stepper:
    """Return the parts of the run's own step, with an optimiser that fake tensors can go through."""
    trained = [p for p in model.parameters() if p.requires_grad]
    # Two groups, as in training: with and without weight decay.
    groups = [[p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]]
    device = "cuda" if work.cuda else "cpu"
    optimizer = work.optimizer.plan([{"params": group} for group in groups if group], device)
    if work.average is not None:
        keep_average(optimizer, work.average)
    return Stepper(
        world=TracedWorld(),
        model=model,
        loss=loss_of(work.task, work.speed, model, device),
        optimizer=optimizer,
        in_backward=InBackward(optimizer, checks=False) if work.in_backward else None,
        precision=work.precision,
        clip=1.0,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        foreach=work.cuda or None,
    )


def _by_place(segments: Segments) -> Segments:
    """Return the segments with one key for each place that a layer has."""
    found: Segments = {}
    for key, part in segments.items():
        if isinstance(key[-1], LayerPlace):
            found |= {(*key[:-1], key[-1].run, index): part for index in key[-1].places}
        else:
            found[key] = part
    return found


def _step(parts: Stepper, work: Workload, marker: _Marker) -> None:
    batches = [work.training_batch() for _ in range(work.micro_batches)]
    targets = sum(batch[TARGETS].shape[0] for batch in batches)
    optimizer_step(parts, batches, targets, mark=marker.mark)


def _evaluate(parts: Stepper, work: Workload) -> None:
    """Do what evaluation does with two batches: the first one's losses live while the second's are computed."""
    batch = work.evaluation_batch()
    targets, rows = batch[TARGETS].shape[0], work.evaluation_rows
    counts = [targets // rows + (row < targets % rows) for row in range(rows)]
    with torch.no_grad(), parts.world.autocast(parts.precision):
        for _ in range(2):
            scored = parts.loss.rows(parts.model, batch, counts)
    del scored


def _generate(parts: Stepper, answers: Answers, marker: _Marker) -> None:
    ids, mask = (torch.empty(answers.rows, answers.length, dtype=torch.int64) for _ in range(2))
    with parts.world.autocast(parts.precision):
        write_last_token(parts.model, ids, mask, answers, marker.mark)


class _Marker:
    """Marks the places of a step in a ledger: embedding, each layer forward and backward, head, loss, optimiser.

    A segment whose name ends in `gathering` is the moment before another one, when a strategy that divides weights
    gathers what the next place needs.
    """

    def __init__(self, ledger: Ledger):
        self.ledger = ledger
        self.phase, self.passes = "", 0

    def enter(self, phase: str) -> None:
        self.phase, self.passes = phase, 0
        self.mark("start")

    def mark(self, *place) -> None:
        self.ledger.mark((self.phase, self.passes, *place))

    def before_layer(self, place: LayerPlace, inputs: tuple) -> None:
        # Checkpointing calls a layer again inside the backward pass, where its segment has begun already.
        if in_backward():
            return
        self.mark("forward_gathering", place)
        self.mark("forward", place)
        if place.is_first:
            self._mark_backward(inputs, "embedding_backward")

    def after_layer(self, place: LayerPlace, output) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if not in_backward():
            name = "last_backward" if place.is_last else "backward"
            self._mark_backward(hidden, f"{name}_gathering", name, place=(place,))

    def before_model(self) -> None:
        self.passes += 1
        self.mark("embedding")

    def after_model(self, output) -> None:
        self.mark("scores")
        self._mark_backward(output, "head_gathering", "head_backward")

    def _mark_backward(self, values: Any, *names: str, place: tuple = ()) -> None:
        """Begin these segments when the gradient of one of the tensors is there; all but the last are moments."""

        def mark(_: torch.Tensor) -> None:
            for name in names:
                self.mark(name, *place)

        for tensor in tensors_in(values):
            if tensor.requires_grad:
                tensor.register_hook(mark)


@contextlib.contextmanager
def _marking(model: nn.Module, kept: list[tuple[nn.Module, LayerPlace]], ledger: Ledger) -> Iterator[_Marker]:
    marker, handles = _Marker(ledger), []
    for layer, place in kept:
        handles += [
            layer.register_forward_pre_hook(lambda _, inputs, place=place: marker.before_layer(place, inputs)),
            layer.register_forward_hook(lambda _, __, output, place=place: marker.after_layer(place, output)),
        ]
    body = find_body(model)
    if body is not None:
        handles.append(body.register_forward_hook(lambda *_: marker.mark("head")))
    plain = find_base(model)[1]
    handles.append(plain.register_forward_pre_hook(lambda *_: marker.before_model()))
    handles.append(plain.register_forward_hook(lambda _, __, output: marker.after_model(output)))
    try:
        yield marker
    finally:
        for handle in handles:
            handle.remove()
