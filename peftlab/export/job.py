"""What every format gets: the run, its recipe, the temporary folder to write to, and the options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peftlab.recipe.schema import Recipe
from peftlab.runs.directory import RunDirectory


@dataclass(frozen=True)
class Job:
    """One export: `out` is a temporary folder, `dtype` None for the format's own default, `rows` 0 compares nothing."""

    run: Path
    directory: RunDirectory
    recipe: Recipe
    out: Path
    base: str
    dtype: str | None
    rows: int
    tolerance: float | None
    verify: bool

    @property
    def name(self) -> str:
        return self.run.resolve().name
