"""Everything that a run's next step depends on, as one tree of tensors and plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from peftlab.checkpoint.randomness import capture_random_state, restore_random_state
from peftlab.errors import StorageError
from peftlab.parameters.trainable import trainable_parameters
from peftlab.reports import Progress

if TYPE_CHECKING:
    from peftlab.training.loop import Setup


def capture_state(setup: Setup) -> dict[str, Any]:
    """Return what is the same on every process: trained weights, optimiser, schedule, scaler, progress."""
    return {
        "weights": {name: p.detach() for name, p in trainable_parameters(setup.model).items()},
        "optimizer": setup.optimizer.state_dict(),
        "schedule": setup.schedule.state_dict(),
        "scaler": setup.scaler.state_dict(),
        "progress": setup.progress.model_dump(),
    }


def restore_state(setup: Setup, state: dict[str, Any]) -> None:
    """Put a captured state back, in place. Raises StorageError unless it is of this very setup."""
    parameters = trainable_parameters(setup.model)
    if parameters.keys() != state["weights"].keys():
        odd = sorted(parameters.keys() ^ state["weights"].keys())
        raise StorageError(f"the checkpoint's trained weights are others than this run's ({odd[0]}, ...)")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state["weights"][name])
    setup.optimizer.load_state_dict(state["optimizer"])
    setup.schedule.load_state_dict(state["schedule"])
    setup.scaler.load_state_dict(state["scaler"])
    setup.progress = Progress(**state["progress"])


def capture_process_state() -> dict[str, Any]:
    """Return what each process has of its own: its random states."""
    return capture_random_state()


def restore_process_state(state: dict[str, Any]) -> None:
    restore_random_state(state)
