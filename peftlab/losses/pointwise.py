"""Losses that compare each output of a head with a target of its own, computed in float32."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from peftlab.data.token_rows import TARGETS
from peftlab.losses.base import Batch, Loss, RowLosses
from peftlab.losses.cross_entropy import score_rows


class PointwiseLoss(Loss):
    """A loss of outputs (rows, outputs) and as many targets, row after row."""

    @abstractmethod
    def compare(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each output; both are of one length and float32."""

    @abstractmethod
    def predict(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return what the model predicts for each target."""

    def scores(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return score_rows(model, batch)

    def total(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return self.compare(self.scores(model, batch).flatten().float(), batch[TARGETS]).sum()

    def rows_of(self, scores: torch.Tensor, batch: Batch, counts: Sequence[int]) -> RowLosses:
        outputs = scores.flatten().float()
        losses = self.compare(outputs, batch[TARGETS])
        sums = torch.stack([row.sum() for row in losses.split(list(counts))])
        return RowLosses(sums, self.predict(outputs))


class SquaredError(PointwiseLoss):
    """(y − t)², as in regression; predicts y."""

    def compare(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.mse_loss(outputs, targets, reduction="none")

    def predict(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs


class BinaryCrossEntropy(PointwiseLoss):
    """−t·log p − (1 − t)·log(1 − p) with p = sigmoid(y), as in multi-label classification; predicts p."""

    def compare(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")

    def predict(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.sigmoid()
