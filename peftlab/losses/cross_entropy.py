"""Cross-entropy, of supervised positions or of whole rows, computed in float32 whatever the logits' type."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from peftlab.data.token_rows import LINE, LINE_POSITIONS, POSITIONS, TARGETS
from peftlab.losses.base import Batch, Loss, RowLosses
from peftlab.losses.one_line import one_line_below_head
from peftlab.losses.selection import selected_before, take_positions


class CrossEntropy(Loss):
    """Cross-entropy of the logits that `scores` returns."""

    predicts = True
    """Whether `rows_of` also returns the likeliest class at every target."""

    def total(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return functional.cross_entropy(self.scores(model, batch).float(), batch[TARGETS], reduction="sum")

    def rows_of(self, scores: torch.Tensor, batch: Batch, counts: Sequence[int]) -> RowLosses:
        losses = functional.cross_entropy(scores.float(), batch[TARGETS], reduction="none")
        sums = torch.stack([row.sum() for row in losses.split(list(counts))])
        return RowLosses(sums, scores.argmax(-1) if self.predicts else None)


class RowCrossEntropy(CrossEntropy):
    """One target a row, as in sequence classification."""

    def scores(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return score_rows(model, batch)


class PositionCrossEntropy(CrossEntropy):
    """One target at each of the batch's `positions`: next tokens, or tags.

    `head` is the module before which the positions are selected; without one, or where a model does not pass it
    hidden states of all positions, they are selected among the logits.
    """

    def __init__(self, head: nn.Module | None = None, predicts: bool = True):
        self.head, self.predicts = head, predicts

    def call(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the logits of one call of the model."""
        return model(**inputs_of(batch)).logits

    def length(self, batch: Batch) -> int:
        """Return the length of the rows that the batch's positions count over."""
        return batch["input_ids"].shape[1]

    def scores(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        positions, length = batch[POSITIONS], self.length(batch)
        with selected_before(self.head, positions, length):
            logits = self.call(model, batch)
        return logits if logits.dim() == 2 else take_positions(logits, positions, length)


def score_rows(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the outputs of a head that takes whole rows, (rows, outputs)."""
    with one_line_below_head(model, batch):
        return model(**inputs_of(batch)).logits


def inputs_of(batch: Batch) -> dict[str, torch.Tensor]:
    """Return what of a batch goes into the model."""
    return {name: value for name, value in batch.items() if name not in (POSITIONS, TARGETS, LINE, LINE_POSITIONS)}
