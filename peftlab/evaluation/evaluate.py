"""Metrics of a model on the held-out rows of a data set, alone or together with other processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peftlab.data.dataset import Dataset, Part
from peftlab.errors import DataError
from peftlab.evaluation.generate import PLAIN, answer_prompts
from peftlab.evaluation.scores import score_rows
from peftlab.losses.base import Loss
from peftlab.methods import Prompting
from peftlab.metrics import METRICS, RowScores, names_that_need
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
) -> tuple[dict[str, float], RowScores | None]:
    """Return the metrics that `settings` names on one part of the data, and the scores of each of its rows.

    Empty and None without rows. Modes and random state stay. The loss is the sum over all targets by their number.
    Text metrics come from the first `generation.rows` prompts. With several processes each takes its part of the
    batches; every process returns the same. Raises DataError for a text metric where no row has a prompt.
    """
    rows, prompts = dataset.held_out(part)
    if not rows:
        return {}, None
    wanted = settings.metrics if part != "general" else names_that_need("loss", "next_tokens")
    scores = score_rows(
        model,
        rows,
        dataset,
        loss=loss,
        world=world,
        precision=precision,
        batch_size=batch_size,
        threshold=settings.threshold,
    )
    texts = [name for name in wanted if METRICS[name].needs == "texts"]
    results = {name: METRICS[name].of_rows(scores) for name in wanted if name not in texts}
    if texts:
        prompts = prompts[: settings.generation.rows]
        if not prompts:
            raise DataError(f"evaluation.metrics: text metrics need {part} rows with a prompt and its answer")
        mine = list(range(world.process, len(prompts), world.processes))
        outputs = answer_prompts(
            model,
            tokenizer,
            [prompts[i] for i in mine],
            dataset,
            settings,
            batch_size=batch_size,
            prompting=prompting,
            autocast=lambda: world.autocast(precision),
        )
        answers = [text for _, text in sorted(world.gather(list(zip(mine, outputs, strict=True))))]
        references = [prompt.references for prompt in prompts]
        results |= {name: METRICS[name].of_texts(answers, references) for name in texts}
    return {name: results[name] for name in wanted}, scores
