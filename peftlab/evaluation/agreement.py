"""How far two models agree on the same rows: their logits, their likeliest classes, their losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from peftlab.data.batches import collate, evaluation_batches
from peftlab.data.dataset import Dataset
from peftlab.data.token_rows import TokenRow
from peftlab.evaluation.generate import evaluation_mode
from peftlab.losses.base import Loss
from peftlab.reports import AgreementReport
from peftlab.world.base import World

# Logits of one model that are kept in memory, whatever the number of rows.
MOST_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Outputs:
    """A model's logits at the targets of some rows, (targets, classes) in float32, and each row's loss and count."""

    logits: torch.Tensor
    losses: torch.Tensor
    counts: torch.Tensor

    @property
    def loss(self) -> float:
        return float(self.losses.sum() / self.counts.sum())


def collect_outputs(
    model: nn.Module,
    rows: Sequence[TokenRow],
    dataset: Dataset,
    *,
    loss: Loss,
    world: World,
    precision: torch.dtype,
    batch_size: int,
) -> Outputs:
    """Return a model's outputs on `rows`, of which the last are left out where their logits would take too much.

    Two models of one vocabulary get the same rows.
    """
    logits: list[torch.Tensor] = []
    losses: list[torch.Tensor] = []
    counts: list[int] = []
    taken = 0
    with evaluation_mode(model), torch.no_grad(), world.autocast(precision):
        for _, numbers in evaluation_batches(rows, batch_size):
            batch = world.move(collate([rows[i] for i in numbers], dataset.pad_id))
            own = [rows[i].supervised for i in numbers]
            scores = loss.scores(model, batch)
            losses.append(loss.rows_of(scores, batch, own).losses.float().cpu())
            logits.append(scores.float().cpu())
            counts += own
            taken += logits[-1].numel() * logits[-1].element_size()
            if taken > MOST_BYTES:
                break
    return Outputs(torch.cat(logits), torch.cat(losses), torch.tensor(counts, dtype=torch.float32))


def compare_outputs(first: Outputs, second: Outputs) -> AgreementReport:
    """Return how far `second` is from `first`; the interval of the loss is one of rows (95 %, normal).

    `kl` is the mean Kullback-Leibler divergence of `second` from `first`, in nats a target.
    """
    one, other = (outputs.logits.log_softmax(-1) for outputs in (first, second))
    gap = second.logits - first.logits
    rows, mean = len(first.counts), float(first.counts.mean())
    changes = second.losses - first.losses
    change = float(changes.sum() / first.counts.sum())
    spread = float((changes - change * first.counts).std() / mean) / rows**0.5 if rows > 1 else 0.0
    return AgreementReport(
        rows=rows,
        targets=len(gap),
        largest=float(gap.abs().max()),
        mean=float(gap.abs().mean()),
        rms=rms(gap),
        kl=max(0.0, float((one.exp() * (one - other)).sum(-1).mean())),
        same_top=float((one.argmax(-1) == other.argmax(-1)).float().mean()),
        loss_first=first.loss,
        loss_second=second.loss,
        loss_change=(change, change - 1.96 * spread, change + 1.96 * spread),
    )


def rms(values: torch.Tensor) -> float:
    """Return the root of the mean square."""
    return float(values.double().square().mean().sqrt())


def first_rows(dataset: Dataset, count: int) -> tuple[str, Sequence[TokenRow]]:
    """Return the name of the part with rows that were not trained on, where there is one, and its first rows."""
    parts = {"evaluation": dataset.evaluation, "test": dataset.test, "train": dataset.train}
    name = next(name for name, rows in parts.items() if rows)
    return name, parts[name][:count]
