"""What a loss is: its total over a batch, and its part on every row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

Batch = Mapping[str, torch.Tensor]


class RowLosses(NamedTuple):
    """Row by row: the summed loss, (rows,) in float32; what is predicted at every target, (targets,) or None.

    That is the likeliest class, a number, or a probability.
    """

    losses: torch.Tensor
    predictions: torch.Tensor | None = None


class Loss(ABC):
    """Computes a model's loss on batches as `data.batches.collate` makes them.

    Each method that takes `model` calls it once. None waits for the device.
    """

    @abstractmethod
    def scores(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the model's outputs at the batch's targets, (targets, classes) in the model's own type."""

    @abstractmethod
    def total(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the loss summed over the batch's targets (float32 scalar with a gradient)."""

    @abstractmethod
    def rows_of(self, scores: torch.Tensor, batch: Batch, counts: Sequence[int]) -> RowLosses:
        """Return each row's part of the total; `counts` says how many of the batch's targets are a row's, in order."""

    def rows(self, model: nn.Module, batch: Batch, counts: Sequence[int]) -> RowLosses:
        """Return `rows_of` the model's scores."""
        return self.rows_of(self.scores(model, batch), batch, counts)
