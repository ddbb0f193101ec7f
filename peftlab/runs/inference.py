"""What a trained model costs in use, compared with the base: parameters, bytes and latency, merged or not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import nn

from peftlab.evaluation.latency import latency_batch, measure_latency, relative_to
from peftlab.memory.measure import bytes_by_category
from peftlab.parameters.report import parameter_report
from peftlab.parameters.shape import shape_of
from peftlab.reports import InferenceReport
from peftlab.runs.bench import Bench
from peftlab.runs.loading import load_base, load_trained

ROWS = 1
TOKENS = 128


def try_inference(bench: Bench, model: nn.Module, weights: Path, note: Callable[[str], None]) -> InferenceReport | None:
    """Return the cost of a run's result, saved in `weights`; None, with a note, without memory to measure it."""
    try:
        return measure_inference(bench, as_saved(bench, model, weights))
    except torch.OutOfMemoryError:
        note("evaluation.latency: not measured, no memory for the base and a merged copy next to the trained model")
    return None


def measure_inference(bench: Bench, trained: nn.Module) -> InferenceReport:
    """Return the cost of `trained`, compared with a freshly loaded base, and merged where the method can.

    All three are in memory at once, so that their passes can alternate. One row of `TOKENS` tokens, or of as many
    as the recipe's rows and the model's positions allow.
    """
    recipe, method = bench.recipe, bench.recipe.method
    base = fresh_base(bench)
    shape = shape_of(base, bench.base.fresh, recipe.model.task)
    merged = method.merge(trained) if method.mergeable else None
    models = {"base": base, "unmerged": trained}
    if merged is not None and merged is not trained:
        models["merged"] = merged
    tokens = min(TOKENS, recipe.data.max_length, (shape.positions or TOKENS) - method.virtual_tokens)
    passes = measure_latency(
        models,
        latency_batch(ROWS, tokens, shape.vocabulary, bench.device, recipe.task.encodes_prompt),
        device=bench.device,
        autocast=partial(bench.world.autocast, bench.precision),
    )
    weight_bytes = {name: sum(bytes_by_category(model, None).values()) for name, model in models.items()}
    if merged is trained:
        passes["merged"], weight_bytes["merged"] = passes["unmerged"], weight_bytes["unmerged"]
    return InferenceReport(
        rows=ROWS,
        tokens=tokens,
        extra_parameters=sum(site.count for site in method.without_training_parts().all_added(shape)),
        extra_parameters_merged=None if merged is None else parameter_report(merged).total - shape.total,
        seconds={name: median(taken) for name, taken in passes.items()},
        relative={name: relative_to(passes["base"], taken) for name, taken in passes.items()},
        weight_bytes=weight_bytes,
    )


def fresh_base(bench: Bench) -> nn.Module:
    """Return the base as it was before the method, loaded again; the caller's random state is kept."""
    with keep_randomness(bench.device):
        return load_base(bench.recipe, bench.device, bench.dataset.labels).model


def as_saved(bench: Bench, model: nn.Module, weights: Path) -> nn.Module:
    """Return the trained model as a saved copy of it is: without what only training needed."""
    method = bench.recipe.method
    if method.without_training_parts() == method:
        return model
    with keep_randomness(bench.device):
        return load_trained(bench.recipe, weights, bench.device, bench.dataset.labels)


def keep_randomness(device: torch.device) -> AbstractContextManager:
    """Return a context that restores the random states of the CPU and of `device`."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
