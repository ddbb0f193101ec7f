"""Cross-entropy without logits: a few hundred positions at a time go through the head, their gradients included.

For logits z = head(h) and a target t the loss is log Σ exp(z) − z_t, and its gradient softmax(z) − onehot(t). Both are
made of the same numbers, so each chunk's logits live only until its part of the gradients is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from peftlab.data.token_rows import POSITIONS, TARGETS
from peftlab.losses.after_head import AfterHead
from peftlab.losses.base import Batch, Loss, RowLosses
from peftlab.losses.cross_entropy import PositionCrossEntropy
from peftlab.losses.liger import liger_total, why_no_liger
from peftlab.losses.selection import take_positions
from peftlab.nn.formulas import Formula

CHUNKS = {"cpu": (128, 24 * 2**20), "cuda": (512, 256 * 2**20)}
"""The least positions and, above them, the bytes of float32 logits of one chunk, by the type of device.

On the CPU more positions were not faster, fewer were slower (64: by a tenth). A GPU reads the head once a chunk, so
that it needs more for each: by the ratio of its speeds, not measured."""

FEW, BLOCK = 256, 2048
"""Up to how many positions the CPU multiplies by a part of the head at a time, and how many outputs that has.

For few positions and very many outputs its product is slower by a quarter (128 and 49,152; 2 cores of an AMD EPYC)."""


class ChunkedCrossEntropy(Loss):
    """The same loss as `plain`, whose `head` gets the positions in chunks; `after` follows the head.

    With `liger`, steps are computed by Liger's kernel where that can be.
    """

    def __init__(
        self, plain: PositionCrossEntropy, head: nn.Linear, after: AfterHead, device: str = "cpu", liger: bool = False
    ):
        self.plain, self.head, self.after, self.liger = plain, head, after, liger
        self.chunk = chunk_rows(head.out_features, device)

    def scores(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return self.plain.scores(model, batch)

    def rows_of(self, scores: torch.Tensor, batch: Batch, counts: Sequence[int]) -> RowLosses:
        return self.plain.rows_of(scores, batch, counts)

    def total(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        def compute(hidden: torch.Tensor) -> torch.Tensor:
            if self.liger and len(hidden) and why_no_liger(self.head, self.after) is None:
                return liger_total(hidden, self.head, batch[TARGETS])
            parts = hidden, self.head.weight, self.head.bias, batch[TARGETS]
            return HeadCrossEntropy.apply(*parts, self.after, self.chunk)

        return self._at_head(model, batch, compute)

    def rows(self, model: nn.Module, batch: Batch, counts: Sequence[int]) -> RowLosses:
        losses, predictions = self._at_head(model, batch, lambda hidden: self._score(hidden, batch[TARGETS]))
        sums = torch.stack([row.sum() for row in losses.split(list(counts))])
        return RowLosses(sums, predictions)

    def _at_head(self, model: nn.Module, batch: Batch, compute: Callable[[torch.Tensor], Any]) -> Any:
        """Call the model once, and return what `compute` makes of the hidden states at the batch's positions."""
        found: list[Any] = []

        def forward(states: torch.Tensor) -> torch.Tensor:
            hidden = take_positions(states, batch[POSITIONS], self.plain.length(batch))
            found.append(compute(hidden))
            return hidden.detach()[:, :1]  # in place of logits, which nobody reads

        with _with_forward(self.head, forward):
            self.plain.call(model, batch)
        (result,) = found
        return result

    def _score(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return each position's loss in float32, and its likeliest class where the plain loss returns it."""
        losses, likeliest = [hidden.new_empty(0, dtype=torch.float32)], [targets.new_empty(0)]
        for part, wanted in zip(hidden.split(self.chunk), targets.split(self.chunk), strict=True):
            logits = self.after(functional.linear(part, self.head.weight, self.head.bias))
            losses.append(functional.cross_entropy(logits.float(), wanted, reduction="none"))
            if self.plain.predicts:
                likeliest.append(logits.argmax(-1))
        return torch.cat(losses), torch.cat(likeliest) if self.plain.predicts else None


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
        chunk: int,
    ) -> torch.Tensor:
        device = hidden.device.type
        casts = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if casts else hidden.dtype
        head = weight.to(dtype), None if bias is None else bias.to(dtype)
        gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad)
        total = hidden.new_zeros((), dtype=torch.float32)
        with torch.autocast(device, enabled=False):
            logits = hidden.new_empty(min(chunk, len(hidden)), len(weight), dtype=dtype)
            for start in range(0, hidden.shape[0], chunk):
                part = hidden[start : start + chunk].to(dtype)
                scores = _multiply(part, *head, logits[: len(part)])
                loss, slope = _loss_and_slope(scores, targets[start : start + chunk], after)
                total += loss
                gradients.add(start, part, slope, head[0])
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


class _Gradients:
    """The gradients to hidden states, weight and bias that are wanted, summed over chunks."""

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, wanted: tuple[bool, ...]):
        to_hidden, to_weight, to_bias = wanted[:3]
        self.hidden = torch.empty_like(hidden) if to_hidden else None
        self.weight = torch.zeros_like(weight) if to_weight else None
        self.bias = torch.zeros_like(bias) if to_bias and bias is not None else None

    @property
    def found(self) -> tuple[torch.Tensor | None, ...]:
        return self.hidden, self.weight, self.bias

    def add(self, start: int, part: torch.Tensor, slope: torch.Tensor, weight: torch.Tensor) -> None:
        """Add a chunk's part; `slope` is its gradient to the logits, of the type that the head computes in."""
        if self.hidden is not None:
            self.hidden[start : start + len(part)] = slope @ weight
        if self.weight is not None:
            if self.weight.dtype == slope.dtype:
                self.weight.addmm_(slope.t(), part)
            else:
                self.weight += slope.t() @ part
        if self.bias is not None:
            self.bias += slope.sum(0)


def _multiply(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, into: torch.Tensor
) -> torch.Tensor:
    """Return the head's output of a chunk, in the memory of `into`."""
    size = BLOCK if hidden.device.type == "cpu" and len(hidden) <= FEW else len(weight)
    for first in range(0, len(weight), size):
        torch.mm(hidden, weight[first : first + size].t(), out=into[:, first : first + size])
    return into if bias is None else into.add_(bias)


def _loss_and_slope(logits: torch.Tensor, targets: torch.Tensor, after: AfterHead) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed loss of a chunk in float32, and its gradient to its logits in their type."""
    if after.changes_values:
        with torch.enable_grad():
            changed = after(logits.requires_grad_()).float()
        loss, slope = CROSS_ENTROPY(changed.detach().clone(), targets)  # autograd may need its values
        return loss, torch.autograd.grad(changed, logits, slope)[0]
    loss, slope = CROSS_ENTROPY(logits.float(), targets)
    return loss, slope.to(logits.dtype)


def _cross_entropy_and_slope(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed cross-entropy and its gradient to the logits (float32), which takes the logits' place."""
    likelihoods = torch.log_softmax(logits, -1, out=logits)
    places = targets.unsqueeze(1)
    loss = -likelihoods.gather(1, places).sum()
    slope = likelihoods.exp_()
    return loss, slope.scatter_add_(1, places, slope.new_full((), -1.0).expand(places.shape))


def _functional(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same as new tensors, in a form that compiles into a pass for each."""
    likelihoods, places = torch.log_softmax(logits, -1), targets.unsqueeze(1)
    hit = torch.arange(logits.shape[1], device=logits.device) == places
    return -likelihoods.gather(1, places).sum(), likelihoods.exp() - hit.to(logits.dtype)


CROSS_ENTROPY = Formula(_cross_entropy_and_slope, _functional)


def chunk_rows(outputs: int, device: str = "cpu") -> int:
    """Return how many positions go through a head of so many outputs at a time, on a type of device."""
    least, size = CHUNKS.get(device, CHUNKS["cuda"])
    return max(least, size // (4 * outputs) // 32 * 32)


@contextmanager
def _with_forward(head: Any, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    head.forward = forward
    try:
        yield
    finally:
        del head.forward
