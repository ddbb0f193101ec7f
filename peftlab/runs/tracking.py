"""What a run tells its experiment trackers besides its curves: what it is, and how it ended."""

from __future__ import annotations

import json
from typing import Any

from peftlab.nested import flatten
from peftlab.quantities import format_bytes
from peftlab.reports import RunResult
from peftlab.runs.record import RunRecord
from peftlab.secrets import mask_secrets
from peftlab.training.trackers import Trackers


def report_start(record: RunRecord, trackers: Trackers) -> None:
    """Tell the recipe, what trains, the memory that is predicted, versions and device."""
    result = record.result
    facts: dict[str, Any] = flatten(result.recipe)
    if result.parameters:
        facts |= {"parameters.trainable": result.parameters.trainable, "parameters.total": result.parameters.total}
    if predicted := result.memory.get("predicted"):
        facts["memory.predicted_peak_bytes"] = predicted.peak_bytes
    facts |= {f"versions.{name}": version for name, version in result.environment["versions"].items()}
    facts["device"] = result.environment["device"]
    trackers.describe({name: plain(value) for name, value in facts.items()})


def report_end(record: RunRecord, trackers: Trackers) -> None:
    """Tell the metrics before and after, peak memory and seconds, and the generated examples."""
    result, step = record.result, record.result.progress.step
    numbers: dict[str, float] = {f"final/{name}": value for name, value in metrics_of(result).items()}
    numbers |= {f"final/seconds.{name}": seconds for name, seconds in result.seconds.items()}
    if measured := result.memory.get("measured"):
        numbers["final/memory.peak_bytes"] = measured.peak_bytes
    trackers.log(numbers, step)
    texts = {f"examples/{number}": write_example(one) for number, one in enumerate(result.examples, start=1)}
    trackers.write(texts | {"summary": summarise(record)}, step)


def metrics_of(result: RunResult) -> dict[str, float]:
    """Return the metrics that have a value, as `after.loss`."""
    return {name: value for name, value in flatten(result.metrics).items() if isinstance(value, int | float)}


def plain(value: Any) -> Any:
    """Return a value as trackers take it: lists and the like as JSON, texts without secrets."""
    if isinstance(value, str):
        return mask_secrets(value)
    return value if value is None or isinstance(value, (bool, int, float)) else mask_secrets(json.dumps(value))


def write_example(example: dict[str, str]) -> str:
    """Return one generated example as Markdown."""
    return "\n\n".join(f"**{name}**\n\n{text}" for name, text in example.items())


def summarise(record: RunRecord) -> str:
    """Return the run's result in a few lines of Markdown."""
    result = record.result
    lines = [f"- method: {record.recipe.method.title}"]
    if result.parameters:
        lines.append(f"- trainable: {result.parameters.trainable:,} of {result.parameters.total:,}")
    if measured := result.memory.get("measured"):
        lines.append(f"- peak memory: {format_bytes(measured.peak_bytes)}")
    lines += [f"- {name}: {value:.6g}" for name, value in metrics_of(result).items()]
    return "\n".join([*lines, *(f"- {note}" for note in result.notes)])
