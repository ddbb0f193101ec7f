"""How far two models agree on the same rows: their logits, their likeliest classes, their losses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from peftlab.data.batches import collate, evaluation_batches
from peftlab.data.dataset import Dataset
from peftlab.data.token_rows import TokenRow
from peftlab.evaluation.generate import evaluation_mode
from peftlab.evaluation.resampling import LEAST_ROWS, draw_metric
from peftlab.evaluation.scores import Scored, join_scores, score_batch
from peftlab.losses.base import Loss
from peftlab.metrics import METRICS, RowScores
from peftlab.reports import AgreementReport, MetricChange
from peftlab.tasks.base import LIKELY
from peftlab.world.base import World

# Logits of one model that are kept in memory, whatever the number of rows.
MOST_BYTES = 512 * 2**20
# Targets that are compared at once, so that what a comparison takes beside the logits does not grow with their number.
BLOCK = 64


@dataclass(frozen=True)
class Outputs:
    """A model's logits at the targets of some rows, (targets, classes) in float32, and the scores of these rows.

    `texts` are the scores of its answers to prompts, where it has answered some.
    """

    logits: torch.Tensor
    scores: RowScores
    texts: RowScores | None = None

    def scores_for(self, metric: str) -> RowScores | None:
        """Return the scores that a metric is made of; None without them."""
        return self.scores if METRICS[metric].texts is None else self.texts


def collect_outputs(
    model: nn.Module,
    rows: Sequence[TokenRow],
    dataset: Dataset,
    *,
    loss: Loss,
    world: World,
    precision: torch.dtype,
    batch_size: int,
    tokenizer: Any = None,
    columns: Set[str] = frozenset(),
    threshold: float = LIKELY,
) -> Outputs:
    """Return a model's outputs on `rows`, of which the last are left out where their logits would take too much.

    Two models of one vocabulary get the same rows. `tokenizer`, `columns` and `threshold` are those of `score_rows`.
    """
    logits: list[torch.Tensor] = []
    scored: list[Scored] = []
    taken = 0
    with evaluation_mode(model), torch.no_grad(), world.autocast(precision):
        for _, numbers in evaluation_batches(rows, batch_size):
            batch = world.move(collate([rows[i] for i in numbers], dataset.pad_id))
            own = [rows[i].supervised for i in numbers]
            scores = loss.scores(model, batch)
            scored += score_batch(loss.rows_of(scores, batch, own), numbers, rows, dataset, threshold)
            logits.append(scores.float().cpu())
            taken += logits[-1].numel() * logits[-1].element_size()
            if taken > MOST_BYTES:
                break
    return Outputs(torch.cat(logits), join_scores(scored, rows, dataset, tokenizer=tokenizer, columns=columns))


def compare_outputs(first: Outputs, second: Outputs, metrics: Sequence[str] = ()) -> AgreementReport:
    """Return how far `second` is from `first`, with `metrics` of these rows.

    `kl` is the mean Kullback-Leibler divergence of `second` from `first`, in nats a target. Intervals of changes are
    95 % of drawings of the same rows for both (the paired bootstrap); fewer than six rows give none. A metric without a
    value here is left out.
    """
    targets, classes = first.logits.shape
    blocks = zip(first.logits.split(BLOCK), second.logits.split(BLOCK), strict=True)
    found = torch.stack([_compare_block(*block) for block in blocks])
    absolute, squares, kl, same = found[:, 1:].sum(0).tolist()
    loss = compare_metric("loss", first.scores, second.scores)
    assert loss is not None, "every row has a loss"
    scored = {name: (first.scores_for(name), second.scores_for(name)) for name in metrics if name != "loss"}
    others = {name: compare_metric(name, *both) for name, both in scored.items()}
    return AgreementReport(
        rows=first.scores.rows,
        targets=targets,
        largest=float(found[:, 0].max()),
        mean=absolute / (targets * classes),
        rms=(squares / (targets * classes)) ** 0.5,
        kl=max(0.0, kl / targets),
        same_top=same / targets,
        loss_first=loss.first,
        loss_second=loss.second,
        loss_change=loss.change,
        metrics={name: found for name, found in others.items() if found is not None},
    )


def compare_metric(name: str, first: RowScores | None, second: RowScores | None) -> MetricChange | None:
    """Return a metric of two models on the same rows, and its change; None where it has no value."""
    if first is None or second is None or not METRICS[name].suits(first):
        return None
    drawn = draw_metric(name, [first, second])
    one, other = drawn.values.tolist()
    if name != "loss" and not np.isfinite(drawn.values).all():
        return None
    assert drawn.replicates is not None, "it is drawn from rows"
    if drawn.rows < LEAST_ROWS:
        return MetricChange(first=one, second=other, change=(other - one, None, None))
    low, high = np.quantile(np.diff(drawn.replicates, axis=1), (0.025, 0.975)).tolist()
    return MetricChange(first=one, second=other, change=(other - one, low, high))


def _compare_block(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return of some targets' logits the largest difference and the sums of differences, squares, KL, equal classes."""
    gap = (second - first).abs()
    one, other = first.log_softmax(-1), second.log_softmax(-1)
    kl = (one.exp() * (one - other)).sum()
    same = (one.argmax(-1) == other.argmax(-1)).sum()
    sums = (gap.sum(dtype=torch.float64), gap.double().square().sum(), kl, same)
    return torch.stack([value.double() for value in (gap.max(), *sums)])


def rms(logits: torch.Tensor, minus: torch.Tensor | None = None) -> float:
    """Return the root of the mean square of logits (targets, classes), or of their difference from `minus`."""
    blocks: Iterable[torch.Tensor] = logits.split(BLOCK)
    if minus is not None:
        blocks = (one - other for one, other in zip(blocks, minus.split(BLOCK), strict=True))
    return float(sum(block.double().square().sum().item() for block in blocks) / logits.numel()) ** 0.5


def first_rows(dataset: Dataset, count: int) -> tuple[str, Sequence[TokenRow]]:
    """Return the name of the part with rows that were not trained on, where there is one, and its first rows."""
    parts = {"evaluation": dataset.evaluation, "test": dataset.test, "train": dataset.train}
    name = next(name for name, rows in parts.items() if rows)
    return name, parts[name][:count]
