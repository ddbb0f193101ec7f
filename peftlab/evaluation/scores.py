"""What a model makes of each held-out row by itself: what every metric and every paired statistic is made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from peftlab.data.batches import collate, evaluation_batches
from peftlab.data.tokens import TokenRow
from peftlab.evaluation.generate import evaluation_mode
from peftlab.evaluation.metrics import RowScores
from peftlab.loss import row_losses, supervised_scores

Gather = Callable[[list[Any]], list[Any]]
Autocast = Callable[[], AbstractContextManager]


def score_rows(
    model: nn.Module,
    rows: Sequence[TokenRow],
    *,
    pad_id: int,
    batch_size: int,
    device: torch.device | str,
    autocast: Autocast,
    gather: Gather,
    process: int,
    processes: int,
) -> RowScores:
    """Return the scores of `rows` in their order, exactly the same however they are spread over processes."""
    batches = evaluation_batches(rows, batch_size, process=process, processes=processes)
    classes = isinstance(rows[0].labels, int)
    measured = []
    with evaluation_mode(model), torch.no_grad(), autocast():
        for _, batch in batches:
            measured.append(_score_batch(model, [rows[i] for i in batch], pad_id, device, classes))
    # Read only now, so that the device is not waited for after every batch.
    mine = [
        (row, loss, prediction)
        for (_, batch), (losses, predictions) in zip(batches, measured, strict=True)
        for row, loss, prediction in zip(batch, losses.tolist(), predictions.tolist(), strict=True)
    ]
    _, losses, predictions = zip(*sorted(gather(mine)), strict=True)
    labels = [row.labels for row in rows] if classes else None
    return RowScores(list(losses), [row.supervised for row in rows], list(predictions) if classes else None, labels)


def _score_batch(
    model: nn.Module, rows: Sequence[TokenRow], pad_id: int, device: torch.device | str, classes: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's summed loss and predicted class (zeros where there are none)."""
    batch = {name: value.to(device, non_blocking=True) for name, value in collate(rows, pad_id).items()}
    scores, targets = supervised_scores(model, batch)
    losses = row_losses(scores, targets, [row.supervised for row in rows])
    return losses, scores.argmax(-1) if classes else torch.zeros_like(losses)
