"""Texts with a number and labels that follow from their words: what runs of regression and multi-label train on."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from peftlab.recipe.schema import Recipe

WORTH = {"open": 1.0, "parse_args": 2.0, "OSError": -1.0, "Path": 0.5}
OTHERS = ["the", "a", "returns", "or", "is", "file"]
FORMATS = {"regression": "regression", "multi-label-classification": "multi-label"}
METRICS = {
    "regression": ["loss", "rmse", "mae", "pearson", "spearman"],
    "multi-label-classification": ["loss", "label_f1_micro", "label_f1_macro", "label_match"],
}


def write_texts(path: Path, count: int, seed: int) -> Path:
    """Write random texts; `target` is the sum of what their words are worth, `labels` which of these words occur."""
    random = Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            words = [random.choice([*WORTH, *OTHERS]) for _ in range(random.randint(3, 6))]
            target, labels = sum(WORTH.get(word, 0) for word in words), sorted(set(words) & set(WORTH))
            file.write(json.dumps({"text": " ".join(words), "target": target, "labels": labels}) + "\n")
    return path


def recipe_for(task: str, folder: Path, method: dict[str, Any], output: str, model: str = "bert", **run) -> Recipe:
    """Return a recipe over the files in `folder`; twelve steps of eight rows, a checkpoint every four."""
    return Recipe.model_validate(
        {
            "model": {"name": str(folder / model), "task": task},
            "method": method,
            "data": {
                "train": str(folder / "train.jsonl"),
                "evaluation": str(folder / "evaluation.jsonl"),
                "format": FORMATS[task],
                "max_length": 32,
            },
            "training": {"steps": 12, "batch_size": 8, "learning_rate": 2e-2, "warmup": 2},
            "evaluation": {"metrics": METRICS[task]},
            "run": {"output": str(folder / output), "device": "cpu", "save_every": 4, **run},
        }
    )
