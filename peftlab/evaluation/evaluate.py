"""Metrics of a model on the held-out rows of a data set, alone or together with other processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from peftlab.data.dataset import Dataset, Part
from peftlab.errors import DataError
from peftlab.evaluation.generate import PLAIN, generate_text
from peftlab.evaluation.metrics import (
    CLASS_METRICS,
    LOSS_METRICS,
    SPAN_METRICS,
    TEXT_METRICS,
    score_classes,
    score_spans,
    score_texts,
)
from peftlab.evaluation.scores import Scores, score_rows
from peftlab.losses.base import Loss
from peftlab.methods import Prompting
from peftlab.recipe.schema import Evaluation
from peftlab.world.base import World


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    settings: Evaluation,
    *,
    part: Part = "evaluation",
    loss: Loss,
    tokenizer: Any,
    world: World,
    precision: torch.dtype = torch.float32,
    batch_size: int,
    prompting: Prompting = PLAIN,
) -> tuple[dict[str, float], Scores | None]:
    """Return the metrics that `settings` names on one part of the data, and the scores of each of its rows.

    Empty and None without rows. Modes and random state stay. The loss is the sum over all targets by their number.
    Text metrics come from the first `generation.rows` prompts. With several processes each takes its part of the
    batches; every process returns the same. Raises DataError for a text metric where no row has a prompt.
    """
    rows, prompts = dataset.held_out(part)
    if not rows:
        return {}, None
    wanted = settings.metrics if part != "general" else LOSS_METRICS
    scores = score_rows(model, rows, dataset, loss=loss, world=world, precision=precision, batch_size=batch_size)
    results = summarise(scores, wanted)
    if set(wanted) & set(TEXT_METRICS):
        prompts = prompts[: settings.generation.rows]
        if not prompts:
            raise DataError(f"evaluation.metrics: text metrics need {part} rows with a prompt and its answer")
        mine = list(range(world.process, len(prompts), world.processes))
        ids = [prompts[i].input_ids for i in mine]
        outputs = generate_text(
            model,
            tokenizer,
            ids,
            settings.generation,
            batch_size,
            prompting=prompting,
            autocast=lambda: world.autocast(precision),
        )
        answers = [text for _, text in sorted(world.gather(list(zip(mine, outputs, strict=True))))]
        results |= score_texts(answers, [prompt.references for prompt in prompts], wanted)
    return {name: results[name] for name in wanted}, scores


def summarise(scores: Scores, wanted: Sequence[str]) -> dict[str, float]:
    """Return loss, perplexity and the wanted metrics of classes or spans of scored rows."""
    results = {"loss": scores.mean_loss, "perplexity": _exp(scores.mean_loss)}
    if set(wanted) & set(CLASS_METRICS):
        results |= score_classes(scores.columns["prediction"], scores.columns["label"], wanted)
    if set(wanted) & set(SPAN_METRICS):
        results |= score_spans(scores.columns, wanted)
    return results


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
