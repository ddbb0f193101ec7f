"""The gate before a folder is kept: is what was written the model that was trained?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from peftlab.errors import StorageError
from peftlab.evaluation.agreement import Outputs, rms
from peftlab.recipe.schema import Recipe
from peftlab.reports import AgreementReport
from peftlab.runs.bench import Bench, prepare
from peftlab.runs.directory import RunDirectory
from peftlab.runs.loading import fill_trained
from peftlab.runs.observer import Observer
from peftlab.runs.reopen import reopen_bench
from peftlab.world.base import World

# Held-out rows that are compared where nothing else is said.
ROWS = 64
# Below this many units of rounding of the logits, a difference is none, however little training changed.
ROUNDINGS = 2


class Tolerance(NamedTuple):
    """What may differ in a type of weights: a part of what training changed, and the rounding of one number."""

    share: float
    rounding: float


TOLERANCES = {
    "float32": Tolerance(0.01, 2**-23),
    "float16": Tolerance(0.03, 2**-10),
    "bfloat16": Tolerance(0.1, 2**-7),
    "q8_0": Tolerance(0.3, 2**-7),
    "int8": Tolerance(0.3, 2**-7),
    "nf4": Tolerance(1.0, 2**-5),
}


@dataclass(frozen=True)
class Gate:
    """A run's trained model, observed on held-out rows, to which other models are compared.

    `effect` is what training changed in its logits (root mean square).
    """

    observer: Observer
    trained: Outputs
    effect: float

    @property
    def part(self) -> str:
        """The rows: evaluation, test or train."""
        return self.observer.part

    def compare(self, model: nn.Module) -> AgreementReport:
        """Return how far a model is from the trained one on the same rows."""
        return self.observer.compare(self.trained, self.observer.observe(model))

    def limit(self, usual: Tolerance, wanted: float | None = None) -> float:
        """Return the largest difference of logits (root mean square) that passes.

        `wanted` is a part of what training changed, in place of the usual one; rounding is then not added.
        """
        if wanted is not None:
            return wanted * self.effect
        return max(usual.share * self.effect, ROUNDINGS * usual.rounding * rms(self.trained.logits))

    def check(self, found: AgreementReport, limit: float, what: str, remedy: str) -> None:
        """Raise StorageError where a model is farther from the trained one than `limit`; NaN is."""
        if not found.rms <= limit:
            raise StorageError(
                f"{what} is not the trained one: its logits differ by {found.rms:.3g} (rms), more than {limit:.3g}; "
                f"training changed them by {self.effect:.3g}. Nothing was written. {remedy}"
            )


def open_gate(bench: Bench, weights: Path, rows: int, precision: torch.dtype = torch.float32) -> tuple[Gate, nn.Module]:
    """Return the gate of a run on its first `rows` held-out rows, and the trained model.

    The bench's base becomes the trained model.
    """
    observer = Observer(bench, rows, precision)
    base = observer.observe(bench.base.model, answers=False)
    model = fill_trained(bench.recipe, bench.base, weights, bench.device)
    trained = observer.observe(model)
    return Gate(observer, trained, rms(trained.logits, base.logits)), model


def open_bench(directory: RunDirectory, recipe: Recipe, world: World, rows: int) -> Bench:
    """Return the run's bench, with the rows that it kept."""
    bench = reopen_bench(directory, recipe, world)
    if rows and not (bench.dataset.train or bench.dataset.evaluation or bench.dataset.test):
        return prepare(recipe, world)  # a run of an earlier version keeps no rows
    return bench
