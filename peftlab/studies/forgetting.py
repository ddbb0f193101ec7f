"""What each method learns, and what it forgets of other text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from peftlab.studies.compared import FORGETTING as FORGOTTEN
from peftlab.studies.compared import Compared
from peftlab.studies.docstrings import docstring_recipe
from peftlab.studies.figures import metric_picture, metric_table
from peftlab.studies.parts import Comparing
from peftlab.studies.study import Expectation, Found, Setting, Study


class Scale(NamedTuple):
    """A size: steps, rows of general text, and seeds."""

    steps: int
    general: int
    seeds: int


SCALES = {"trial": Scale(3, 4, 2), "small": Scale(150, 48, 4), "large": Scale(1500, 96, 8)}
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "full": ({"type": "full"}, 1e-3),
    "lora": ({"type": "lora", "rank": 8, "alpha": 16, "targets": "all-linear"}, 5e-3),
    "adapters": ({"type": "adapters", "bottleneck": 16}, 5e-3),
    "prefix": ({"type": "prefix", "length": 10}, 3e-2),
    "bitfit": ({"type": "bitfit"}, 1e-2),
}
TITLES = {"lora": "LoRA", "adapters": "adapters", "prefix": "prefix tuning", "bitfit": "BitFit"}


def parts(setting: Setting) -> list[Comparing]:
    scale = SCALES[setting.size]
    general = f"builtin:prose[test[:{scale.general}]]"
    recipes = {
        name: docstring_recipe(method, learning_rate, steps=scale.steps, general=general)
        for name, (method, learning_rate) in METHODS.items()
    }
    factors = (1.0,) if setting.size == "trial" else (0.3, 1.0, 3.0)
    return [Comparing("methods", recipes, scale.seeds, factors, metric="loss")]


def expectations(size: str) -> list[Expectation]:
    learned = Expectation("learned", "test loss of LoRA less that of full fine-tuning", least=0)
    return [learned] + [
        Expectation(name, f"what full fine-tuning adds to the loss of other text, less what {title} adds", least=0)
        for name, title in TITLES.items()
    ]


def measure(results: Mapping[str, Any], confidence: float) -> Found:
    compared: Compared = results["methods"]
    quantities = {"learned": compared.difference("loss", "lora", "full", confidence)} | {
        name: compared.difference(FORGOTTEN, "full", name, confidence) for name in TITLES
    }
    table = metric_table("Learned and forgotten", compared, ("loss", FORGOTTEN))
    pictures = [
        metric_picture("Test loss", compared),
        metric_picture("What training added to the loss of other text", compared, FORGOTTEN),
    ]
    return Found(quantities, [table], pictures, ["The other text is prose of Python's documentation."])


FORGETTING = Study(
    name="forgetting",
    question="What does each method forget of what it was not trained on?",
    claim="LoRA learns less than full fine-tuning and forgets less, and so do adapters, prefix tuning and BitFit.",
    source="LoRA Learns Less and Forgets Less (arXiv 2405.09673)",
    minutes={"trial": 2, "small": 25, "large": 300},
    expectations=expectations,
    parts=parts,
    measure=measure,
)
