"""When each tensor storage exists, and for what: the one tracker behind measured and predicted memory."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from peftlab.memory.private import (
    TorchDispatchMode,
    device_asked,
    in_backward,
    is_of_exchange,
    quantisation_tensors,
    resized_storages,
    storage_key,
    tensors_in,
)
from peftlab.memory.shortage import is_shortage
from peftlab.parameters.divided import own_part
from peftlab.parameters.trainable import find_body
from peftlab.reports import MemoryReport

CATEGORIES = (
    "frozen_weights",
    "quantisation_state",
    "trainable_weights",
    "gradients",
    "optimiser_state",
    "saved_activations",
    "logits_and_loss",
    "workspace",
)
ALIVE = -1
# gloo's thread frees what it has sent when it gets the interpreter: before more is exchanged, it is let run.
SETTLING_SECONDS = 0.001
BEFORE = "before"
"""The mark of what is entered before the first phase, and of what belongs to none."""


Scratch = Callable[[Any, tuple], int]


def no_scratch(operation: Any, args: tuple) -> int:
    """Return what an operation allocates and frees within itself, where nothing is known of that: 0."""
    return 0


class Ledger(TorchDispatchMode):
    """Records when every storage that an operation makes, real or fake, is allocated and freed, while it is entered.

    A storage's category depends on where it was allocated and how long it existed, so it is known at the end.
    Bytes that an operation allocates and frees within itself (a library's scratch space) are not seen, but counted
    as `scratch` says, from an operation and its arguments: they are there while its results are made.
    `resolution` rounds every storage up, as an allocator does; `only` counts what is on one type of device.
    `shortage` is what was allocated, by category, when an operation ran out of memory.
    """

    def __init__(self, resolution: int = 1, only: str | None = None, scratch: Scratch = no_scratch):
        super().__init__()
        self.resolution, self.only, self.scratch = resolution, only, scratch
        self.shortage: dict[str, int] | None = None
        self.region = "step"
        self._sizes: list[int] = []
        self._births: list[int] = []
        self._deaths: list[int] = []
        self._regions: list[str] = []
        self._tags: dict[int, str] = {}
        self._known: dict[int, tuple[int, weakref.ref]] = {}
        self._marks: list[tuple[int, Hashable]] = []
        self._backward_starts: list[int] = []
        self._in_backward = False
        self._optimizer: torch.optim.Optimizer | None = None
        self._now = 0
        self._following = ExitStack()

    def __enter__(self) -> Ledger:
        self._following.enter_context(resized_storages(self._note_size))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._following.close()

    def mark(self, key: Hashable) -> None:
        """Begin a segment of the timeline, named `key`."""
        self._marks.append((self._now, key))

    def leave_out(self, key: Hashable) -> None:
        """Make a segment part of no phase, since it ended early."""
        self._marks = [(time, BEFORE if name == key else name) for time, name in self._marks]

    def track(self, tensor: torch.Tensor, category: str | None = None) -> int:
        """Enter a tensor's storage, if it is new, under a category that is certain; return its number."""
        storage = own_part(tensor).untyped_storage()
        address = storage_key(storage)
        if address not in self._known:
            self._known[address] = self._enter(storage, address)
        number = self._known[address][0]
        if category is not None:
            self._tags[number] = category
        return number

    def adopt(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Enter a model's weights, the scales of quantised ones, its buffers, and an optimiser's states."""
        for parameter in model.parameters():
            self.track_all([parameter], "trainable_weights" if parameter.requires_grad else "frozen_weights")
        self.track_all(quantisation_tensors(model.parameters()), "quantisation_state")
        self.track_all(model.buffers(), "frozen_weights")
        if optimizer is not None:
            self._adopt_states(optimizer)

    def adopt_base(self, model: nn.Module) -> None:
        """Enter a model that has no method yet: all of it is frozen weights."""
        self.track_all(model.parameters(), "frozen_weights")
        self.track_all(quantisation_tensors(model.parameters()), "quantisation_state")
        self.track_all(model.buffers(), "frozen_weights")

    def track_all(self, tensors: Iterable[torch.Tensor], category: str) -> None:
        for tensor in tensors:
            if self._counts(tensor):
                self.track(tensor, category)

    def _counts(self, tensor: torch.Tensor) -> bool:
        # Reading a fake tensor's device is an operation too, and would double the time of a trace.
        return self.only is None or tensor.device.type == self.only

    @contextmanager
    def watch(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Recognise gradients, optimiser states, and the logits that are made after the model's body."""
        self._optimizer = optimizer
        handles = [
            *self._watch_body(model),
            optimizer.register_step_pre_hook(lambda optimizer, *_: self._before_step(optimizer)),
            optimizer.register_step_post_hook(lambda optimizer, *_: self._adopt_states(optimizer)),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.region = "step"
        self.adopt_gradients(optimizer)

    def adopt_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Enter the gradients that there are now; they count as gradients since they were allocated."""
        gradients = (p.grad for group in optimizer.param_groups for p in group["params"])
        self.track_all((g for g in gradients if g is not None), "gradients")

    def _adopt_states(self, optimizer: torch.optim.Optimizer) -> None:
        # Where a strategy divides states, an optimizer updates parts of weights, or copies, in place of the model's.
        self.track_all((one for group in optimizer.param_groups for one in group["params"]), "trainable_weights")
        self.track_all(optimizer.state, "trainable_weights")
        states = (value for state in optimizer.state.values() for value in state.values())
        self.track_all((value for value in states if torch.is_tensor(value)), "optimiser_state")

    def segments(self) -> dict[Any, np.ndarray]:
        """Return the bytes in use after every event, (categories, events), of each marked segment."""
        timeline = self._timeline()
        ends = [time for time, _ in self._marks[1:]] + [timeline.shape[1]]
        found: dict[Any, np.ndarray] = {}
        for (start, key), end in zip(self._marks, ends, strict=True):
            # What is allocated when a segment begins counts in it.
            part = timeline[:, max(start - 1, 0) : end]
            found[key] = np.concatenate([found[key], part], axis=1) if key in found else part
        return found

    def report(self) -> MemoryReport:
        """Return the measured memory; the segments' keys are its phases."""
        parts = {str(key): part for key, part in self.segments().items() if key != BEFORE}
        phases = {key: int(part.sum(0).max()) for key, part in parts.items()}
        timeline = np.concatenate(list(parts.values()), axis=1) if parts else self._timeline()
        at_peak = timeline[:, timeline.sum(0).argmax()]
        return MemoryReport(
            source="measured",
            device=self.only or "cpu",
            peak_bytes=int(at_peak.sum()),
            categories=dict(zip(CATEGORIES, map(int, at_peak), strict=True)),
            phases=phases,
        )

    def held(self) -> dict[str, int]:
        """Return the bytes allocated now, by category; during a forward pass everything of it counts as saved."""
        if self._optimizer is not None:
            self.adopt_gradients(self._optimizer)
        found, start = dict.fromkeys(CATEGORIES, 0), self._forward_start()
        for number, size in enumerate(self._sizes):
            if self._deaths[number] == ALIVE:
                saved = start <= self._births[number] and self._is_of_forward(number)
                found["saved_activations" if saved else self._category(number)] += size
        return found

    def _forward_start(self) -> int:
        """Return when the forward pass that runs now may have begun, a time to come if none runs.

        It runs where something was recorded after the last backward pass, and in this segment.
        """
        began = max(self._backward_starts[-1:] + [time for time, _ in self._marks[-1:]], default=0)
        numbers = reversed(range(len(self._births)))
        recorded = next((self._births[number] for number in numbers if self._regions[number] == "forward"), -1)
        return began if recorded >= began and not self._in_backward else self._now

    def _is_of_forward(self, number: int) -> bool:
        return self._regions[number] in ("forward", "unrecorded") and number not in self._tags

    def events(self) -> list[tuple[int, int]]:
        """Return (storage number, bytes) in order, bytes negative where a storage is freed."""
        numbers = range(len(self._sizes))
        taken = [(self._births[number], number, self._sizes[number]) for number in numbers]
        given = [(self._deaths[n], n, -self._sizes[n]) for n in numbers if self._deaths[n] != ALIVE]
        return [(number, size) for _, number, size in sorted(taken + given)]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        device = device_asked(func, args)
        if device is not None:
            return device
        self._note_backward()
        if is_of_exchange(func):
            time.sleep(SETTLING_SECONDS)
        try:
            result = func(*args, **(kwargs or {}))
        except RuntimeError as error:
            if is_shortage(error):
                self.shortage = self.held()
            raise
        passing = self.scratch(func, args)
        number = self._allocate(passing) if passing else None
        for tensor in tensors_in(result):
            if self._counts(tensor):
                self.track(tensor)
        if number is not None:
            self._deaths[number] = self._tick()
        if func is torch.ops.aten.index_put.default and self._in_backward:
            self._undo_copy(args[0], result)
        return result

    def _note_backward(self) -> None:
        running = in_backward()
        if running and not self._in_backward:
            self._backward_starts.append(self._now)
        self._in_backward = running

    def _enter(self, storage: torch.UntypedStorage, address: int) -> tuple[int, weakref.ref]:
        number = self._allocate(storage.nbytes())
        return number, weakref.ref(storage, lambda _: self._leave(address))

    def _note_size(self, storage: torch.UntypedStorage) -> None:
        """Enter a storage that has memory again, or let one leave that has none and remains."""
        known = self._known.get(storage_key(storage))
        if known is None:
            return
        number, reference = known
        if self._deaths[number] == ALIVE and storage.nbytes() == 0:
            self._deaths[number] = self._tick()
        elif self._deaths[number] != ALIVE and storage.nbytes():
            self._known[storage_key(storage)] = self._allocate(storage.nbytes()), reference

    def _allocate(self, size: int) -> int:
        """Enter bytes that are allocated now, and return their number."""
        self._sizes.append(-(-size // self.resolution) * self.resolution)
        self._births.append(self._tick())
        self._deaths.append(ALIVE)
        self._regions.append(self._place())
        return len(self._sizes) - 1

    def _leave(self, address: int) -> None:
        number, _ = self._known.pop(address)
        if self._deaths[number] == ALIVE:
            self._deaths[number] = self._tick()

    def _tick(self) -> int:
        self._now += 1
        return self._now - 1

    def _place(self) -> str:
        """Return where the program is: before, in or after the backward pass; `head` beyond the model's body."""
        if self.region == "head":
            return "head"
        recorded = torch.is_grad_enabled()
        if self._in_backward:
            return "recomputed" if recorded else "workspace"
        # An autograd function of one's own saves what it allocates while nothing is recorded.
        return "forward" if recorded else "unrecorded"

    def _undo_copy(self, old: torch.Tensor, new: torch.Tensor) -> None:
        """Let a gradient's `index_put` write in place, as autograd does unless a mode like this one watches."""
        old_number, new_number = self.track(old), self.track(new)
        if old_number != new_number:
            self._sizes[new_number], self._sizes[old_number] = self._sizes[old_number], 0

    def _watch_body(self, model: nn.Module) -> list:
        body = find_body(model)
        if body is None:
            return []
        return [
            model.register_forward_pre_hook(lambda *_: self._enter_region("step")),
            body.register_forward_hook(lambda _, __, output: self._leave_body(output)),
        ]

    def _enter_region(self, region: str) -> None:
        self.region = region

    def _leave_body(self, output) -> None:
        hidden = output[0]
        self.region = "head"
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: self._enter_region("step"))

    def _category(self, number: int) -> str:
        if number in self._tags:
            return self._tags[number]
        region = self._regions[number]
        if region == "head":
            return "logits_and_loss"
        if region in ("forward", "unrecorded"):
            return "saved_activations" if self._survives_forward(number) else "workspace"
        return "saved_activations" if region == "recomputed" else "workspace"

    def _survives_forward(self, number: int) -> bool:
        start = int(np.searchsorted(self._backward_starts, self._births[number]))
        if start == len(self._backward_starts):
            return False
        return self._deaths[number] == ALIVE or self._deaths[number] > self._backward_starts[start]

    def _timeline(self) -> np.ndarray:
        changes = np.zeros((len(CATEGORIES), self._now + 1), dtype=np.int64)
        for number, size in enumerate(self._sizes):
            row = CATEGORIES.index(self._category(number))
            changes[row, self._births[number]] += size
            if self._deaths[number] != ALIVE:
                changes[row, self._deaths[number]] -= size
        return changes.cumsum(axis=1)[:, : max(self._now, 1)]
