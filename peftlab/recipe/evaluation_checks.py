"""Settings of a recipe's evaluation that contradict one another, or have nothing to evaluate."""

from __future__ import annotations

import re

from peftlab.metrics import names_that_need
from peftlab.recipe.check import Check, Found, checks_into
from peftlab.recipe.data_checks import name_formats
from peftlab.recipe.schema import Recipe
from peftlab.tasks import TASKS, possible_formats

EVALUATION_CHECKS: list[Check] = []
reads = checks_into(EVALUATION_CHECKS)
GENERATION_METRICS = set(names_that_need("texts"))


@reads("model.task", "data.format", "evaluation.metrics")
def metrics_suit_task(recipe: Recipe) -> Found:
    task, asked = recipe.task, list(dict.fromkeys(recipe.evaluation.metrics))
    known = names_that_need(*task.gives)
    misfits = [metric for metric in asked if metric not in known]
    if misfits:
        owners = [other.name for other in TASKS.values() if set(misfits) <= set(names_that_need(*other.gives))]
        needed = f"only for task {' or '.join(owners)}, " if owners else ""
        yield "evaluation.metrics", f"{', '.join(misfits)}: {needed}not {task.name}"
    generated = [metric for metric in asked if metric in GENERATION_METRICS & set(known)]
    suiting = [one for one in possible_formats(task, recipe.data.format) if one in task.formats]
    if generated and suiting and not any(one.prompts for one in suiting):
        fault = f"format {name_formats(recipe)} has no answer to compare with"
        yield "evaluation.metrics", f"{', '.join(generated)}: {fault}"


@reads("evaluation.metrics")
def metrics_named_once(recipe: Recipe) -> Found:
    metrics = recipe.evaluation.metrics
    if not metrics:
        yield "evaluation.metrics", "an empty list measures nothing; set at least loss"
    for metric in sorted({metric for metric in metrics if metrics.count(metric) > 1}):
        yield "evaluation.metrics", f"{metric} is named twice"


@reads("evaluation.texts", "evaluation.metrics")
def extraction_is_a_pattern(recipe: Recipe) -> Found:
    pattern = recipe.evaluation.texts.extract
    if pattern is None:
        return
    try:
        re.compile(pattern)
    except re.error as error:
        yield "evaluation.texts.extract", f"not a regular expression: {error}"


@reads("model.task", "data.evaluation", "data.evaluation_rows", "data.test", "evaluation.every", "evaluation.metrics")
def evaluation_has_rows(recipe: Recipe) -> Found:
    if recipe.data.evaluation is not None:
        return
    remedy = "there are no evaluation rows; set data.evaluation"
    if recipe.evaluation.every is not None:
        yield "evaluation.every", remedy
    if recipe.evaluation.metrics not in ((), ("loss",), recipe.task.usual_metrics) and recipe.data.test is None:
        yield "evaluation.metrics", remedy
    if recipe.data.evaluation_rows is not None:
        yield "data.evaluation_rows", remedy


@reads("evaluation.best", "evaluation.metrics", "evaluation.patience", "evaluation.every", "run.keep")
def best_step_is_evaluated(recipe: Recipe) -> Found:
    evaluation, keep = recipe.evaluation, recipe.run.keep
    wanted = [("evaluation.patience", evaluation.patience is not None), ("run.keep", keep != "last")]
    asked = [key for key, is_set in wanted if is_set]
    for key in asked:
        if evaluation.every is None:
            yield key, "chooses among evaluations during training; set evaluation.every"
    if evaluation.best not in evaluation.metrics and (asked or evaluation.best != "loss"):
        yield "evaluation.best", f"{evaluation.best} is not one of evaluation.metrics; add it there"


@reads("evaluation.generation.temperature", "evaluation.generation.top_p")
def nucleus_needs_temperature(recipe: Recipe) -> Found:
    generation = recipe.evaluation.generation
    if generation.top_p < 1 and generation.temperature == 0:
        yield (
            "evaluation.generation.top_p",
            "has no effect while temperature is 0, which takes the likeliest token",
        )
