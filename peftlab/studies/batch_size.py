"""Whether LoRA loses more than full fine-tuning where batches are large, at the same number of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from peftlab.studies.charts import Curves, Point
from peftlab.studies.compared import Compared
from peftlab.studies.docstrings import docstring_recipe
from peftlab.studies.figures import metric_table
from peftlab.studies.parts import Comparing
from peftlab.studies.quantity import Quantity
from peftlab.studies.study import Expectation, Found, Setting, Study


class Scale(NamedTuple):
    """A size: rows of a small and of a large batch, rows that a run sees in all, and seeds."""

    small: int
    large: int
    rows: int
    seeds: int


SCALES = {"trial": Scale(2, 4, 8, 2), "small": Scale(4, 32, 640, 4), "large": Scale(4, 64, 6400, 8)}
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "full": ({"type": "full"}, 1e-3),
    "lora": ({"type": "lora", "rank": 8, "alpha": 16, "targets": "all-linear"}, 5e-3),
}


def label_of(method: str, rows: int) -> str:
    return f"{method}, batches of {rows}"


def parts(setting: Setting) -> list[Comparing]:
    scale = SCALES[setting.size]
    recipes = {
        label_of(name, rows): docstring_recipe(method, learning_rate, steps=scale.rows // rows, rows=rows)
        for rows in (scale.small, scale.large) for name, (method, learning_rate) in METHODS.items()
    }  # fmt: skip
    factors = (1.0,) if setting.size == "trial" else (0.3, 1.0, 3.0)
    return [Comparing("batches", recipes, scale.seeds, factors, metric="loss")]


def expectations(size: str) -> list[Expectation]:
    small, large, rows, _ = SCALES[size]
    text = f"how much more LoRA's loss is above full fine-tuning's with batches of {large} than of {small}"
    return [Expectation("gap", f"{text}, after {rows:,} rows", least=0)]


def sizes_of(compared: Compared) -> list[int]:
    """Return the batch sizes that were run, ascending."""
    return sorted({int(label.rpartition(" ")[2]) for label in compared.owners})


def measure(results: Mapping[str, Any], confidence: float) -> Found:
    compared: Compared = results["batches"]
    sizes = sizes_of(compared)
    gap: Quantity | None = None
    if len(sizes) == 2:
        (lora_small, lora_large), (full_small, full_large) = (
            [label_of(name, rows) for rows in sizes] for name in ("lora", "full")
        )
        gap = compared.contrast("loss", [lora_large, full_small], [full_large, lora_small], confidence)
    return Found({"gap": gap}, [metric_table("Test loss by batch size", compared)], [chart_of(compared, sizes)])


def chart_of(compared: Compared, sizes: list[int]) -> Curves:
    def points(name: str) -> list[Point]:
        means = ((rows, compared.mean("loss", label_of(name, rows))) for rows in sizes)
        return [Point(rows, found.value, found.low, found.high) for rows, found in means if found]

    return Curves(
        "batches", "Test loss by batch size", "Every run sees the same number of rows. Means over the seeds, with 95 % "
        "intervals.", "rows of a batch", "test loss", {name: points(name) for name in METHODS}, log_x=True,
    )  # fmt: skip


BATCH_SIZE = Study(
    name="batch-size",
    question="Does LoRA suffer more from large batches than full fine-tuning?",
    claim="With large batches LoRA is further behind full fine-tuning than with small ones, at the same number of rows "
    "and the best learning rate of each.",
    source="LoRA Without Regret (Thinking Machines, 2025)",
    minutes={"trial": 1, "small": 20, "large": 300},
    expectations=expectations,
    parts=parts,
    measure=measure,
)
