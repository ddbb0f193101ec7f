"""Models of published sizes with random weights: their recipes, what they are predicted to take, and what they take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proof.bench import RECIPES

FOLDER = RECIPES / "memory-savings"
SHAPES = FOLDER / "shapes"
STEPS = ("first_step", "steady_step")
SMALL = "small"


@dataclass(frozen=True)
class Case:
    """One recipe of `recipes/memory-savings` on a shape, with `rows` of `length` tokens, all of them supervised."""

    shape: str
    method: str
    rows: int
    length: int
    checkpointing: bool = False
    settings: tuple[str, ...] = ()
    variant: str = ""

    @property
    def name(self) -> str:
        checkpointed = " checkpointed" if self.checkpointing else ""
        return f"{Path(self.shape).name} {self.variant or self.method} {self.rows}x{self.length}{checkpointed}"

    @property
    def facts(self) -> dict[str, Any]:
        names = ("shape", "rows", "length", "checkpointing")
        return {name: getattr(self, name) for name in names} | {"method": self.variant or self.method}

    def recipe(self, folder: Path, device: str, *settings: str) -> Any:
        """Return the recipe; its rows are a file in `folder`."""
        from peftlab.recipe.load import load_recipe

        own = [
            f"model.name={self.model}",
            "data={train: '" + str(write_rows(folder, self.length, 2 * self.rows)) + "', format: text}",
            f"data.max_length={self.length}",
            f"training.batch_size={self.rows}",
            f"training.gradient_checkpointing={str(self.checkpointing).lower()}",
            f"run.device={device}",
            "run.plan=off",
        ]
        return load_recipe(FOLDER / f"{self.method}.yaml", [*own, *self.settings, *settings])

    @property
    def model(self) -> Path:
        return SHAPES / self.shape if (SHAPES / self.shape).is_dir() else Path(self.shape)


def tried_shape(folder: Path) -> str:
    """Write a Llama of three layers, the least that a plan can trace without extrapolation, and return its folder."""
    config = json.loads((SHAPES / SMALL / "config.json").read_text(encoding="utf-8"))
    smaller = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    smaller |= {"head_dim": 32, "num_hidden_layers": 3, "vocab_size": 4096}
    return str(write_config(folder / "tried", config | smaller))


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_rows(folder: Path, length: int, count: int) -> Path:
    """Write `count` rows of text that are all longer than `length` tokens, and return the file."""
    path = folder / f"rows-{count}x{length}.jsonl"
    if not path.exists():
        row = json.dumps({"text": "one row of many words " * (length // 3 + 8)})
        path.write_text((row + "\n") * count, encoding="utf-8")
    return path


def shape_names() -> list[str]:
    return sorted(path.name for path in SHAPES.iterdir())


def open_planner(device: str, memory: str | None = None) -> Any:
    """Return a planner for `memory` (a size or a GPU's name), else for the device of this machine."""
    import torch

    from peftlab.runs.planner import Planner
    from peftlab.sizes import parse_budget
    from peftlab.world.hardware import cuda_capability, has_cuda, total_bytes

    where = torch.device(device)
    if memory is not None:
        budget = parse_budget(memory)
        return Planner(where, capability=budget.capability, capacity_bytes=budget.bytes)
    if where.type == "cuda" and has_cuda():
        return Planner(where, capability=cuda_capability(where), capacity_bytes=total_bytes(where))
    return Planner(where, capacity_bytes=total_bytes(torch.device("cpu")))


def check(case: Case, folder: Path, device: str, planner: Any, measured: bool = True) -> dict[str, Any]:
    """Return the case's facts, its predicted memory and, where it fits and is to be `measured`, the measured one."""
    recipe = case.recipe(folder, device)
    predicted = planner(recipe)
    found = case.facts | {"predicted": predicted.model_dump(), "predicted_bytes": steps_peak(predicted)}
    if measured and predicted.peak_bytes <= predicted.capacity_bytes:
        found |= measure(recipe)
    return found


def measure(recipe: Any) -> dict[str, Any]:
    """Return what the first two steps of a recipe really take, or the first line of the error of memory."""
    from peftlab.errors import OutOfMemoryError
    from peftlab.runs.display import NoDisplay
    from peftlab.runs.dry_run import dry_run
    from proof.training import free_memory

    try:
        report = dry_run(recipe, rows=0, display=NoDisplay()).memory["measured"]
    except OutOfMemoryError as error:
        return {"error": str(error).splitlines()[0]}
    finally:
        free_memory()
    return {"measured": report.model_dump(), "measured_bytes": steps_peak(report)}


def steps_peak(report: Any) -> int:
    """Return the peak of the training steps: loading has other rules."""
    return max(report.phases[step] for step in STEPS)


def state_bytes(report: dict[str, Any]) -> int:
    """Return what weights, gradients and optimizer states take of a report's peak."""
    kinds = ("frozen_weights", "quantisation_state", "trainable_weights", "gradients", "optimiser_state")
    return sum(report["categories"][kind] for kind in kinds)


def median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
