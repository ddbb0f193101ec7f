"""The scores of each held-out row by itself, from which every metric and every paired statistic is computed."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import torch
from torch import nn

from peftlab.data.batches import collate, evaluation_batches
from peftlab.data.dataset import Dataset
from peftlab.data.token_arrays import sizes_of
from peftlab.data.token_rows import TokenRow
from peftlab.evaluation.generate import evaluation_mode
from peftlab.losses.base import Loss
from peftlab.metrics import RowScores
from peftlab.metrics.tokens import BYTES, WORDS, count_text
from peftlab.tasks.base import LIKELY
from peftlab.world.base import World


def score_rows(
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
) -> RowScores:
    """Return the scores of `rows` in their order, exactly the same however they are spread over processes.

    `columns` are those that metrics read; how many words and bytes a row has is counted only where they are named.
    `threshold` is the probability above which one label of several is predicted.
    """
    batches = evaluation_batches(rows, batch_size, process=world.process, processes=world.processes)
    fillers = count_fillers(len(batches), world)
    measured = []
    with evaluation_mode(model), torch.no_grad(), world.autocast(precision):
        for _, numbers in batches:
            batch = world.move(collate([rows[i] for i in numbers], dataset.pad_id))
            measured.append(loss.rows(model, batch, [rows[i].supervised for i in numbers]))
        for _ in range(fillers):
            shortest = rows[int(sizes_of(rows).tokens.argmin())]
            loss.rows(model, world.move(collate([shortest], dataset.pad_id)), [shortest.supervised])
    # Read only now, so that the device is not waited for after every batch.
    mine: list[tuple[int, float, tuple[float, ...]]] = []
    for (_, numbers), (losses, predictions) in zip(batches, measured, strict=True):
        classes = iter([] if predictions is None else predictions.tolist())
        for row, value in zip(numbers, losses.tolist(), strict=True):
            own = [] if predictions is None else [next(classes) for _ in range(rows[row].supervised)]
            mine.append((row, value, dataset.task.score_row(rows[row], own, dataset.labels, threshold)))
    everyone = sorted(world.gather(mine))
    found = zip(*(values for _, _, values in everyone), strict=True)
    known = {name: list(column) for name, column in zip(dataset.task.name_columns(dataset.labels), found, strict=True)}
    if columns & {WORDS, BYTES}:
        known |= count_texts(rows, tokenizer)
    return RowScores(
        [value for _, value, _ in everyone],
        [row.supervised for row in rows],
        known.pop("prediction", None),
        known.pop("label", None),
        dict(known),
        len(dataset.labels) if dataset.labels is not None else None,
    )


def count_fillers(batches: int, world: World) -> int:
    """Return the passes that this process makes for the others' sake: all make as many where weights are divided."""
    return world.highest(batches) - batches if world.divided else 0


def count_texts(rows: Sequence[TokenRow], tokenizer: Any) -> dict[str, list[int]]:
    """Return how many words and bytes the supervised text of each row has, without special tokens."""
    counts = []
    for row in rows:
        ids = row.tokens[row.supervised_tokens].tolist()
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        counts.append(count_text(text))
    return {name: [count[name] for count in counts] for name in (WORDS, BYTES)}
