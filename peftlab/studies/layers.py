"""Which layers LoRA should change: all of them or the attention's alone, at the same number of trained parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from peftlab.studies.compared import Compared
from peftlab.studies.docstrings import docstring_recipe
from peftlab.studies.figures import metric_picture, metric_table
from peftlab.studies.parts import Comparing
from peftlab.studies.study import Expectation, Found, Setting, Study


class Scale(NamedTuple):
    """A size: trained parameters, steps and seeds."""

    trainable: int
    steps: int
    seeds: int


SCALES = {"trial": Scale(21_888, 3, 2), "small": Scale(175_104, 100, 5), "large": Scale(700_416, 600, 8)}
MLP = ["*.gate_proj", "*.up_proj", "*.down_proj"]
TARGETS: dict[str, Any] = {"all": "all-linear", "attention": "attention", "mlp": MLP}


def parts(setting: Setting) -> list[Comparing]:
    scale = SCALES[setting.size]
    recipes = {
        name: docstring_recipe({"type": "lora", "rank": 8, "alpha": 16, "targets": targets}, 5e-3, steps=scale.steps)
        for name, targets in TARGETS.items()
    }
    factors = (1.0,) if setting.size == "trial" else (0.3, 1.0, 3.0)
    return [
        Comparing("targets", recipes, scale.seeds, factors, budgets=[f"trainable={scale.trainable}"], metric="loss")
    ]


def expectations(size: str) -> list[Expectation]:
    return [
        Expectation("all", "loss of attention alone less that of all layers", least=0),
        Expectation("mlp", "loss of attention alone less that of the feed-forward layers alone", least=0),
    ]


def measure(results: Mapping[str, Any], confidence: float) -> Found:
    compared: Compared = results["targets"]
    quantities = {other: compared.difference("loss", "attention", other, confidence) for other in ("all", "mlp")}
    return Found(
        quantities, [metric_table("Test loss by what LoRA changes", compared)], [metric_picture("Test loss", compared)]
    )


LAYERS = Study(
    name="layers",
    question="Should LoRA change all layers, or the attention's alone?",
    claim="At the same number of trained parameters, LoRA of the attention alone is worse than LoRA of all layers, and "
    "than LoRA of the feed-forward layers alone.",
    source="LoRA Without Regret (Thinking Machines, 2025)",
    minutes={"trial": 1, "small": 15, "large": 200},
    expectations=expectations,
    parts=parts,
    measure=measure,
)
