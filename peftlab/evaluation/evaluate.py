"""Metrics of a model on the evaluation rows of a data set, alone or together with other processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from peftlab.data.batches import collate, evaluation_batches
from peftlab.data.dataset import Dataset
from peftlab.errors import DataError
from peftlab.evaluation.generate import evaluation_mode, generate_text
from peftlab.evaluation.metrics import (
    CLASS_METRICS,
    LOSS_METRICS,
    TEXT_METRICS,
    score_classes,
    score_texts,
)
from peftlab.loss import sum_loss, supervised_scores
from peftlab.recipe.schema import Evaluation

Gather = Callable[[list[Any]], list[Any]]
Autocast = Callable[[], AbstractContextManager]


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    settings: Evaluation,
    *,
    tokenizer: Any,
    task: str,
    device: torch.device | str,
    batch_size: int,
    autocast: Autocast = nullcontext,
    gather: Gather | None = None,
    process: int = 0,
    processes: int = 1,
) -> dict[str, float]:
    """Return the metrics that `settings` names; empty without evaluation rows. Modes and random state stay.

    The loss is the sum over all supervised tokens (or rows) by their number. Text metrics come from the first
    `generation.rows` prompts. With several processes each takes its part of the batches, and `gather` joins
    their lists (as accelerate's `gather_object` does); every process returns the same. Raises DataError for a
    text metric where no row has a prompt.
    """
    if not dataset.evaluation:
        return {}
    wanted = settings.metrics
    gather = gather or (lambda items: items)
    results: dict[str, float] = {}
    if set(wanted) & {*LOSS_METRICS, *CLASS_METRICS}:
        batches = evaluation_batches(dataset.evaluation, batch_size, process=process, processes=processes)
        with evaluation_mode(model), torch.no_grad(), autocast():
            measured = _measure(model, dataset, batches, device, classes=task == "sequence-classification")
        results |= _summarise(sorted(gather(measured)), dataset, wanted)
    if set(wanted) & set(TEXT_METRICS):
        prompts = dataset.prompts[: settings.generation.rows]
        if not prompts:
            raise DataError("evaluation.metrics: text metrics need evaluation rows with a prompt and its answer")
        mine = list(range(process, len(prompts), processes))
        ids = [prompts[i].input_ids for i in mine]
        outputs = generate_text(model, tokenizer, ids, settings.generation, batch_size, autocast=autocast)
        answers = [text for _, text in sorted(gather(list(zip(mine, outputs, strict=True))))]
        results |= score_texts(answers, [prompt.references for prompt in prompts], wanted)
    return {name: results[name] for name in wanted}


# One batch: its number, its rows, the summed loss, what that is a sum over, and the predicted classes.
Measured = tuple[int, list[int], float, int, list[int]]


def _measure(
    model: nn.Module,
    dataset: Dataset,
    batches: Sequence[tuple[int, list[int]]],
    device: torch.device | str,
    *,
    classes: bool,
) -> list[Measured]:
    sums, counts, predictions = [], [], []
    for _, rows in batches:
        batch = collate([dataset.evaluation[row] for row in rows], dataset.pad_id)
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        scores, targets = supervised_scores(model, batch)
        sums.append(sum_loss(scores, targets))
        counts.append(len(targets))
        predictions.append(scores.argmax(-1) if classes else scores.new_empty(0))
    # Read only now, so that the device is not waited for after every batch.
    return [
        (number, rows, loss_sum.item(), count, predicted.tolist())
        for (number, rows), loss_sum, count, predicted in zip(batches, sums, counts, predictions, strict=True)
    ]


def _summarise(measured: Sequence[Measured], dataset: Dataset, wanted: Sequence[str]) -> dict[str, float]:
    """Return loss, perplexity and class metrics; exactly the same however the batches were spread."""
    loss = math.fsum(one[2] for one in measured) / sum(one[3] for one in measured)
    results = {"loss": loss, "perplexity": _exp(loss)}
    if set(wanted) & set(CLASS_METRICS):
        predictions = [predicted for one in measured for predicted in one[4]]
        references = [dataset.evaluation[row].labels for one in measured for row in one[1]]
        results |= score_classes(predictions, references, wanted)
    return results


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
