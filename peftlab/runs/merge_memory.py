"""The memory of a merge: planned from the run's record before anything is loaded, and measured beside the plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from peftlab.evaluation.agreement import MOST_BYTES
from peftlab.memory.measure import MemoryMeter
from peftlab.memory.merging import ModelBytes, ShardBytes, plan_merge
from peftlab.models.config import read_config
from peftlab.models.reference import resolve
from peftlab.recipe.schema import Recipe
from peftlab.reports import MemoryReport, RunResult
from peftlab.runs.merge_shards import Shards
from peftlab.world.hardware import free_host_bytes

WEIGHTS = ("frozen_weights", "quantisation_state", "trainable_weights")
PARTS = ("evaluation", "test", "train")


def predict_merge(
    recipe: Recipe, result: RunResult, shards: Mapping[str, Shards | None], dtype: torch.dtype, rows: int
) -> MemoryReport | None:
    """Return the most that a merge takes of the host's memory, the loaded libraries left out; None where it is unknown.

    `rows` are those that are compared. Unknown are models on another device, and those of a run without a record of
    its memory.
    """
    planned = [None if one is None else one.plan(dtype) for one in shards.values()]
    models = None
    if rows or not all(shards.values()):
        models = _models(recipe, result, dtype, rows, needed=not all(shards.values()))
        if models is None:
            return None
    every = [plan_merge(one, models) for one in planned]
    phases = {name: max(one[name] for one in every) for name in every[0]}
    report = MemoryReport(
        source="predicted",
        device="cpu",
        peak_bytes=max(phases.values()),
        phases=phases,
        capacity_bytes=free_host_bytes(),
    )
    return report.model_copy(update={"remedies": [] if report.fits else _remedies(planned, rows)})


def _remedies(planned: list[ShardBytes | None], rows: int) -> list[str]:
    if not rows or planned[-1] is None:
        return []
    alone = max(plan_merge(planned[-1], None).values())
    return [f"--rows 0 compares nothing and takes {math.ceil(alone / 2**20):,} MiB"]


def _models(recipe: Recipe, result: RunResult, dtype: torch.dtype, rows: int, *, needed: bool) -> ModelBytes | None:
    measured = result.memory.get("measured")
    if measured is None or measured.device != "cpu" or result.parameters is None:
        return None
    trained = sum(measured.categories.get(name, 0) for name in WEIGHTS)
    return ModelBytes(
        trained=trained,
        merged=result.parameters.total * dtype.itemsize,
        load=measured.phases.get("load", 0),
        forward=max(measured.phases.get("evaluation", 0) - trained, 0),
        logits=_logits(recipe, result, rows) if rows else 0,
        needed=needed,
    )


def _logits(recipe: Recipe, result: RunResult, rows: int) -> int:
    """Return the bytes of one model's logits at the targets of the first rows, each taken for an average one."""
    part: Mapping[str, Any] = next((result.data[name] for name in PARTS if result.data.get(name, {}).get("rows")), {})
    classes = len(result.data.get("labels") or "?")
    if recipe.task.generates:
        config = read_config(recipe.model, resolve(recipe.model.name, recipe.model.revision))
        classes = config.get_text_config().vocab_size
    targets = min(rows, part.get("rows", 0)) * max(part.get("supervised", 0) / part.get("rows", 1), 1)
    return min(int(targets * classes * 4), MOST_BYTES)


class MergeMeter:
    """Measures a merge's phases: resident bytes above those when it was made, of which `held` belong to the merge."""

    def __init__(self, held: int):
        self._meter = MemoryMeter(torch.device("cpu"))
        self._before = self._meter.current() - held

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Attribute the peak of what runs inside to `name`."""
        with self._meter.phase(name):
            yield

    def report(self) -> MemoryReport:
        """Return the peak of each phase."""
        phases = {name: max(peak - self._before, 0) for name, peak in self._meter.phases.items()}
        return MemoryReport(source="measured", device="cpu", peak_bytes=max(phases.values(), default=0), phases=phases)
