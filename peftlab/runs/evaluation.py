"""The evaluation stage: metrics, scores and generated examples of a run, before and after training."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import nn

from peftlab.data.dataset import Part
from peftlab.errors import DivergedError
from peftlab.evaluation.evaluate import Evaluated
from peftlab.reports import Metrics
from peftlab.runs.base_figures import open_base_figures
from peftlab.runs.bench import Bench
from peftlab.runs.directory import text_scores
from peftlab.runs.record import RunRecord
from peftlab.runs.scores import add_scores
from peftlab.training.recorder import Recorder

When = Literal["before", "after"]
# Each part of the held-out data, and the prefix of `before` and `after` in the names of its metrics.
PARTS: dict[Part, str] = {"evaluation": "", "test": "test_", "general": "general_"}


class Source(Protocol):
    """Where the figures of an evaluation are from."""

    def evaluate(self, part: Part) -> Evaluated: ...

    def generate(self) -> list[dict[str, str]]: ...


@dataclass(frozen=True)
class Measuring:
    """Evaluates a model on the data of a bench."""

    bench: Bench
    model: nn.Module

    def evaluate(self, part: Part) -> Evaluated:
        return self.bench.evaluate(self.model, part)

    def generate(self) -> list[dict[str, str]]:
        return self.bench.generate_examples(self.model)


def evaluate_base(record: RunRecord, recorder: Recorder, bench: Bench) -> None:
    """Evaluate the base, or take its figures from an earlier run that measured the same."""
    figures = open_base_figures(bench, record.result.environment)
    if figures.found:
        record.note("the base's figures are those of an earlier run with the same base, rows and settings")
    evaluate_parts(record, recorder, bench, figures, "before", 0)
    figures.keep()


def evaluate_trained(
    record: RunRecord, recorder: Recorder, bench: Bench, model: nn.Module, scored: Collection[str]
) -> None:
    """Evaluate the trained model, unless an earlier attempt did; log its metrics where that one lost their line."""
    step, metrics = record.kept_step, record.result.metrics.get("after")
    if not is_evaluated(record, bench, "after", scored):
        with record.in_phase("evaluation_after"):
            evaluate_parts(record, recorder, bench, Measuring(bench, model), "after", step)
    elif metrics and not recorder.has_evaluation(step):
        recorder.log_evaluation(step, metrics)


def evaluate_parts(record: RunRecord, recorder: Recorder, bench: Bench, source: Source, when: When, step: int) -> None:
    """Evaluate every part of the held-out data; add its metrics, scores and examples to the record.

    Raises DivergedError for a loss that is not finite.
    """
    for part, prefix in PARTS.items():
        found = source.evaluate(part)
        if found.scores is None:
            continue
        keep_metrics(record, found, prefix + when)
        refuse_not_finite(found.metrics, part, when)
        if part == "evaluation":
            recorder.log_evaluation(step, found.metrics)
        if record.world.is_main:
            write_scores(record, found, prefix + when)
    if bench.dataset.prompts and record.world.takes_part:
        keep_examples(record, source.generate(), when)


def keep_metrics(record: RunRecord, found: Evaluated, when: str) -> None:
    """Add metrics, the reasons for those without a value, and the settings of text metrics to the record."""
    result = record.result
    result.metrics[when] = found.metrics
    result.undefined.pop(when, None)
    if found.undefined:
        result.undefined[when] = found.undefined
    result.signatures |= found.signatures


def write_scores(record: RunRecord, found: Evaluated, when: str) -> None:
    """Write the scores of rows, and the generated texts with theirs."""
    assert found.scores is not None, "written only where there are rows"
    add_scores(record.directory.scores, when, found.scores)
    if found.texts is not None:
        add_scores(record.directory.scores, text_scores(when), found.texts.scores)
        record.directory.add_generations(when, found.texts.rows)


def is_evaluated(record: RunRecord, bench: Bench, when: When, scored: Collection[str]) -> bool:
    """Return whether an earlier attempt has the metrics, and in `scored` the row scores, of every part of the data.

    And the generated examples, which are made last.
    """
    names = [prefix + when for part, prefix in PARTS.items() if bench.dataset.held_out(part)[0]]
    wanted, metrics = set(bench.recipe.evaluation.metrics), record.result.metrics
    complete = all(wanted <= metrics.get(name, {}).keys() for name in names if not name.startswith("general"))
    complete = complete and all(name in metrics and name in scored for name in names)
    shown = bench.recipe.evaluation.generation.examples and bench.dataset.prompts
    return complete and (not shown or any(when in one for one in record.result.examples))


def keep_examples(record: RunRecord, examples: list[dict[str, str]], when: When) -> None:
    """Add generated examples to those of the other evaluation."""
    kept = {(one.get("prompt"), one.get("reference")): one for one in record.result.examples}
    record.result.examples = [
        {"prompt": new["prompt"], "reference": new["reference"]}
        | kept.get((new["prompt"], new["reference"]), {})
        | {when: new["output"]}
        for new in examples
    ]


def refuse_not_finite(metrics: Metrics, part: Part, when: When) -> None:
    """Raise DivergedError for a loss of the held-out rows of `part` that is not finite."""
    loss = metrics.get("loss", 0.0)
    if loss is None or math.isfinite(loss):
        return
    if when == "before":
        remedy = "before any step: the base model's weights or these rows are damaged; download or create them again"
    else:
        remedy = "after training, which diverged in its last steps; lower training.learning_rate"
    raise DivergedError(f"data.{part}: the loss of its rows is {loss:g} {remedy}")
