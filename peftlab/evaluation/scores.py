"""The scores of each held-out row by itself, from which every metric and every paired statistic is computed."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import nn

from peftlab.data.batches import collate, evaluation_batches
from peftlab.data.dataset import Dataset
from peftlab.data.token_arrays import sizes_of
from peftlab.data.token_rows import TokenRow
from peftlab.evaluation.byte_counts import count_bytes
from peftlab.evaluation.generate import evaluation_mode
from peftlab.losses.base import Loss, RowLosses
from peftlab.metrics import RowScores
from peftlab.metrics.tokens import BYTES, WORDS
from peftlab.tasks.base import LIKELY
from peftlab.world.base import World


class Scored(NamedTuple):
    """A row's number, its loss summed over its targets, and what metrics sum of it."""

    row: int
    loss: float
    values: tuple[float, ...]


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
    batches = evaluation_batches(rows, batch_size, process=world.row_process, processes=world.row_processes)
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
    mine = [
        one
        for (_, numbers), losses in zip(batches, measured, strict=True)
        for one in score_batch(losses, numbers, rows, dataset, threshold)
    ]
    return join_scores(world.gather_rows(mine), rows, dataset, tokenizer=tokenizer, columns=columns)


def score_batch(
    losses: RowLosses, numbers: Sequence[int], rows: Sequence[TokenRow], dataset: Dataset, threshold: float = LIKELY
) -> list[Scored]:
    """Return the scores of a batch, which has the rows of these numbers; it waits for the device."""
    classes = iter([] if losses.predictions is None else losses.predictions.tolist())
    scored = []
    for row, value in zip(numbers, losses.losses.tolist(), strict=True):
        own = [] if losses.predictions is None else [next(classes) for _ in range(rows[row].supervised)]
        scored.append(Scored(row, value, dataset.task.score_row(rows[row], own, dataset.labels, threshold)))
    return scored


def join_scores(
    scored: Sequence[Scored],
    rows: Sequence[TokenRow],
    dataset: Dataset,
    *,
    tokenizer: Any = None,
    columns: Set[str] = frozenset(),
) -> RowScores:
    """Return the scores of those of `rows` that were scored, in the order of their numbers, as columns."""
    ordered = sorted(scored)
    of_rows = [rows[one.row] for one in ordered]
    found = zip(*(one.values for one in ordered), strict=True)
    known = {name: list(column) for name, column in zip(dataset.task.name_columns(dataset.labels), found, strict=True)}
    if columns & {WORDS, BYTES}:
        known |= count_texts(of_rows, tokenizer)
    return RowScores(
        [one.loss for one in ordered],
        [row.supervised for row in of_rows],
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
    words = []
    for row in rows:
        ids = row.tokens[row.supervised_tokens].tolist()
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        words.append(len(text.split()))
    return {WORDS: words, BYTES: [count_bytes(row, tokenizer) for row in rows]}
