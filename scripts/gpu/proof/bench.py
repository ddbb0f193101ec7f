"""What a part works with: a device, the repository's recipes in short form, and where its findings go."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
RECIPES = ROOT / "recipes"
# A run of seconds on the shipped model and data.
SHORT: dict[str, Any] = {
    "data.train_rows": 64,
    "data.evaluation_rows": 8,
    "data.max_length": 96,
    "training.batch_size": 4,
    "training.steps": 6,
    "evaluation.generation": "{examples: 0}",
    "run.plan": "off",
    "run.log_every": 1,
}
WITHOUT_EVALUATION = {"data.evaluation": "null", "data.evaluation_rows": "null", "evaluation.metrics": "[loss]"}
FLOAT32 = {"model.dtype": "float32", "training.precision": "float32"}

Settings = Mapping[str, Any]


class Bench:
    """One part's bench. `device` is `cuda`, or `cpu` where the part is only tried; `folder` is temporary."""

    def __init__(self, findings: Path, folder: Path, *, pretend: bool = False):
        self.findings, self.folder, self.pretend = findings, folder, pretend

    @property
    def device(self) -> str:
        return "cpu" if self.pretend else "cuda"

    @contextlib.contextmanager
    def case(self, name: str) -> Iterator[dict[str, Any]]:
        """Write one finding when the block ends; an error in it is the finding, and the next case can run.

        The block fills the dictionary: `ok` is whether a claim is true, absent where something is only measured,
        and `says` is one line for a reader.
        """
        found: dict[str, Any] = {}
        started = time.perf_counter()
        try:
            yield found
        except Exception as error:  # whatever goes wrong costs this case alone
            found |= {"ok": False, "error": f"{type(error).__name__}: {error}"[:2000]}
        self.write({"case": name, "seconds": round(time.perf_counter() - started, 3)} | found)

    def write(self, found: dict[str, Any]) -> None:
        with self.findings.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found, default=str) + "\n")

    def tiny(self, method: str, settings: Settings = {}) -> Any:  # noqa: B006  # never changed
        """Return the recipe of a method on the shipped model, made short."""
        from peftlab.recipe.load import load_recipe

        return load_recipe(tiny_file(method), self.overrides(settings))

    def overrides(self, settings: Settings = {}) -> list[str]:  # noqa: B006  # never changed
        """Return the overrides that make a recipe of `recipes/tiny` short on this bench's device; `settings` win.

        A run directory is a name in this part's folder.
        """
        joined = {**SHORT, "run.device": self.device, **settings}
        if "run.output" in joined:
            joined["run.output"] = self.folder / joined["run.output"]
        return [f"{key}={value}" for key, value in joined.items()]


def tiny_file(method: str) -> Path:
    return RECIPES / "tiny" / f"{method}.yaml"
