"""How a model's loss is computed: the one place, used by training and evaluation alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

IGNORED = -100
NOT_INPUTS = ("labels", "supervised")


def supervised_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross-entropy summed over the batch (float32 scalar) and the count it sums over (int64 scalar)."""
    scores, targets = supervised_scores(model, batch)
    loss_sum = sum_loss(scores, targets)
    return loss_sum, torch.full((), len(targets), dtype=torch.int64, device=loss_sum.device)


def supervised_scores(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (count, classes) in the model's type and targets (count,) of what is supervised, and only that.

    Labels (batch, length), -100 where not supervised: each position predicts the next token. Labels (batch,):
    one class a row.
    """
    labels = batch["labels"]
    logits = model(**{name: value for name, value in batch.items() if name not in NOT_INPUTS}).logits
    if labels.dim() == 1:
        return logits, labels
    positions = _positions(batch)
    logits = logits[:, -labels.shape[1] :]  # prompt tuning's virtual tokens come first
    return logits.flatten(0, 1).index_select(0, positions), labels.flatten().index_select(0, positions + 1)


def sum_loss(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the summed cross-entropy, computed in float32 whatever the type of the scores."""
    return functional.cross_entropy(scores.float(), targets, reduction="sum")


def row_losses(scores: torch.Tensor, targets: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Return the cross-entropy summed over each row (float32): `counts` says how many of the targets are a row's."""
    losses = functional.cross_entropy(scores.float(), targets, reduction="none")
    return torch.stack([row.sum() for row in losses.split(list(counts))])


def count_supervised(batch: dict[str, torch.Tensor]) -> int:
    """Return what the batch's loss is a sum over: supervised tokens that have a predecessor, or rows."""
    labels = batch["labels"]
    return len(labels) if labels.dim() == 1 else _positions(batch).numel()


def supervised_positions(labels: torch.Tensor) -> torch.Tensor:
    """Return the flat positions in (batch, length) labels whose *next* token is supervised (int64)."""
    predicts = torch.zeros_like(labels, dtype=torch.bool)
    predicts[:, :-1] = labels[:, 1:] != IGNORED
    return predicts.flatten().nonzero().squeeze(1)


def _positions(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    positions = batch.get("supervised")
    return supervised_positions(batch["labels"]) if positions is None else positions
