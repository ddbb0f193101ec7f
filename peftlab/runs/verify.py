"""Proof on a user's own recipe and machine: a run that is stopped and resumed equals one that never stopped."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from peftlab.checkpoint.store import find_latest
from peftlab.checkpoint.tensors import load_state
from peftlab.errors import StorageError, UsageError
from peftlab.runs.directory import RunDirectory
from peftlab.runs.jobs import Job, run_job


def verify_resume(
    recipe: Path, overrides: Sequence[str] = (), *, steps: int = 6, stop_after: int = 3, repeat: bool = False
) -> dict[str, Any]:
    """Train `steps` steps without a stop, and again with a stop after `stop_after`, each in its own process.

    Returns `exact` (whether weights, moments, schedule and random states are the same bytes), the names that
    `differ`, `compared`, `steps`, `stop_after`, and the `reasons` in the resumed run's record. With `repeat`, and
    always on CUDA, the uninterrupted run is made twice first: `repeat_differs` has the names that differ between
    those two, which resuming cannot make equal; otherwise it is None. The recipe's own run directory is not changed.
    Raises UsageError if no step remains to resume, and StorageError if a run does not end as expected.
    """
    if not 0 < stop_after < steps:
        raise UsageError(f"--stop-after must be between 0 and --steps ({steps}), not {stop_after}")
    shortened = [f"training.steps={steps}", "training.epochs=null", f"run.save_every={steps}", "run.max_seconds=null"]
    settings = (*overrides, *shortened)
    with tempfile.TemporaryDirectory(prefix="peftlab-verify-") as folder:
        straight, resumed = Path(folder) / "straight", Path(folder) / "resumed"
        run_training(recipe, (*settings, "run.stop_after=null"), straight)
        repeated = None
        if repeat or ran_on_cuda(straight):
            again = Path(folder) / "again"
            run_training(recipe, (*settings, "run.stop_after=null"), again)
            repeated = differing(load_final(straight), load_final(again))
        run_training(recipe, (*settings, f"run.stop_after={stop_after}"), resumed, expected="interrupted")
        run_training(recipe, (*settings, "run.stop_after=null"), resumed, resume=True)
        names = differing(load_final(straight), load_final(resumed))
        (report,) = RunDirectory.open(resumed).read_result().resumes
    differ = unequal(names)
    return {
        "exact": not differ and report.exact,
        "differ": differ,
        "repeat_differs": None if repeated is None else unequal(repeated),
        "compared": len(names),
        "steps": steps,
        "stop_after": stop_after,
        "reasons": report.reasons,
    }


def ran_on_cuda(folder: Path) -> bool:
    """Return whether a finished run was on a CUDA device."""
    return RunDirectory.open(folder).read_result().memory["process"].device == "cuda"


def unequal(names: dict[str, bool]) -> list[str]:
    return sorted(name for name, same in names.items() if not same)


def run_training(
    recipe: Path, overrides: tuple[str, ...], folder: Path, *, resume: bool = False, expected: str = "finished"
) -> None:
    """Run a recipe in another process. Raises StorageError unless its record's status is as expected."""
    log = folder.with_suffix(".log")
    ending = run_job(Job(recipe, overrides, folder, log, resume=resume), warm=True)
    if ending.status != expected:
        raise StorageError(f"a run of this verification ended as {ending.status}, not {expected}: {ending.error}")


def load_final(folder: Path) -> dict[str, Any]:
    """Return the state at the end of a run, with every process's own."""
    checkpoint, _ = find_latest(RunDirectory(folder).checkpoints)
    if checkpoint is None:
        raise StorageError(f"{folder}: the run has no complete checkpoint")
    names = sorted(path.stem for path in checkpoint.path.glob("*.json") if path.stem != "MANIFEST")
    return {name: load_state(checkpoint.path, name) for name in names}


def differing(one: Any, other: Any, path: str = "") -> dict[str, bool]:
    """Return for every leaf of two trees whether both have exactly the same value there."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = dict.fromkeys([*one, *other])
        parts = [differing(one.get(key), other.get(key), f"{path}.{key}" if path else str(key)) for key in keys]
        return {name: same for found in parts for name, same in found.items()}
    if torch.is_tensor(one) and torch.is_tensor(other):
        return {path: one.dtype == other.dtype and one.shape == other.shape and same_bytes(one, other)}
    return {path: repr(one) == repr(other)}


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors have the same bytes: not-a-number equals itself, and zero differs from minus zero."""
    bits = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*bits)
