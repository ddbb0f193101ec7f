"""Results of studies made up from a few numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from peftlab.evaluation.resampling import Sample
from peftlab.studies.compared import Arm, Compared


def invent(
    metrics: Mapping[str, Mapping[str, Sequence[float]]], arms: Mapping[str, Arm] | None = None, targets: float = 640.0
) -> Compared:
    """Return finished runs with these values, by metric, variant and seed."""
    labels = next(iter(metrics.values()))
    owners = [label for label, values in labels.items() for _ in values]
    samples = {
        name: Sample(np.array([value for label in labels for value in found[label]], float))
        for name, found in metrics.items()
    }
    known = arms if arms is not None else {label: Arm(trainable=1000, total=10_000) for label in labels}
    return Compared(owners, samples, known, targets, seconds=60.0)


def around(mean: float, seeds: int = 5, spread: float = 0.01) -> list[float]:
    """Return values of seeds with this mean, evenly apart."""
    return [mean + spread * step for step in np.linspace(-1, 1, seeds)]
