"""Memory that an earlier run of a recipe measured with its longest rows, so that trial steps need not be repeated.

On the CPU the ledger counts the bytes of tensors, which depend on shapes and types alone: the same model, method,
settings and longest rows give the same numbers. A run whose memory is tight, and every run on CUDA, measures anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from peftlab.data.rows import longest_rows
from peftlab.data.token_rows import TokenRow
from peftlab.data.token_store import measured_folder
from peftlab.reports import MemoryReport
from peftlab.runs.bench import Bench
from peftlab.runs.kept import find_report, keep_report, name_of
from peftlab.training.preflight import HeldOut
from peftlab.training.setup import Setup

ROOM = 0.8
"""The share of the usable memory above which a run's plan counts as tight."""

# What the bytes of a step depend on, of a recipe's training. Steps and learning rate leave them as they are.
TRAINING = {
    "optimizer",
    "average",
    "clip",
    "gradient_checkpointing",
    "precision",
    "frozen_dropout",
    "speed",
    "weight_decay",
    "optimizer_in_backward",
}
ENVIRONMENT = ("python", "versions", "commit", "device", "threads", "processes")


def has_room(bench: Bench, predicted: MemoryReport | None) -> bool:
    """Return whether a run on this CPU needs much less than it may use, by its plan; false without a plan."""
    if bench.device.type != "cpu" or bench.world.processes > 1 or predicted is None or not predicted.capacity_bytes:
        return False
    return predicted.needed_bytes <= ROOM * predicted.capacity_bytes


def describe_trial(setup: Setup, bench: Bench, held_out: HeldOut, environment: dict[str, Any]) -> str:
    """Return the name of all that the memory of the trial steps depends on."""
    recipe = bench.recipe.model_dump(mode="json", include={"model": True, "method": True, "training": TRAINING})
    batches, size = setup.rows.longest().batches(1), held_out.batch_size
    return name_of(
        {
            "recipe": recipe,
            "base": bench.base.source.get("fingerprint"),
            "types": bench.types.describe(),
            "batches": [{name: _describe(value) for name, value in batch.items()} for batch in batches],
            "evaluation": _sizes(longest_rows(held_out.rows, size, padded=size)) if held_out.rows else [],
            "prompts": [len(prompt) for prompt in held_out.prompts],
            "answers": repr(held_out.answers),
            "environment": {name: environment[name] for name in ENVIRONMENT},
        }
    )


def find_measured(name: str) -> MemoryReport | None:
    """Return what an earlier run measured; None where there is none, or it cannot be read."""
    return find_report(_path(name))


def keep_measured(name: str, report: MemoryReport) -> None:
    """Keep a measurement for later runs; where that cannot be done they measure again."""
    keep_report(_path(name), report)


def _describe(values: torch.Tensor) -> list[Any]:
    """Return a batch's tensor by its shape and its content: rows that lie end to end differ in where they begin."""
    return [list(values.shape), hashlib.sha256(values.numpy().tobytes()).hexdigest()]


def _path(name: str) -> Path:
    return measured_folder() / f"{name}.json"


def _sizes(rows: Sequence[TokenRow]) -> list[tuple[int, int]]:
    return [(len(row.input_ids), row.supervised) for row in rows]
