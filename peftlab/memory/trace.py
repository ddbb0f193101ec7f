"""One training run in miniature, on fake tensors: two optimiser steps, an evaluation, an answer, for the ledger."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from peftlab.loss import IGNORED, sum_loss, supervised_loss, supervised_scores
from peftlab.memory.allocator import slack_bytes
from peftlab.memory.autocast import cuda_widening
from peftlab.memory.constants import ALLOCATION_ROUNDING
from peftlab.memory.depth import LayerPlace, Segments, Stack
from peftlab.memory.fakes import FakeModel
from peftlab.memory.generation import Answers, write_last_token
from peftlab.memory.ledger import Ledger, find_body
from peftlab.memory.private import in_backward

# From here on bitsandbytes keeps a tensor's moments in 8 bits, and in pages that may leave the device.
SMALLEST_8BIT, SMALLEST_PAGED = 4096, 100_000
STATE_BLOCK = 256


@dataclass(frozen=True)
class Workload:
    """What goes through the model: the longest batch of training and of evaluation.

    `supervised` is the share of tokens that the loss is computed on (in evaluation the same, unless it is given),
    `padded` whether rows differ in length. Without evaluation rows nothing is evaluated, without answers nothing
    is generated.
    """

    rows: int
    length: int
    evaluation_rows: int
    evaluation_length: int
    classes: bool = False
    supervised: float = 1.0
    evaluation_supervised: float | None = None
    padded: bool = True
    micro_batches: int = 1
    precision: torch.dtype = torch.float32
    optimizer: str = "adamw"
    cuda: bool = False
    answers: Answers | None = None

    @property
    def evaluation_share(self) -> float:
        return self.supervised if self.evaluation_supervised is None else self.evaluation_supervised

    def batch(self, rows: int, length: int, share: float) -> dict[str, torch.Tensor]:
        ids = {name: torch.empty(rows, length, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
        if self.classes:
            return {**ids, "labels": torch.empty(rows, dtype=torch.int64)}
        supervised = max(1, round(rows * (length - 1) * share))
        labels = torch.full((rows, length), IGNORED)
        return {**ids, "labels": labels, "supervised": torch.empty(supervised, dtype=torch.int64)}


@dataclass(frozen=True)
class Trace:
    """Segments in full depth, keyed (phase, place, ...); the one under ("state",) ends with what lives before.

    `slack` is what CUDA's allocator would keep beyond the traced peak, for each byte that is not a weight.
    """

    segments: Segments
    slack: float = 0.0


def trace_whole(fake: FakeModel, work: Workload) -> Trace:
    """Return the trace of a run of a model with its method; of equal layers only a few are run.

    Raises UnpredictableError where the model cannot run on fake tensors, UnmeasuredError where only generation cannot.
    """
    stack = Stack(fake.model)
    try:
        with fake.running(work.padded), cuda_widening() if work.cuda else contextlib.nullcontext():
            base, ledger = _trace(fake.model, work, stack, None)
            longer = {run: _trace(fake.model, work, stack, run)[0] for run in stack.long_runs}
    finally:
        stack.restore()
    return Trace(stack.extend(base, longer), _slack(base, ledger) if work.cuda else 0.0)


def _slack(segments: Segments, ledger: Ledger) -> float:
    weights = segments[("state",)][:, -1].sum()
    passing = max(part.sum(0).max() for part in segments.values()) - weights
    return slack_bytes(ledger.events()) / max(int(passing), 1)


def _trace(model: nn.Module, work: Workload, stack: Stack, longer: int | None) -> tuple[Segments, Ledger]:
    kept = stack.keep(longer)
    ledger = Ledger(ALLOCATION_ROUNDING if work.cuda else 1)
    optimizer = _optimizer([p for p in model.parameters() if p.requires_grad], work)
    with ledger.watch(model, optimizer), _marking(model, kept, ledger) as marker, ledger:
        ledger.mark(("state",))
        ledger.adopt(model)
        for phase in ("first_step", "steady_step"):
            marker.enter(phase)
            _step(model, optimizer, work, marker)
        model.eval()
        if work.evaluation_rows:
            marker.enter("evaluation")
            _evaluate(model, work)
        if work.answers is not None:
            marker.enter("generation")
            _generate(model, work.answers, work, marker)
    return _by_place(ledger.segments()), ledger


def _by_place(segments: Segments) -> Segments:
    """Return the segments with one key for each place that a layer has."""
    found = {}
    for key, part in segments.items():
        if isinstance(key[-1], LayerPlace):
            found |= {(*key[:-1], key[-1].run, index): part for index in key[-1].places}
        else:
            found[key] = part
    return found


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, work: Workload, marker: _Marker) -> None:
    """Do what the training loop does in one step."""
    model.train()
    for _ in range(work.micro_batches):
        _backward(model, work, marker)
    marker.mark("clip")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=work.cuda or None)
    marker.mark("step")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _backward(model: nn.Module, work: Workload, marker: _Marker) -> None:
    batch = work.batch(work.rows, work.length, work.supervised)
    with _autocast(work):
        loss_sum, tokens = supervised_loss(model, batch)
    share = loss_sum / tokens
    marker.mark("loss")
    share.backward()


def _evaluate(model: nn.Module, work: Workload) -> None:
    """Do what evaluation does with two batches: the first one's scores live while the second is computed."""
    batch = work.batch(work.evaluation_rows, work.evaluation_length, work.evaluation_share)
    with torch.no_grad(), _autocast(work):
        for _ in range(2):
            scores, targets = supervised_scores(model, batch)
            sum_loss(scores, targets)


def _generate(model: nn.Module, answers: Answers, work: Workload, marker: _Marker) -> None:
    ids, mask = (torch.empty(answers.rows, answers.length, dtype=torch.int64) for _ in range(2))
    with _autocast(work):
        write_last_token(model, ids, mask, answers, marker.mark)


class _Marker:
    """Marks the places of a step in a ledger: each layer forward and backward, head, loss, optimiser."""

    def __init__(self, ledger: Ledger):
        self.ledger = ledger
        self.phase = ""

    def enter(self, phase: str) -> None:
        self.phase = phase
        self.mark("start")

    def mark(self, *place) -> None:
        self.ledger.mark((self.phase, *place))

    def before_layer(self, place: LayerPlace) -> None:
        # Checkpointing calls a layer again inside the backward pass, where its segment has begun already.
        if not in_backward():
            self.mark("forward", place)

    def after_layer(self, place: LayerPlace, output) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if not in_backward() and hidden.requires_grad:
            hidden.register_hook(lambda gradient: self.mark("backward", place))


@contextlib.contextmanager
def _marking(model: nn.Module, kept: list[tuple[nn.Module, LayerPlace]], ledger: Ledger) -> Iterator[_Marker]:
    marker, handles = _Marker(ledger), []
    for layer, place in kept:
        handles += [
            layer.register_forward_pre_hook(lambda *_, place=place: marker.before_layer(place)),
            layer.register_forward_hook(lambda _, __, output, place=place: marker.after_layer(place, output)),
        ]
    body = find_body(model)
    if body is not None:
        handles.append(body.register_forward_hook(lambda *_: marker.mark("head")))
    try:
        yield marker
    finally:
        for handle in handles:
            handle.remove()


class _PlannedStates(torch.optim.Optimizer):
    """Holds the states that bitsandbytes' AdamW would hold on the device, and does nothing with them."""

    def __init__(self, parameters: list[nn.Parameter], eight_bit: bool, paged: bool):
        super().__init__(parameters, {})
        self.eight_bit, self.paged = eight_bit, paged

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if not self.state[parameter]:
                    self.state[parameter].update(self._states(parameter))

    def _states(self, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        small = parameter.numel() < SMALLEST_8BIT or not self.eight_bit
        moments = torch.float32 if small else torch.uint8
        states = {}
        if not (self.paged and parameter.numel() >= SMALLEST_PAGED):
            states |= {name: torch.empty_like(parameter, dtype=moments) for name in ("state1", "state2")}
        if not small:
            blocks = -(-parameter.numel() // STATE_BLOCK)
            states |= {name: torch.empty(blocks) for name in ("absmax1", "absmax2")}
        return states or {"step": torch.empty(())}


def _optimizer(parameters: list[nn.Parameter], work: Workload) -> torch.optim.Optimizer:
    if work.optimizer == "adamw":
        # Two groups, as in training: with and without weight decay.
        groups = [[p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]]
        return torch.optim.AdamW([{"params": group} for group in groups if group], fused=work.cuda or None)
    return _PlannedStates(parameters, "8bit" in work.optimizer, "paged" in work.optimizer)


@contextlib.contextmanager
def _autocast(work: Workload) -> Iterator[None]:
    if work.precision == torch.float32:
        yield
        return
    with torch.autocast("cpu", work.precision):
        yield
