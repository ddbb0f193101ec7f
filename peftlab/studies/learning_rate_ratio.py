"""The learning rate at which LoRA learns best: about ten times that of full fine-tuning, at every rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, isfinite, log
from typing import Any

import numpy as np

from peftlab.comparison.parabola import least_between
from peftlab.studies.charts import Curves, Point
from peftlab.studies.compared import Compared
from peftlab.studies.docstrings import docstring_recipe
from peftlab.studies.parts import Comparing
from peftlab.studies.quantity import Quantity
from peftlab.studies.study import Expectation, Found, Setting, Study, Table

ALPHA = 16


@dataclass(frozen=True)
class Scale:
    """A size: ranks, the learning rates of full fine-tuning and those of LoRA, steps and seeds."""

    ranks: tuple[int, ...]
    full: tuple[float, ...]
    lora: tuple[float, ...]
    steps: int
    seeds: int


SCALES = {
    "trial": Scale((1, 16), (3e-4, 1e-3, 3e-3), (3e-3, 1e-2, 3e-2), 3, 2),
    "small": Scale((1, 4, 16), (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), 60, 4),
    "large": Scale(
        (1, 4, 16, 64), (3e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3), (3e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2), 400, 5
    ),
}


def name_of(rank: int) -> str:
    return f"lora rank {rank}"


def label_of(arm: str, learning_rate: float) -> str:
    return f"{arm} at {learning_rate:g}"


def arms_of(scale: Scale) -> dict[str, tuple[dict[str, Any], Sequence[float]]]:
    """Return by name each method and its learning rates; alpha is the same at every rank."""
    arms: dict[str, tuple[dict[str, Any], Sequence[float]]] = {"full": ({"type": "full"}, scale.full)}
    for rank in scale.ranks:
        arms[name_of(rank)] = ({"type": "lora", "rank": rank, "alpha": ALPHA, "targets": "all-linear"}, scale.lora)
    return arms


def parts(setting: Setting) -> list[Comparing]:
    scale = SCALES[setting.size]
    recipes = {
        label_of(name, learning_rate): docstring_recipe(method, learning_rate, steps=scale.steps)
        for name, (method, learning_rates) in arms_of(scale).items() for learning_rate in learning_rates
    }  # fmt: skip
    return [Comparing("learning-rates", recipes, seeds=scale.seeds)]


def expectations(size: str) -> list[Expectation]:
    ranks = SCALES[size].ranks
    return [
        Expectation("ratio", f"best learning rate of LoRA (rank {ranks[-1]}), a multiple of full fine-tuning's", 5, 20),
        Expectation("rank", f"best learning rate of rank {ranks[0]} as a multiple of that of rank {ranks[-1]}", 0.5, 2),
    ]  # fmt: skip


def best_learning_rate(learning_rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the learning rate of the least loss, by a parabola through the best and its neighbours, in logarithms.

    None where the best is at an end, because a better one may be beyond it, and where a neighbour has no finite loss.
    """
    known = [loss if isfinite(loss) else np.inf for loss in losses]
    best = int(np.argmin(known))
    if not 0 < best < len(known) - 1 or not all(isfinite(known[place]) for place in (best - 1, best, best + 1)):
        return None
    near = slice(best - 1, best + 2)
    least = least_between([log(rate) for rate in learning_rates[near]], known[near])
    return learning_rates[best] if least is None else exp(least)


def optima(compared: Compared, arm: str, learning_rates: Sequence[float]) -> list[float] | None:
    """Return each seed's best learning rate; None where one is not inside of what was tried, or a run is missing."""
    found = [compared.values("loss", label_of(arm, one)) for one in learning_rates]
    if len({len(values) for values in found}) != 1:
        return None
    best = [best_learning_rate(learning_rates, losses) for losses in zip(*found, strict=True)]
    known = [one for one in best if one is not None]
    return known if known and len(known) == len(best) else None


def ratio(first: list[float] | None, second: list[float] | None, confidence: float) -> Quantity | None:
    """Return the ratio of two learning rates over the seeds."""
    if not first or not second or len(first) != len(second):
        return None
    logs = Quantity.of_values([log(a / b) for a, b in zip(first, second, strict=True)], confidence)
    return logs and logs.through(exp)


def tried(compared: Compared) -> dict[str, list[float]]:
    """Return by arm the learning rates that were tried, ascending."""
    arms: dict[str, list[float]] = {}
    for label in dict.fromkeys(compared.owners):
        arm, _, learning_rate = label.rpartition(" at ")
        arms.setdefault(arm, []).append(float(learning_rate))
    return {arm: sorted(learning_rates) for arm, learning_rates in arms.items()}


def measure(results: Mapping[str, Any], confidence: float) -> Found:
    compared: Compared = results["learning-rates"]
    arms = tried(compared)
    best = {arm: optima(compared, arm, learning_rates) for arm, learning_rates in arms.items()}
    ranks = [arm for arm in arms if arm != "full"]
    quantities = {
        "ratio": ratio(best.get(ranks[-1]), best.get("full"), confidence) if ranks else None,
        "rank": ratio(best[ranks[0]], best[ranks[-1]], confidence) if ranks else None,
    }
    notes = [
        f"{arm}: with a seed the best learning rate is at an end of those tried, so that a better one may be beyond it"
        for arm, found in best.items() if found is None
    ]  # fmt: skip
    return Found(quantities, [table_of(compared, arms, best)], [chart_of(compared, arms)], notes)


def table_of(compared: Compared, arms: Mapping[str, list[float]], best: Mapping[str, list[float] | None]) -> Table:
    rows = []
    for arm, learning_rates in arms.items():
        means = {one: compared.mean("loss", label_of(arm, one)) for one in learning_rates}
        known = {one: found.value for one, found in means.items() if found}
        least = min(known, key=known.__getitem__) if known else None
        found = best[arm]
        trainable = max(
            (one.trainable for label, one in compared.arms.items() if label.startswith(f"{arm} at ")), default=0
        )
        middle = f"{exp(float(np.mean(np.log(found)))):.2g}" if found else "–"
        rows.append(
            [arm, f"{trainable:,}", f"{least:g}" if least else "–", f"{known[least]:.3f}" if least else "–", middle]
        )
    columns = ["method", "trainable", "best of those tried", "its loss", "best by the parabola"]
    return Table("Best learning rates", columns, rows, "The parabola's is the geometric mean over the seeds.")


def chart_of(compared: Compared, arms: Mapping[str, list[float]]) -> Curves:
    def points(arm: str) -> list[Point]:
        means = ((one, compared.mean("loss", label_of(arm, one))) for one in arms[arm])
        return [Point(one, found.value, found.low, found.high) for one, found in means if found]

    return Curves(
        "learning_rates", "Test loss by learning rate", "Means over the seeds, with 95 % intervals.", "learning rate",
        "test loss", {arm: points(arm) for arm in arms}, log_x=True,
    )  # fmt: skip


LEARNING_RATE_RATIO = Study(
    name="learning-rate-ratio",
    question="Which learning rate does LoRA need, and does it depend on the rank?",
    claim="LoRA learns best at about ten times the learning rate of full fine-tuning, and with the update scaled by "
    "alpha/rank at the same one for every rank.",
    source="LoRA Without Regret (Thinking Machines, 2025)",
    minutes={"trial": 2, "small": 20, "large": 240},
    expectations=expectations,
    parts=parts,
    measure=measure,
)
