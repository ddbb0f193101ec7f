"""transformers' `trainer_state.json` (also of TRL, axolotl and LLaMA-Factory): how far and how a folder was trained."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftlab.errors import StorageError
from peftlab.files import parse_json, read_text

STATE = "trainer_state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# A line's events: theirs for the loss, ours for the kind of the line, and how its numbers are called here.
EVENTS = {
    "loss": ("train", {"loss": "loss", "grad_norm": "gradient_norm", "learning_rate": "learning_rate"}),
    "eval_loss": ("evaluation", {"eval_loss": "loss"}),
}


@dataclass(frozen=True)
class TrainerState:
    """Optimiser steps, rows of a device's batch, highest learning rate logged; lines as in `metrics.jsonl`."""

    steps: int
    batch_size: int | None = None
    learning_rate: float | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)


def read_trainer_state(folder: Path) -> TrainerState | None:
    """Return what the folder, or its only checkpoint, says of its training; None where nothing does.

    Raises StorageError for a file that cannot be read.
    """
    path = folder / STATE
    if not path.is_file():
        inside = list_checkpoints(folder)
        if len(inside) != 1 or not (inside[0] / STATE).is_file():
            return None
        path = inside[0] / STATE
    values = parse_json(path, read_text(path))
    steps = values.get("global_step") if isinstance(values, dict) else None
    if type(steps) is not int or steps < 0:
        raise StorageError(f"{path}: has no global_step")
    lines = [line for entry in values.get("log_history") or () if (line := _line_of(entry))]
    rates = [line["learning_rate"] for line in lines if line.get("learning_rate")]
    rows = values.get("train_batch_size")
    return TrainerState(steps, rows if type(rows) is int and rows > 0 else None, max(rates, default=None), lines)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of transformers' Trainer in a folder, by their step."""
    found = [path for path in folder.iterdir() if path.is_dir() and CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def _line_of(entry: Any) -> dict[str, Any] | None:
    step = entry.get("step") if isinstance(entry, dict) else None
    if type(step) is not int:
        return None
    for key, (event, names) in EVENTS.items():
        if key in entry:
            return {"event": event, "step": step} | {
                ours: float(entry[theirs]) for theirs, ours in names.items() if _is_number(entry.get(theirs))
            }
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
