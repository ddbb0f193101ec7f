"""All state that a run's next step depends on, as trees of tensors and plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftlab.checkpoint.randomness import capture_random_state, restore_random_state
from peftlab.reports import Progress

if TYPE_CHECKING:
    from peftlab.parameters.audit import Audit
    from peftlab.training.recorder import Recorder
    from peftlab.training.setup import Setup


def capture_shared_state(setup: Setup) -> dict[str, Any]:
    """Return what is the same on every process: trained weights, optimiser, schedule, scaler, progress."""
    return {
        **setup.world.capture(setup.model, setup.optimizer),
        "schedule": setup.schedule.state_dict(),
        "scaler": setup.scaler.state_dict(),
        "progress": setup.progress.model_dump(),
        "rows": setup.rows.state(setup.progress.step),
    }


def restore_shared_state(setup: Setup, state: dict[str, Any]) -> None:
    """Restore a captured state, in place. Raises StorageError unless it has the weights that train here."""
    setup.world.restore(setup.model, setup.optimizer, state)
    setup.schedule.load_state_dict(state["schedule"])
    setup.scaler.load_state_dict(state["scaler"])
    setup.progress = Progress(**state["progress"])
    if "rows" in state:  # version 0.1.0 wrote none: seed and step decide the order, as in this version
        setup.rows.restore(state["rows"])


def capture_process_state(recorder: Recorder, audit: Audit) -> dict[str, Any]:
    """Return what differs between processes: random states, what is not logged yet, and the audit so far."""
    return {"random": capture_random_state(), "recorder": recorder.state(), "audit": audit.state()}


def restore_process_state(recorder: Recorder, audit: Audit, state: dict[str, Any]) -> list[str]:
    """Restore a process's state; return why that is not exact, empty if it is."""
    recorder.restore(state["recorder"])
    audit.restore(state.get("audit"))  # version 0.1.0 wrote none
    return restore_random_state(state["random"]) if "random" in state else []
