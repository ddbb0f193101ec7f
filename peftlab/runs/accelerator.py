"""This process's place among the others of its launch, through accelerate."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator

from peftlab.device import pick_device
from peftlab.errors import MissingRequirementError
from peftlab.recipe.schema import Recipe


def open_accelerator(recipe: Recipe, path: Path | None = None) -> Accelerator:
    """Return this process's accelerator with the recipe's trackers, which write under `path`.

    Raises MissingRequirementError for a tracker or a device that is not here.
    """
    device = pick_device(recipe.run.device)
    try:
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no",  # the loop does its own autocast, so that logits are not copied to float32
            log_with=list(recipe.run.trackers) or None,
            project_dir=None if path is None else str(path / "trackers"),
        )
    except ValueError as error:
        raise MissingRequirementError(f"run.trackers: {error}") from None
    missing = set(recipe.run.trackers) - {str(tracker) for tracker in accelerator.log_with}
    if missing:
        raise MissingRequirementError(f"run.trackers: {', '.join(sorted(missing))} is not installed; pip install it")
    return accelerator
