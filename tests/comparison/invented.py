"""Comparisons invented in memory: tables whose runs have random scores, losses, ties, failures and missing rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from peftlab.comparison.rows import Row, Table
from peftlab.comparison.trials import Trial
from peftlab.metrics import METRICS, RowScores
from peftlab.reports import ComparisonReport, ParameterReport, RunResult, TrialReport, VariantReport


def invent(seed: int) -> Table:
    """Return a comparison of 1 to 8 variants with 1 to 5 seeds; every kind of fault turns up among a few seeds."""
    random = np.random.default_rng(seed)
    metric = ["loss", "accuracy"][random.integers(2)]
    rows, budgets = int(random.integers(5, 60)), [None] if random.random() < 0.7 else ["trainable=1%", "memory=1GiB"]
    variants, seeds = int(random.integers(1, 9)), int(random.choice([1, 1, 2, 3, 5]))
    effects = random.choice([0.0, 0.0, 0.1, 0.5, 1.0], variants)
    difficulty = random.gamma(4.0, 0.25, rows)
    found = [
        _row(random, f"v{place}", budget, metric, effect, difficulty, seeds, place)
        for budget in budgets for place, effect in enumerate(effects)
    ]  # fmt: skip
    report = ComparisonReport(
        name="invented", metric=metric, higher_is_better=METRICS[metric].higher_is_better, seeds=list(range(seeds)),
        variants=[row.variant for row in found],
    )  # fmt: skip
    return Table(Path("nowhere"), report, found, [])


def _row(random, name, budget, metric, effect, difficulty, seeds, place) -> Row:
    label = f"{name} ({budget})" if budget else name
    fault = random.choice(["", "", "", "", "some fail", "all fail", "tie", "no rows", "other rows"])
    trials = []
    for seed in range(seeds):
        run = f"{label}-{seed}"
        if fault == "all fail" or (fault == "some fail" and random.random() < 0.5):
            trials.append(Trial(TrialReport(run=run, learning_rate=1e-3, seed=seed, status="diverged", error="nan")))
            continue
        source = np.random.default_rng(7) if fault == "tie" else random
        rows = len(difficulty) - (fault == "other rows")
        losses = np.maximum(difficulty[:rows] + effect + source.normal(0, 0.3, rows) + source.normal(0, 0.05), 0.01)
        trials.append(_trial(run, seed, losses, fault == "no rows", place))
    variant = VariantReport(
        name=name, method="lora", title="LoRA", budget=budget, learning_rate=1e-3, trials=[one.report for one in trials]
    )
    return Row(label, variant, trials, [], metric)


def _trial(run, seed, losses, without_rows, place) -> Trial:
    after, before = _scores(losses), _scores(losses + 0.4)
    metrics = {when: {name: METRICS[name].of_rows(scores) for name in ("loss", "accuracy")}
               for when, scores in (("test_after", after), ("test_before", before))}  # fmt: skip
    counts = ParameterReport(total=1000, trainable=100 * (place + 1), active=1000, stored_bytes=400 * (9 - place),
                             kinds=[], layers=[])  # fmt: skip
    result = RunResult(status="finished", name=run, recipe={}, environment={}, metrics=metrics, parameters=counts,
                       seconds={"training": 1.0 + place % 3})  # fmt: skip
    report = TrialReport(run=run, learning_rate=1e-3, seed=seed, status="finished", test=1.0)
    return Trial(report, result, scores={} if without_rows else {"test_after": after, "test_before": before})


def _scores(losses) -> RowScores:
    ones = np.ones(len(losses))
    return RowScores(losses, ones, (losses < 1.2).astype(int), ones.astype(int), labels=2)
