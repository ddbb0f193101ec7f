"""How a run in several processes differs from the run of the same recipe in one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from peftlab.reports import RunResult
from peftlab.runs.directory import RunDirectory
from peftlab.runs.scores import read_scores

# What a line of metrics has that depends on the machine.
MEASURED = {"tokens_per_second", "memory_bytes", "seconds", "seconds_left"}
# What a row scored that is not a rounded number.
COUNTED = {"count", "prediction", "label"}


@dataclass(frozen=True)
class Difference:
    """The largest relative differences of numbers, the largest one of a weight, and what else is not the same."""

    losses: float
    norms: float
    metrics: float
    scores: float
    weights: float
    unequal: tuple[str, ...]


def compare(one: Path, two: Path) -> Difference:
    """Return how the finished run in the folder `two` differs from that in `one`."""
    results = [RunDirectory.open(folder).read_result() for folder in (one, two)]
    lines, scores = [lines_of(folder) for folder in (one, two)], [list(scored(folder)) for folder in (one, two)]
    weights = [weights_of(folder) for folder in (one, two)]
    evaluated = [[line for line in found if line["event"] == "evaluation"] for found in lines]
    metrics = [
        [*numbers_of(found), *numbers_of([result.metrics])] for found, result in zip(evaluated, results, strict=True)
    ]
    trained = [[line for line in found if line["event"] == "train"] for found in lines]
    return Difference(
        losses=relative(*([line["loss"] for line in found] for found in trained)),
        norms=relative(*([line["gradient_norm"] for line in found] for found in trained)),
        metrics=relative(*metrics),
        scores=relative(*([number for name, number in found if name not in COUNTED] for found in scores)),
        weights=farthest(*weights),
        unequal=tuple(unequal(results, lines, scores, weights)),
    )


def unequal(results: list[RunResult], lines: list, scores: list, weights: list) -> Iterator[str]:
    """Yield the name of each thing that must be the same and is not."""
    facts = [facts_of(result) for result in results]
    yield from (name for name, value in facts[0].items() if facts[1][name] != value)
    steps = [[(line["event"], line["step"], line.get("learning_rate")) for line in found] for found in lines]
    shapes = [{name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} for found in weights]
    counted = [[pair for pair in found if pair[0] in COUNTED] for found in scores]
    named = [[name for name, _ in found] for found in scores]
    for name, (ours, theirs) in {"lines": steps, "tensors": shapes, "predictions": counted, "columns": named}.items():
        if ours != theirs:
            yield name


def facts_of(result: RunResult) -> dict[str, Any]:
    """Return what a run says that does not depend on rounding; the audit's and the parameters' reports among it."""
    progress = result.progress.model_dump(exclude={"best_metric"})
    names = ("status", "parameters", "audit", "saved_step", "undefined", "signatures", "examples", "data")
    return {"progress": progress} | {name: getattr(result, name) for name in names}


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def numbers_of(value: Any) -> Iterator[float]:
    """Yield the numbers of a tree that do not depend on the machine, in the order of their keys."""
    if isinstance(value, dict):
        for key in sorted(value.keys() - MEASURED):
            yield from numbers_of(value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from numbers_of(item)
    elif isinstance(value, (int, float)):
        yield float(value)


def scored(run: Path) -> Iterator[tuple[str, float]]:
    """Yield each row's number in each column of each evaluation, with the column's name."""
    for _, found in sorted(read_scores(run / "scores.json").items()):
        for column, values in sorted(found.columns.items()):
            yield from ((column, float(value)) for value in values)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """Return what a run saved, by folder and name; that of the last step too where it has its own folder."""
    directory = RunDirectory.open(run)
    return {
        f"{folder.name}/{name}": tensor
        for folder in (directory.weights, directory.last)
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def relative(ours: Iterable[float], theirs: Iterable[float]) -> float:
    """Return the largest difference of numbers at the same place, relative from 1 on; infinite if one has more."""
    ours, theirs = list(ours), list(theirs)
    if len(ours) != len(theirs):
        return math.inf
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if not (math.isnan(a) and math.isnan(b))]
    found = [abs(a - b) / max(abs(a), 1.0) for a, b in pairs]
    return math.inf if any(map(math.isnan, found)) else max(found, default=0.0)


def farthest(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of two runs' weights of one name."""
    same = [name for name in ours if name in theirs and theirs[name].shape == ours[name].shape]
    return max((float((ours[name].float() - theirs[name].float()).abs().max()) for name in same), default=math.inf)
