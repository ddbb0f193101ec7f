"""The loss of a task whose head gets hidden states a part at a time, so that all logits never exist."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from peftlab.data.token_rows import POSITIONS, TARGETS
from peftlab.losses.after_head import AfterHead
from peftlab.losses.base import Batch, Loss, RowLosses
from peftlab.losses.cross_entropy import PositionCrossEntropy
from peftlab.losses.head_cross_entropy import Head, HeadCrossEntropy, position_losses, tile_of
from peftlab.losses.liger import liger_total, why_no_liger
from peftlab.losses.selection import take_positions


class ChunkedCrossEntropy(Loss):
    """The same loss as `plain`, whose `head` gets the positions in chunks; `after` follows the head.

    With `liger`, steps are computed by Liger's kernel where that can be.
    """

    def __init__(
        self, plain: PositionCrossEntropy, head: nn.Linear, after: AfterHead, device: str = "cpu", liger: bool = False
    ):
        self.plain, self.head, self.after, self.liger = plain, head, after, liger
        trained = any(weight.requires_grad for weight in head.parameters())
        self.tile = tile_of(head.out_features, device, trained)

    def scores(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return self.plain.scores(model, batch)

    def rows_of(self, scores: torch.Tensor, batch: Batch, counts: Sequence[int]) -> RowLosses:
        return self.plain.rows_of(scores, batch, counts)

    def total(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        def compute(hidden: torch.Tensor) -> torch.Tensor:
            if self.liger and len(hidden) and why_no_liger(self.head, self.after) is None:
                return liger_total(hidden, self.head, batch[TARGETS])
            return HeadCrossEntropy.apply(
                hidden, self.head.weight, self.head.bias, batch[TARGETS], self.after, self.tile
            )

        return self._at_head(model, batch, compute)

    def rows(self, model: nn.Module, batch: Batch, counts: Sequence[int]) -> RowLosses:
        def compute(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            head = Head(self.head.weight, self.head.bias, self.after)
            return position_losses(hidden, batch[TARGETS], head, self.tile, self.plain.predicts)

        losses, likeliest = self._at_head(model, batch, compute)
        sums = torch.stack([row.sum() for row in losses.split(list(counts))])
        return RowLosses(sums, likeliest)

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


@contextmanager
def _with_forward(head: Any, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    head.forward = forward
    try:
        yield
    finally:
        del head.forward
