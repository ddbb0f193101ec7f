"""What a softmax and its largest logit need, kept up to date while logits come tile by tile ("Online normalizer
calculation for softmax", arXiv 1805.02867). The target's logit is kept apart from the others."""

from __future__ import annotations

import torch

from peftlab.nn.formulas import Formula

LEAST = torch.finfo(torch.float32).min
"""m before any logit. It is finite, so that a first tile with only the target gives no NaN."""


class Sums:
    """m, s and the target's logit z_t of some positions, (positions, 1) each, over the tiles that were added."""

    def __init__(self, targets: torch.Tensor):
        self.targets = targets.unsqueeze(1)
        self.largest = targets.new_full(self.targets.shape, LEAST, dtype=torch.float32)
        self.sum = torch.zeros_like(self.largest)
        self.own = torch.full_like(self.largest, float("nan"))  # stays for a target outside the outputs

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
        """d = m + log s − z_t; NaN where z_t is infinite, as its softmax is."""
        own = self.own.masked_fill(self.own == float("inf"), float("nan"))
        return (self.largest - own) + self.sum.log()  # m and z_t may be large and close

    @property
    def missed(self) -> torch.Tensor:
        """1 − p_t = σ(d)."""
        return self.distance.sigmoid()

    @property
    def divisor(self) -> torch.Tensor:
        """s, which is 1 or more as the largest logit adds exp(0): 1 where all of the other logits are −inf."""
        return self.sum.clamp(min=1)


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
