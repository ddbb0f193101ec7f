"""Short recipes on the shipped model and data, for tests that run a recipe for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftlab.recipe.schema import Recipe

METHODS = {
    "full": {"type": "full", "layers": 2},
    "lora": {"type": "lora", "rank": 4},
    "qlora": {"type": "qlora", "rank": 4},
    "adapters": {"type": "adapters", "bottleneck": 8},
    "prefix": {"type": "prefix", "length": 4},
    "bitfit": {"type": "bitfit"},
}
RATES = {"full": 1e-3, "lora": 5e-3, "qlora": 5e-3, "adapters": 5e-3, "prefix": 3e-2, "bitfit": 1e-2}


def short_sections(method: str, output: Path, **training: Any) -> dict[str, Any]:
    settings = {"steps": 6, "batch_size": 4, "learning_rate": RATES[method]} | training
    return {
        "model": {"name": "builtin:tiny"},
        "method": METHODS[method],
        "data": {
            "train": "builtin:docstrings[train]",
            "evaluation": "builtin:docstrings[test]",
            "max_length": 96,
            "train_rows": 64,
            "evaluation_rows": 16,
        },
        "training": settings,
        "evaluation": {"generation": {"max_new_tokens": 8, "examples": 1}},
        "run": {"output": str(output), "device": "cpu", "log_every": 2, "plan": "off"},
    }


def short_recipe(method: str, output: Path, **training: Any) -> Recipe:
    return Recipe.model_validate(short_sections(method, output, **training))
