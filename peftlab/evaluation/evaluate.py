"""Metrics of a model on the held-out rows of a data set, alone or together with other processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from peftlab.data.dataset import Dataset, Part
from peftlab.data.prompts import Prompt
from peftlab.errors import DataError
from peftlab.evaluation.generate import PLAIN, Answer, answer_prompts, split_prompts
from peftlab.evaluation.scores import score_rows
from peftlab.evaluation.texts import ScoredTexts, score_texts
from peftlab.losses.base import Loss
from peftlab.methods import Prompting
from peftlab.metrics import METRICS, RowScores, names_that_need
from peftlab.recipe.schema import Evaluation
from peftlab.reports import Metrics
from peftlab.world.base import World


@dataclass(frozen=True)
class Evaluated:
    """What was measured on one part of the data: metrics, the reasons for those that are None, and scores by row."""

    metrics: Metrics = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)
    scores: RowScores | None = None
    texts: ScoredTexts | None = None

    @property
    def signatures(self) -> dict[str, str]:
        """The settings of the metrics of generated text."""
        return self.texts.signatures if self.texts else {}


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
) -> Evaluated:
    """Return the metrics that `settings` names on one part of the data, and the scores of each of its rows.

    Empty without rows. Modes and random state stay. The loss is the sum over all targets by their number.
    Text metrics come from the first `generation.rows` prompts. With several processes each takes its part of the
    batches; every process returns the same. Raises DataError for a text metric where no row has a prompt.
    """
    rows, prompts = dataset.held_out(part)
    if not rows:
        return Evaluated()
    wanted = settings.metrics if part != "general" else general_metrics(settings)
    texts = [name for name in wanted if METRICS[name].texts is not None]
    if texts and not prompts:
        raise DataError(f"evaluation.metrics: text metrics need {part} rows with a prompt and its answer")
    columns = {column for name in wanted if name not in texts for column in METRICS[name].columns}
    scores = score_rows(
        model,
        rows,
        dataset,
        loss=loss,
        world=world,
        precision=precision,
        batch_size=batch_size,
        tokenizer=tokenizer,
        columns=columns,
        threshold=settings.threshold,
    )
    scored = None
    if texts:
        scored = score_answers(
            model,
            texts,
            prompts[: settings.generation.rows],
            dataset,
            settings,
            tokenizer=tokenizer,
            world=world,
            precision=precision,
            batch_size=batch_size,
            prompting=prompting,
        )
    values = {name: METRICS[name].of_rows(scored.scores if scored and name in texts else scores) for name in wanted}
    undefined = {name: METRICS[name].undefined for name, value in values.items() if is_undefined(name, value)}
    metrics = {name: None if name in undefined else value for name, value in values.items()}
    return Evaluated(metrics, undefined, scores, scored)


def score_answers(
    model: nn.Module,
    names: Sequence[str],
    prompts: Sequence[Prompt],
    dataset: Dataset,
    settings: Evaluation,
    *,
    tokenizer: Any,
    world: World,
    precision: torch.dtype,
    batch_size: int,
    prompting: Prompting,
) -> ScoredTexts:
    """Return the scores of a model's answers to `prompts` by the metrics of texts `names`.

    Processes share the batches. Each has a seed of its own, so that an answer is the same however they are shared.
    """
    batches = split_prompts(model, [prompt.input_ids for prompt in prompts], batch_size, prompting)
    mine: list[tuple[int, Answer]] = []
    for number in world.own_share(len(batches)):
        answers = answer_prompts(
            model,
            tokenizer,
            [prompts[i] for i in batches[number]],
            dataset,
            settings,
            batch_size=batch_size,
            prompting=prompting,
            autocast=lambda: world.autocast(precision),
            seed=number,
        )
        mine += zip(batches[number], answers, strict=True)
    everyone = [answer for _, answer in sorted(dict(world.gather(mine)).items())]
    return score_texts(names, prompts, everyone, settings.texts)


def is_undefined(name: str, value: float) -> bool:
    """Return whether a metric has no value; a loss that is NaN has one, and says that the model diverged."""
    return math.isnan(value) and METRICS[name].undefined != ""


def general_metrics(settings: Evaluation) -> list[str]:
    """Return the metrics of general text: loss and perplexity, and others of next tokens that `settings` names."""
    plain = METRICS["loss"].columns
    known = names_that_need("loss", "next_tokens")
    return [name for name in known if METRICS[name].columns == plain or name in settings.metrics]
