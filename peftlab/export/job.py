"""What every format gets: the run, its recipe, the temporary folder to write to, and the options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peftlab.recipe.schema import Recipe
from peftlab.runs.directory import RunDirectory
from peftlab.runs.merge import MergeOptions


@dataclass(frozen=True)
class Job:
    """One export of a run's result into `out`, a temporary folder."""

    run: Path
    directory: RunDirectory
    recipe: Recipe
    out: Path
    options: MergeOptions

    @property
    def name(self) -> str:
        return self.run.resolve().name
