"""Recipes of settings that were drawn at random: stopped and resumed, each ends as a run that was not stopped."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from peftlab.errors import StoppedError
from peftlab.recipe.schema import Recipe
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from tests.runs.kills import compare, lines

SEEDS = range(24)
SPEED = ("loss", "packing", "linear", "feed_forward", "activation", "norm", "rotary")
TASKS: dict[str, dict[str, Any]] = {
    "causal-lm": {"train": "builtin:docstrings[train]", "evaluation": "builtin:docstrings[test]"},
    "sequence-classification": {"train": "builtin:topics[train]", "evaluation": "builtin:topics[test]"},
    "multi-label-classification": {"train": "builtin:mentions[train]", "evaluation": "builtin:mentions[test]"},
    "token-classification": {"train": "builtin:identifiers[train]", "evaluation": "builtin:identifiers[test]"},
    "regression": {"train": "builtin:readability[train]", "evaluation": "builtin:readability[test]"},
}


def draw_method(draw: random.Random) -> dict[str, Any]:
    lora = {
        "rank": draw.choice([1, 4]),
        "dropout": draw.choice([0, 0.1]),
        "targets": draw.choice(["all-linear", "attention"]),
    }
    return draw.choice(
        [
            {"type": "full"},
            {"type": "lora", "init": draw.choice(["gaussian", "pissa"]), "dora": draw.random() < 0.3} | lora,
            # Not int8, whose outliers depend on the other rows of a batch.
            {"type": "qlora", "quantization": draw.choice(["nf4", "fp4"])} | lora,
            {"type": "adapters", "bottleneck": 4},
            {"type": "prefix", "length": 3},
            {"type": "bitfit"},
        ]
    )


def draw_recipe(seed: int, output: Path) -> dict[str, Any]:
    """Return the sections of a recipe with every setting on which the bytes of a resumed run may depend."""
    draw = random.Random(seed)
    task, method = draw.choice(list(TASKS)), draw_method(draw)
    average: dict[str, Any] = draw.choice([{}, {}, {"ema": 0.9}, {"last": 2}])
    evaluation = {"every": draw.choice([2, 3])} if draw.random() < 0.7 else {}
    kept = draw.choice(["best", "both", "last"]) if evaluation and "last" not in average else "last"
    if evaluation and draw.random() < 0.3:
        evaluation["patience"] = 2
    return {
        "model": {"name": "builtin:tiny", "task": task},
        "method": method,
        "data": TASKS[task] | {"max_length": 48, "train_rows": draw.choice([13, 20]), "evaluation_rows": 4},
        "training": {
            "steps": draw.choice([5, 6, 7]),
            "batch_size": draw.choice([1, 2, 3]),
            "gradient_accumulation": draw.choice([1, 1, 2]),
            "learning_rate": 1e-3,
            "schedule": draw.choice(["constant", "linear", "cosine"]),
            "warmup": draw.choice([0, 2, 0.3]),
            "weight_decay": draw.choice([0, 0.1]),
            "clip": draw.choice([1.0, None]),
            "optimizer": draw.choice([{"type": "adamw"}, {"type": "sgd", "momentum": 0.9}]),
            "gradient_checkpointing": method["type"] != "prefix" and draw.choice([False, True, 1]),
            "average": average,
        },
        "evaluation": evaluation | {"generation": {"examples": 0}},
        "run": {
            "output": str(output),
            "device": "cpu",
            "seed": draw.randrange(99),
            "save_every": draw.choice([1, 2, 3]),
            "keep_checkpoints": draw.choice([2, 3]),
            "keep": kept,
            "log_every": draw.choice([1, 10]),
        },
    }


def run(sections: dict[str, Any], *, resume: bool = False, **settings: Any) -> None:
    made = sections | {"run": sections["run"] | settings}
    train(Recipe.model_validate(made), resume=resume, display=NoDisplay())


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in lines(folder)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_of_any_settings_that_is_stopped_ends_as_one_that_is_not(seed, tmp_path):
    sections = draw_recipe(seed, tmp_path / "straight")
    run(sections)
    steps = sorted(random.Random(-seed - 1).sample(range(1, 5), 2))
    for number, step in enumerate(steps):
        with pytest.raises(StoppedError):
            run(sections, resume=number > 0, output=str(tmp_path / "stopped"), stop_after=step)
    run(sections, resume=True, output=str(tmp_path / "stopped"))
    different = [name for name, same in compare(tmp_path / "straight", tmp_path / "stopped").items() if not same]
    assert not different


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_speed_ups_give_the_losses_of_a_run_without_them(seed, tmp_path):
    """Without dropout, for which packed rows draw other numbers than padded ones."""
    sections = draw_recipe(seed, tmp_path / "fast")
    sections["method"].pop("dropout", None)
    sections["training"]["frozen_dropout"] = "off"
    run(sections)
    slow = sections["training"] | {"speed": dict.fromkeys(SPEED, "off")}
    run(sections | {"training": slow}, output=str(tmp_path / "slow"))
    assert losses(tmp_path / "fast") == pytest.approx(losses(tmp_path / "slow"), rel=1e-4)
