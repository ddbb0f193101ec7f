"""Plans of memory, kept between runs: learning rates, seeds and steps leave the plan of a recipe's own rows as it is.

A run on one process takes the plan that an earlier one made of the same model, method, settings and rows. A checkout
with changes, whose code nothing identifies, and a model that is not in a folder plan anew.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from peftlab.data.dataset import Dataset
from peftlab.data.token_store import plans_folder
from peftlab.models.reference import resolve
from peftlab.recipe.schema import Recipe
from peftlab.reports import MemoryReport
from peftlab.runs.base_figures import UNKNOWN_CODE
from peftlab.runs.kept import find_report, keep_report, name_of

# What of a recipe leaves its plan as it is; a field that is added counts.
NOT_COUNTED = {
    "training": ("steps", "epochs", "learning_rate", "schedule", "warmup", "fit"),
    "evaluation": ("every", "best", "patience", "latency", "threshold", "texts"),
    "run": (
        "output", "seed", "plan", "memory", "memory_snapshot", "save_every", "keep_checkpoints", "keep", "max_seconds",
        "stop_after", "log_every", "trackers",
    ),
}  # fmt: skip
ENVIRONMENT = ("python", "versions", "commit", "device", "threads")
SMALL_BYTES = 2**20


class KeptPlan:
    """The plan of a recipe with its rows: `find` returns what an earlier run made, `keep` keeps this one's."""

    def __init__(self, recipe: Recipe, dataset: Dataset, environment: dict[str, Any], **settings: Any) -> None:
        reference = resolve(recipe.model.name, recipe.model.revision)
        self._path: Path | None = None
        if reference.folder is None or UNKNOWN_CODE in str(environment["commit"]) or environment["processes"] > 1:
            return
        depends = {
            "recipe": _counted(recipe),
            "model": _describe_files(reference.folder),
            "data": dataset.report,
            "settings": settings,
            "environment": {name: environment[name] for name in ENVIRONMENT},
        }
        self._path = plans_folder() / f"{name_of(depends)}.json"

    def find(self, capacity_bytes: int | None) -> MemoryReport | None:
        """Return the plan for a device of this capacity; None where there is none, or it cannot be read."""
        found = None if self._path is None else find_report(self._path)
        return None if found is None else found.model_copy(update={"capacity_bytes": capacity_bytes})

    def keep(self, report: MemoryReport) -> None:
        """Keep a plan for later runs; where that cannot be done they plan again."""
        if self._path is not None:
            keep_report(self._path, report)


def _counted(recipe: Recipe) -> dict[str, Any]:
    described = recipe.model_dump(mode="json")
    for section, names in NOT_COUNTED.items():
        for name in names:
            del described[section][name]
    return described


def _describe_files(folder: Path) -> dict[str, Any]:
    """Return the content of a model's small files, such as its config, and size and time of the large ones."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        state = path.stat()
        found[path.name] = state.st_size, state.st_mtime_ns
        if state.st_size <= SMALL_BYTES:
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
