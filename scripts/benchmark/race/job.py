"""What one run of a race trains: plain values, so that every peer reads the same from a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """A training of `steps` optimiser steps, of which the first `warm_up` are not timed, and the last is profiled.

    `rows` is a file with the rows of every step (ids and labels), `start` one with the trained weights before the
    first step. `recipe` and `settings` are peftlab's own words for the same.
    """

    model: str
    method: str
    recipe: str
    settings: list[str]
    rows: str
    start: str
    steps: int
    warm_up: int
    device: str
    precision: str
    checkpointing: bool = False
    threads: int = 0
    learning_rate: float = 1e-3
    fields: dict[str, Any] = field(default_factory=dict)
    """The method's own fields, as the recipe has them."""

    @property
    def timed(self) -> int:
        """The steps that are stamped, with the first ones."""
        return self.steps - 1

    @property
    def adapterhub(self) -> Path:
        """The folder of the first weights of adapters in the format of AdapterHub's library."""
        return Path(self.start).parent / "adapterhub"

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Job:
        return Job(**json.loads(path.read_text(encoding="utf-8")))

    def steps_of_rows(self) -> list[list[dict[str, list[int]]]]:
        """Return the rows of each step."""
        return json.loads(Path(self.rows).read_text(encoding="utf-8"))["steps"]

    @property
    def pad_id(self) -> int:
        return int(json.loads(Path(self.rows).read_text(encoding="utf-8"))["pad_id"])
