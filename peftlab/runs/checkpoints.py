"""A run's checkpoints: what they hold, writing one, and going on from the latest whole one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from peftlab.checkpoint.store import Checkpoint, clean_leftovers, find_latest, rotate, write_checkpoint
from peftlab.checkpoint.tensors import load_state, save_state
from peftlab.errors import StorageError
from peftlab.memory.measure import tensor_bytes
from peftlab.parameters.audit import Audit
from peftlab.parameters.trainable import trainable_parameters
from peftlab.recipe.schema import Recipe
from peftlab.reports import ResumeReport
from peftlab.runs.bench import Bench
from peftlab.training.state import (
    capture_process_state,
    capture_shared_state,
    restore_process_state,
    restore_shared_state,
)

if TYPE_CHECKING:
    from peftlab.training.recorder import Recorder
    from peftlab.training.setup import Setup

# Moments and master copies beside each trained weight, for the check of free space.
BYTES_PER_WEIGHT_BYTE = 3
MAY_CHANGE = ("run", "evaluation", "training.steps", "training.epochs")


def describe_identity(recipe: Recipe, bench: Bench, audit: Audit, environment: dict[str, Any]) -> dict[str, Any]:
    """Return what a later continuation must agree with, or be told to be inexact."""
    data = bench.dataset.report
    return {
        "recipe": recipe.model_dump(mode="json"),
        "data": {part: data[part].get("sha256") for part in ("train", "evaluation", "test") if part in data},
        "base": {key: bench.source.get(key) for key in ("name", "revision", "fingerprint", "quantization")},
        "frozen": hashlib.sha256(repr(sorted(audit.frozen_fingerprints().items())).encode()).hexdigest(),
        "environment": {key: environment[key] for key in ("python", "versions", "device", "threads", "processes")},
    }


def save(root: Path, setup: Setup, recorder: Recorder, identity: dict[str, Any], protected: set[int]) -> None:
    """Write the checkpoint of the step that `setup` is at, then remove those that are too many."""
    processes = gather_object([capture_process_state(recorder)])
    if setup.accelerator.is_main_process:

        def write(folder: Path) -> None:
            save_state(folder, "state", capture_shared_state(setup))
            for number, state in enumerate(processes):
                save_state(folder, f"process-{number:05}", state)

        step = setup.progress.step
        needed = BYTES_PER_WEIGHT_BYTE * tensor_bytes(trainable_parameters(setup.model).values())
        write_checkpoint(root, step, write, identity, needed_bytes=needed)
        rotate(root, setup.recipe.run.keep_checkpoints, protected | {step, setup.progress.best_step or step})
    setup.accelerator.wait_for_everyone()


def find(root: Path, clean: bool) -> tuple[Checkpoint, list[str]]:
    """Return the latest whole checkpoint, and what is wrong with later ones. Raises StorageError without any."""
    if clean and root.is_dir():
        clean_leftovers(root)
    checkpoint, faults = find_latest(root) if root.is_dir() else (None, [])
    if checkpoint is None:
        told = f" ({'; '.join(faults)})" if faults else "; checkpoints come with run.save_every"
        raise StorageError(f"{root.parent}: there is no checkpoint to resume from{told}")
    return checkpoint, faults


def restore(checkpoint: Checkpoint, setup: Setup, recorder: Recorder, identity: dict[str, Any]) -> ResumeReport:
    """Put `setup` back to where `checkpoint` was written. Raises StorageError if it is of another run."""
    saved = checkpoint.manifest.facts
    refuse_changes(saved, identity)
    reasons = why_inexact(saved, identity)
    restore_shared_state(setup, load_state(checkpoint.path, "state"))
    own = checkpoint.path / f"process-{setup.accelerator.process_index:05}.json"
    if own.exists():
        reasons += restore_process_state(recorder, load_state(checkpoint.path, own.stem))
    recorder.start(setup.steps, done=checkpoint.step)
    return ResumeReport(step=checkpoint.step, exact=not reasons, reasons=reasons)


def refuse_changes(saved: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise StorageError with the difference if recipe, data or base are not those of the checkpoint."""
    changes = differences(saved["recipe"], here["recipe"])
    changes = {key: pair for key, pair in changes.items() if not any(_within(key, free) for free in MAY_CHANGE)}
    for part in ("data", "base"):
        changes |= differences(saved[part], here[part], f"{part} ")
    if changes:
        told = "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items())
        raise StorageError(
            f"the checkpoint is of another run: {told}. Take these back, or start anew with another run.output"
        )


def why_inexact(saved: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Return every reason why the continued run may differ from one that never stopped."""
    changes = differences(saved["environment"], here["environment"])
    changes |= differences(saved["recipe"]["training"], here["recipe"]["training"], "training.")
    reasons = [f"{key}: {old} -> {new}" for key, (old, new) in changes.items()]
    if saved["frozen"] != here["frozen"]:
        reasons.append("the frozen weights are not the same bytes")
    return reasons


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return dotted key to (old, new) for every leaf in which two trees of dicts differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {prefix.rstrip("."): (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*old, *new]):
        nested = isinstance(old.get(key), dict) and isinstance(new.get(key), dict)
        found |= differences(old.get(key), new.get(key), f"{prefix}{key}{'.' if nested else ''}")
    return found


def _within(key: str, section: str) -> bool:
    return key == section or key.startswith(section + ".")
