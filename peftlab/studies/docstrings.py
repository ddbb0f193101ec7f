"""The task that studies share: the shipped model writes the first line of a docstring from a function's code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODEL = "builtin:tiny"


def docstring_recipe(
    method: Mapping[str, Any], learning_rate: float, *, steps: int, rows: int = 8, length: int = 128, **data: Any
) -> dict[str, Any]:
    """Return a recipe whose learning rate is chosen on 64 rows held out of the training rows, apart from the test."""
    return {
        "model": {"name": MODEL},
        "method": dict(method),
        "data": {
            "train": "builtin:docstrings[train]", "evaluation": 64, "test": "builtin:docstrings[test]",
            "format": "completion", "max_length": length, "test_rows": 128, **data,
        },
        "training": {
            "steps": steps, "batch_size": rows, "learning_rate": learning_rate, "schedule": "cosine", "warmup": 0.1,
        },
        "evaluation": {"metrics": ["loss"], "batch_size": 16, "generation": {"examples": 0}},
        "run": {"seed": 0},
    }  # fmt: skip
