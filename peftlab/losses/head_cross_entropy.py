"""Cross-entropy of hidden states that go through a linear head, without all of their logits ever existing.

The head takes some positions and some of its outputs at a time: a tile of logits z. For a position with the target t,
m is the largest of the other logits and s the sum of exp(z_v − m) over them. Tiles bring both up to date, and what was
summed before is shrunk by exp(m before − m) ("Online normalizer calculation for softmax", arXiv 1805.02867). Then, with
d = m + log s − z_t,

    loss = softplus(d),    gradient to the hidden state = σ(d) · (Σ_{v≠t} exp(z_v − m) / s · W_v − W_t).

The target is left out of the sums, so that 1 − p_t = σ(d) is exact where p_t is nearly one, also in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from peftlab.losses.after_head import AfterHead
from peftlab.nn.formulas import Formula


class Tile(NamedTuple):
    """How many positions go through how many of the head's outputs at a time."""

    positions: int
    outputs: int


CHUNKS = {"cpu": (128, 24 * 2**20), "cuda": (512, 256 * 2**20)}
"""The least positions and, above them, the bytes of float32 logits of a tile of all outputs, by the type of device.

A GPU reads the head once for each, so that it needs more of them: by the ratio of its speeds, not measured."""

CPU_TILE = Tile(512, 2048)
"""A tile whose logits and weights stay in a CPU's cache.

By 128 positions and all of 49,152 outputs, loss and gradient of a frozen head take 1.16 times as long (508 positions of
width 576, median of 13 pairs; 2 cores of an AMD EPYC, 2026-11-29)."""


def tile_of(outputs: int, device: str, trained: bool) -> Tile:
    """Return the tile for a head of so many outputs on a type of device.

    Where the head is `trained`, all tiles of some positions exist at once, so that those are fewer.
    """
    least, size = CHUNKS.get(device, CHUNKS["cuda"])
    positions = max(least, size // (4 * outputs) // 32 * 32)
    if device != "cpu":
        return Tile(positions, outputs)
    return Tile(positions if trained else CPU_TILE.positions, CPU_TILE.outputs)


LEAST = torch.finfo(torch.float32).min
"""m before any logit. It is finite, so that a first tile with only the target gives no NaN."""


class Head(NamedTuple):
    """A linear head: weight (outputs, width), bias (outputs), and what the model does to its logits."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    after: AfterHead

    def cast(self, hidden: torch.Tensor) -> Head:
        """Return the head in the type in which it multiplies `hidden` now."""
        dtype = _computed(hidden)
        return self._replace(weight=self.weight.to(dtype), bias=None if self.bias is None else self.bias.to(dtype))

    def tiles(self, hidden: torch.Tensor, outputs: int, memory: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield each tile's first output and its logits: in columns of `memory`, where it has as many, else in turn."""
        whole = memory.shape[1] == len(self.weight)
        for first in range(0, len(self.weight), outputs):
            part = self.weight[first : first + outputs]
            begin = first if whole else 0
            logits = torch.mm(hidden, part.t(), out=memory[: len(hidden), begin : begin + len(part)])
            yield first, logits if self.bias is None else logits.add_(self.bias[first : first + outputs])


class HeadCrossEntropy(torch.autograd.Function):
    """The summed loss of hidden states (positions, width) that go through a linear head; see `apply`'s arguments.

    The gradients are made in the forward pass, so it can be differentiated once, and only once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        after: AfterHead,
        tile: Tile,
    ) -> torch.Tensor:
        gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad)
        head = Head(weight, bias, after).cast(hidden)
        total = hidden.new_zeros((), dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            width = len(weight) if gradients.of_head else min(tile.outputs, len(weight))
            memory = head.weight.new_empty(min(tile.positions, len(hidden)), width)
            for start in range(0, len(hidden), tile.positions):
                part = hidden[start : start + tile.positions].to(head.weight.dtype)
                total += gradients.add(start, part, targets[start : start + tile.positions], head, tile, memory)
        ctx.gradients = gradients.found
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # In place: the head's gradient can be as large as the head. They leave `ctx`, so that autograd keeps them.
        found, ctx.gradients = ctx.gradients, None
        if found is None:
            raise RuntimeError("the loss without logits can be differentiated only once")
        return *(None if one is None else one.mul_(gradient) for one in found), None, None, None


def position_losses(
    hidden: torch.Tensor, targets: torch.Tensor, head: Head, tile: Tile, predicts: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return each position's loss in float32, and its likeliest output where the task `predicts`; no gradients."""
    head = head.cast(hidden)
    losses, likeliest = [hidden.new_empty(0, dtype=torch.float32)], [targets.new_empty(0)]
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        memory = head.weight.new_empty(min(tile.positions, len(hidden)), min(tile.outputs, len(head.weight)))
        for start in range(0, len(hidden), tile.positions):
            wanted = targets[start : start + tile.positions]
            sums, best = Sums(wanted), Likeliest(wanted)
            part = hidden[start : start + tile.positions].to(head.weight.dtype)
            for first, logits in head.tiles(part, tile.outputs, memory):
                changed = head.after(logits).float()
                if predicts:
                    best.add(first, changed)
                sums.add(first, changed)
            losses.append(functional.softplus(sums.distance).squeeze(1))
            likeliest.append(best.outputs)
    return torch.cat(losses), torch.cat(likeliest) if predicts else None


class Sums:
    """m, s and the target's logit z_t of some positions, (positions, 1) each, over the tiles that were added."""

    def __init__(self, targets: torch.Tensor):
        self.targets = targets.unsqueeze(1)
        self.largest = targets.new_full(self.targets.shape, LEAST, dtype=torch.float32)
        self.sum = torch.zeros_like(self.largest)
        self.own = torch.zeros_like(self.largest)

    def add(self, first: int, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a tile of float32 logits. Return exp(z − m) in its place, 0 for targets; how sums before it shrink."""
        places, inside = self.place(first, logits.shape[1])
        shares, added, largest, own = ONLINE(logits, places, inside, self.largest)
        shrink = (self.largest - largest).exp_()
        self.largest, self.sum = largest, self.sum * shrink + added
        self.own = torch.where(inside, own, self.own)
        return shares, shrink

    def place(self, first: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each target's column in a tile, and whether it is there: any column where it is not."""
        places = (self.targets - first).clamp_(0, outputs - 1)
        return places, places + first == self.targets

    @property
    def distance(self) -> torch.Tensor:
        """d = m + log s − z_t."""
        return self.largest + self.sum.log() - self.own


class Likeliest:
    """The output with the largest logit of some positions, the first of equal ones, over the tiles that were added."""

    def __init__(self, targets: torch.Tensor):
        self.values = targets.new_full(targets.shape, float("-inf"), dtype=torch.float32)
        self.outputs = torch.zeros_like(targets)

    def add(self, first: int, logits: torch.Tensor) -> None:
        values, outputs = logits.max(1)
        better = values > self.values
        self.values = torch.where(better, values, self.values)
        self.outputs = torch.where(better, outputs + first, self.outputs)


class _Gradients:
    """The gradients to hidden states, weight and bias that are wanted, summed over positions."""

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, wanted: tuple[bool, ...]):
        to_hidden, to_weight, to_bias = wanted[:3]
        self.hidden = torch.empty_like(hidden) if to_hidden else None
        self.weight = torch.zeros_like(weight) if to_weight else None
        self.bias = torch.zeros_like(bias) if to_bias and bias is not None else None

    @property
    def found(self) -> tuple[torch.Tensor | None, ...]:
        return self.hidden, self.weight, self.bias

    @property
    def of_head(self) -> bool:
        return self.weight is not None or self.bias is not None

    def add(
        self, start: int, part: torch.Tensor, targets: torch.Tensor, head: Head, tile: Tile, memory: torch.Tensor
    ) -> torch.Tensor:
        """Add those of some positions, and return their summed loss."""
        sums, largest = Sums(targets), []
        by_own = torch.ones_like(sums.own)
        by_hidden = None if self.hidden is None else torch.zeros_like(part, dtype=torch.float32)
        for first, logits in head.tiles(part, tile.outputs, memory):
            slope, shrink, by_own = _slope(sums, first, logits, head.after, by_own)
            slope = slope.to(logits.dtype)
            if by_hidden is not None:
                _add_product(by_hidden.mul_(shrink), slope, head.weight[first : first + tile.outputs])
            if self.of_head and slope is not logits:
                logits.copy_(slope)
            largest.append(sums.largest)
        missed = sums.distance.sigmoid()
        by_own = by_own.mul_(missed)
        if self.hidden is not None and by_hidden is not None:
            by_hidden.mul_(missed / sums.sum).addcmul_(by_own, functional.embedding(targets, head.weight), value=-1)
            self.hidden[start : start + len(part)] = by_hidden
        if self.of_head:
            slopes = memory[: len(part)]
            for tops, one in zip(largest, slopes.split(tile.outputs, 1), strict=True):
                one.mul_((tops - sums.largest).exp_().mul_(missed / sums.sum))
            slopes.scatter_(1, sums.targets, by_own.neg().to(slopes.dtype))
            self._add_to_head(slopes, part)
        return functional.softplus(sums.distance).sum()

    def _add_to_head(self, slopes: torch.Tensor, part: torch.Tensor) -> None:
        if self.weight is not None:
            _add_product(self.weight, slopes.t(), part)
        if self.bias is not None:
            self.bias += slopes.sum(0)


def _slope(
    sums: Sums, first: int, logits: torch.Tensor, after: AfterHead, by_own: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return exp(z − m) times what `after` multiplies gradients by, 0 for the target; the shrinking; the target's own.

    The target's is `by_own` where it is not in this tile.
    """
    if not after.changes_values:
        return *sums.add(first, logits.float()), by_own
    with torch.enable_grad():
        inner = logits.detach().requires_grad_()
        changed = after(inner).float()
    shares, shrink = sums.add(first, changed.detach().clone())  # autograd may need its values
    places, inside = sums.place(first, logits.shape[1])
    outer = shares.scatter(1, places, torch.where(inside, 1.0, shares.gather(1, places)))
    slope = torch.autograd.grad(changed, inner, outer)[0].float()
    own = slope.gather(1, places)
    slope.scatter_(1, places, own.masked_fill(inside, 0.0))
    return slope, shrink, torch.where(inside, own, by_own)


def _add_product(into: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add a product to `into`, which may be of another type."""
    if into.dtype == left.dtype:
        into.addmm_(left, right)
    else:
        into += left @ right


def _computed(hidden: torch.Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _online(
    logits: torch.Tensor, places: torch.Tensor, inside: torch.Tensor, largest: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Return exp(z − m) in the logits' place, 0 for targets; its sums; m; the targets' logits."""
    own = logits.gather(1, places)
    logits.scatter_(1, places, own.masked_fill(inside, float("-inf")))
    largest = torch.maximum(largest, logits.amax(1, keepdim=True))
    shares = logits.sub_(largest).exp_()
    return shares, shares.sum(1, keepdim=True), largest, own


def _functional(
    logits: torch.Tensor, places: torch.Tensor, inside: torch.Tensor, largest: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Return the same as new tensors, in a form that compiles into few passes."""
    hit = (torch.arange(logits.shape[1], device=logits.device) == places) & inside
    own = torch.where(hit, logits, 0.0).sum(1, keepdim=True)
    others = logits.masked_fill(hit, float("-inf"))
    largest = torch.maximum(largest, others.amax(1, keepdim=True))
    shares = (others - largest).exp()
    return shares, shares.sum(1, keepdim=True), largest, own


ONLINE = Formula(_online, _functional)
