"""Texts for the trackers of accelerate that take numbers alone: Aim refuses them, MLflow's drops them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WriteText = Callable[[Any, str, str, int], None]


def write_to_aim(tracker: Any, name: str, text: str, step: int) -> None:
    """Track a text of Aim's own type, beside the run's numbers."""
    from aim import Text

    tracker.writer.track(Text(text), name=name, step=step)


def write_to_mlflow(tracker: Any, name: str, text: str, step: int) -> None:
    """Write a text as a file among the run's artifacts; MLflow has no other place for one."""
    import mlflow

    mlflow.log_text(text, f"{name}.txt")


WRITERS: dict[str, WriteText] = {"aim": write_to_aim, "mlflow": write_to_mlflow}


@dataclass
class WithTexts:
    """A tracker of accelerate, and how its library writes a text by name at a step."""

    tracker: Any
    write_text: WriteText

    def __post_init__(self) -> None:
        self.name: str = self.tracker.name

    def store_init_configuration(self, values: dict[str, Any]) -> Any:
        return self.tracker.store_init_configuration(values)

    def log(self, values: dict[str, Any], *, step: int) -> None:
        texts = {name: value for name, value in values.items() if isinstance(value, str)}
        for name, text in texts.items():
            self.write_text(self.tracker, name, text, step)
        if numbers := {name: value for name, value in values.items() if name not in texts}:
            self.tracker.log(numbers, step=step)

    def finish(self) -> Any:
        return self.tracker.finish()


def accept_texts(tracker: Any) -> Any:
    """Return the tracker, with a way for texts where accelerate's has none."""
    writer = WRITERS.get(tracker.name)
    return tracker if writer is None else WithTexts(tracker, writer)
