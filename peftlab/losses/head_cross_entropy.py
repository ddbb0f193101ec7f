"""Cross-entropy of hidden states that go through a linear head, without all of their logits ever existing.

The head takes some positions and some of its outputs at a time: a tile of logits z. For a position with the target t,
m is the largest of the other logits and s the sum of exp(z_v − m) over them. Tiles bring both up to date, and what was
summed before is shrunk by exp(m before − m) ("Online normalizer calculation for softmax", arXiv 1805.02867). Then, with
d = m + log s − z_t,

    loss = softplus(d),    gradient to the hidden state = σ(d) · (Σ_{v≠t} exp(z_v − m) / s · W_v − W_t).

The target is left out of the sums, so that 1 − p_t = σ(d) is exact where p_t is nearly one, also in 16 bits. Where all
logits of some positions are there at once, the sum is one product with the target in it: in 16 bits the difference of
two rounded vectors is less exact, and a sum without 1/s can overflow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from peftlab.losses.after_head import AfterHead
from peftlab.losses.online_softmax import Likeliest, Sums
from peftlab.nn.products import add_product


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

    Where the head is `trained`, all tiles of some positions exist at once, so that those are fewer; a tile is as large.
    """
    least, size = CHUNKS.get(device, CHUNKS["cuda"])
    positions = max(least, size // (4 * outputs) // 32 * 32)
    if device != "cpu":
        return Tile(positions, outputs)
    if not trained:
        return CPU_TILE
    return Tile(positions, max(CPU_TILE.outputs, CPU_TILE.positions * CPU_TILE.outputs // positions))


class Head(NamedTuple):
    """A linear head: weight (outputs, width), bias (outputs), and what the model does to its logits."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    after: AfterHead

    def cast(self, hidden: torch.Tensor) -> Head:
        """Return the head in the type in which it multiplies `hidden` now."""
        dtype = computed_type(hidden)
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
        ctx.gradients = gradients.found
        head = Head(weight, bias, after)
        if not any(ctx.needs_input_grad):
            return position_losses(hidden, targets, head, tile, predicts=False)[0].sum()
        head = head.cast(hidden)
        total = hidden.new_zeros((), dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            width = len(weight) if gradients.of_head else min(tile.outputs, len(weight))
            memory = head.weight.new_empty(min(tile.positions, len(hidden)), width)
            for start in range(0, len(hidden), tile.positions):
                part = hidden[start : start + tile.positions].to(head.weight.dtype)
                total += gradients.add(start, part, targets[start : start + tile.positions], head, tile, memory)
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


class _Gradients:
    """The gradients to hidden states, weight and bias that are wanted, summed over positions."""

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, wanted: tuple[bool, ...]):
        to_hidden, to_weight, to_bias = wanted[:3]
        # float16 has no room for the small ones before a scaler multiplies them; autograd casts what it gets.
        kept = torch.float32 if hidden.dtype == torch.float16 else hidden.dtype
        self.hidden = torch.empty_like(hidden, dtype=kept) if to_hidden else None
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
        sums, into = Sums(targets), None if self.hidden is None else self.hidden[start : start + len(part)]
        if memory.shape[1] < len(head.weight):
            torch.mul(_by_hidden(sums, part, head, tile, memory), sums.missed, out=into)
        else:
            slopes = _slopes(sums, part, head, tile, memory)
            self._add_to_head(slopes, part, sums.missed)
            if into is not None:
                torch.mul(slopes @ head.weight, sums.missed, out=into)
        return functional.softplus(sums.distance).sum()

    def _add_to_head(self, slopes: torch.Tensor, part: torch.Tensor, missed: torch.Tensor) -> None:
        if self.weight is not None:
            add_product(self.weight, slopes.t(), (part * missed).to(part.dtype))
        if self.bias is not None:
            self.bias += (slopes.t() @ missed.to(slopes.dtype)).squeeze(1)


def _slopes(sums: Sums, part: torch.Tensor, head: Head, tile: Tile, memory: torch.Tensor) -> torch.Tensor:
    """Return the gradient to all logits over σ(d), in `memory`, which has a column for each; fill `sums`."""
    by_own, before = torch.ones_like(sums.own), []
    for first, logits in head.tiles(part, tile.outputs, memory):
        slope, _, by_own = _slope(sums, first, logits, head.after, by_own)
        logits.copy_(slope.div_(sums.divisor))
        before.append((logits, sums.largest, sums.divisor))
    for logits, largest, divisor in before[:-1]:  # the last is up to date
        logits.mul_((largest - sums.largest).exp_().mul_(divisor / sums.divisor))
    slopes = memory[: len(part)]
    return slopes.scatter_(1, sums.targets, by_own.neg_().to(slopes.dtype))


def _by_hidden(sums: Sums, part: torch.Tensor, head: Head, tile: Tile, memory: torch.Tensor) -> torch.Tensor:
    """Return the gradient to hidden states over σ(d), in float32; fill `sums`."""
    by_own, found = torch.ones_like(sums.own), torch.zeros_like(part, dtype=torch.float32)
    for first, logits in head.tiles(part, tile.outputs, memory):
        slope, shrink, by_own = _slope(sums, first, logits, head.after, by_own)
        add_product(found.mul_(shrink), slope.to(logits.dtype), head.weight[first : first + tile.outputs])
    return found.div_(sums.divisor).addcmul_(by_own, functional.embedding(sums.targets[:, 0], head.weight), value=-1)


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


def computed_type(x: torch.Tensor) -> torch.dtype:
    """Return the type in which a product with `x` is computed now: autocast's where that is on, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
