"""Row scores of simulated runs, in which every source of chance is known."""

from __future__ import annotations

import numpy as np

from peftlab.metrics import RowScores


def simulate_losses(random, effects, seeds=3, rows=100, of_seed=0.05, of_row_and_variant=0.2, of_rest=0.2):
    """Return runs (variants' seeds side by side) and their owners; `effects` are the variants' true differences."""
    variants = len(effects)
    loss = (
        np.asarray(effects)[:, None]
        + random.gamma(1.0, 1.0, (rows, 1, 1))
        + random.normal(0, of_row_and_variant, (rows, variants, 1))
        + random.normal(0, of_seed, (1, variants, seeds))
        + random.normal(0, of_rest, (rows, variants, seeds))
    ).reshape(rows, variants * seeds)
    runs = [RowScores(column, np.ones(rows)) for column in loss.T]
    return runs, [variant for variant in range(variants) for _ in range(seeds)]


def simulate_classes(random, accuracies, seeds=3, rows=200, classes=3):
    """Return runs that are right on rows that are easy for all, and otherwise by chance, and their owners."""
    label = random.integers(classes, size=rows)
    difficulty = random.uniform(size=rows)
    runs = []
    for accuracy in accuracies:
        for _ in range(seeds):
            right = difficulty + random.normal(0, 0.2, rows) < accuracy + random.normal(0, 0.02)
            prediction = np.where(right, label, (label + 1) % classes)
            runs.append(RowScores(np.where(right, 0.1, 2.0), np.ones(rows), prediction, label))
    return runs, [variant for variant in range(len(accuracies)) for _ in range(seeds)]
