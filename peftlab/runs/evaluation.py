"""The evaluation stage: metrics, scores and generated examples of a run, before and after training."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

from peftlab.data.dataset import Part
from peftlab.errors import DivergedError
from peftlab.runs.bench import Bench
from peftlab.runs.record import RunRecord
from peftlab.training.recorder import Recorder

When = Literal["before", "after"]
# Each part of the held-out data, and the prefix of `before` and `after` in the names of its metrics.
PARTS: dict[Part, str] = {"evaluation": "", "test": "test_", "general": "general_"}


def evaluate_parts(
    record: RunRecord, recorder: Recorder, bench: Bench, model: nn.Module, when: When, step: int
) -> None:
    """Evaluate every part of the held-out data; add its metrics, scores and examples to the record.

    Raises DivergedError for a loss that is not finite.
    """
    for part, prefix in PARTS.items():
        metrics, scores = bench.evaluate(model, part)
        if scores is None:
            continue
        record.result.metrics[prefix + when] = metrics
        refuse_not_finite(metrics, part, when)
        if part == "evaluation":
            recorder.log_evaluation(step, metrics)
        if record.world.is_main:
            record.directory.add_scores(prefix + when, scores.dump())
    if bench.dataset.prompts and record.world.is_main:
        keep_examples(record, bench.generate_examples(model), when)


def keep_examples(record: RunRecord, examples: list[dict[str, str]], when: When) -> None:
    """Add generated examples to those of the other evaluation."""
    kept = record.result.examples or [{"prompt": e["prompt"], "reference": e["reference"]} for e in examples]
    record.result.examples = [old | {when: new["output"]} for old, new in zip(kept, examples, strict=True)]


def refuse_not_finite(metrics: dict[str, float], part: Part, when: When) -> None:
    """Raise DivergedError for a loss of the held-out rows of `part` that is not finite."""
    loss = metrics.get("loss", 0.0)
    if math.isfinite(loss):
        return
    if when == "before":
        remedy = "before any step: the base model's weights or these rows are damaged; download or create them again"
    else:
        remedy = "after training, which diverged in its last steps; lower training.learning_rate"
    raise DivergedError(f"data.{part}: the loss of its rows is {loss:g} {remedy}")
