"""Simulates comparisons of equal methods and counts the report's false claims: its own functions, its own level.

Usage: python scripts/simulate_comparisons.py [--only NAME] [--times 2000] [--output FILE]

Every design is a metric, a number of seeds and of variants, and the part of a row's difficulty that all variants share.
Counted are comparisons in which any pair is called different (nominal: at most 5 %), and intervals of means that cover
the truth (nominal: 95 %). With one seed the truth is that of the weights: such runs have no chance of the seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peftlab.comparison.statistics import compare_pairs, estimate
from peftlab.evaluation.resampling import draw_metric
from peftlab.metrics import RowScores

TIMES, REPLICATES = 2000, 200
OUTPUT = Path(__file__).with_suffix(".json")
SEED_SPREAD = 0.1
WRONG_ABOVE = 0.5  # of the latent difficulty: about 69 % of rows are right


@dataclass(frozen=True)
class Design:
    """One kind of comparison; `shared` is the correlation of a row's difficulty between any two variants."""

    metric: str
    tokens: str = "equal"
    seeds: int = 3
    variants: int = 2
    shared: float = 0.5
    rows: int = 150


def designs() -> Iterator[Design]:
    """Yield what is simulated."""
    for seeds in (1, 2, 3, 4, 5):
        yield from (Design("loss", "equal", seeds, variants) for variants in (2, 4, 8))
    yield from (Design("loss", "equal", 3, variants, shared) for shared in (0.0, 0.9) for variants in (2, 6))
    for metric, tokens in (
        ("loss", "heavy-tailed"),
        ("accuracy", "equal"),
        ("exact_match", "equal"),
        ("rougeL", "equal"),
    ):
        yield from (Design(metric, tokens, seeds, variants) for seeds, variants in ((1, 2), (3, 2), (5, 2), (3, 6)))
    yield from (Design("bleu", "equal", seeds) for seeds in (1, 3, 5))  # each value takes 50 microseconds


def simulate(design: Design, random: np.random.Generator) -> tuple[list[RowScores], list[int], list[float]]:
    """Return the runs of one comparison of equal variants, their owners, and each variant's true value (or NaN)."""
    spread = SEED_SPREAD if design.seeds > 1 else 0.0
    luck = random.normal(0, spread, (design.variants, design.seeds))
    common, own = design.shared**0.5, (1 - design.shared) ** 0.5
    latent = (
        common * random.normal(0, 1, (design.rows, 1, 1)) + own * random.normal(0, 1, (design.rows, design.variants, 1))
    ) * 0.9**0.5 + random.normal(0, 0.1**0.5, (design.rows, design.variants, design.seeds))
    latent = (latent + luck).reshape(design.rows, -1)
    count = np.full(design.rows, 20.0)
    if design.tokens == "heavy-tailed":
        count = np.maximum(4, np.round(random.lognormal(3, 1.5, design.rows)))
    label = random.integers(3, size=design.rows)
    runs = [_scores(design.metric, column, count, label, random) for column in latent.T]
    owners = [variant for variant in range(design.variants) for _ in range(design.seeds)]
    return runs, owners, [_truth(design.metric, spread)] * design.variants


def _scores(metric: str, latent: Any, count: Any, label: Any, random: np.random.Generator) -> RowScores:
    """Return what a run scored on rows of this latent difficulty."""
    right = latent < WRONG_ABOVE
    if metric == "loss":
        return RowScores((2 + latent) * count, count)
    if metric in ("accuracy", "f1_macro"):
        return RowScores(np.ones(len(label)), np.ones(len(label)), np.where(right, label, (label + 1) % 3), label)
    if metric == "exact_match":
        return RowScores(sums={"exact_match": right.astype(float)})
    quality = stats.norm.cdf(0.5 - 0.7 * latent)
    if metric == "rougeL":
        return RowScores(sums={"rougeL": quality})
    found = {"bleu_length": count, "bleu_reference_length": count}
    for order in range(1, 5):
        totals = count - order + 1
        found[f"bleu_hits_{order}"] = random.binomial(totals.astype(int), quality**order).astype(float)
        found[f"bleu_totals_{order}"] = totals
    return RowScores(sums=found)


def _truth(metric: str, spread: float) -> float:
    """Return the metric over all rows and seeds, where it has a closed form."""
    if metric == "loss":
        return 2.0
    if metric in ("accuracy", "exact_match"):
        return float(stats.norm.cdf(WRONG_ABOVE / (1 + spread**2) ** 0.5))
    if metric == "rougeL":
        return float(stats.norm.cdf(0.5 / (1 + 0.49 * (1 + spread**2)) ** 0.5))
    return nan


def measure(design: Design, times: int = TIMES, replicates: int = REPLICATES) -> dict[str, Any]:
    """Return the share of comparisons with a false difference, and of means whose interval covers the truth."""
    random = np.random.default_rng(list(repr(design).encode()))
    false = covered = 0
    for _ in range(times):
        runs, owners, truth = simulate(design, random)
        sample = draw_metric(design.metric, runs, replicates, random)
        false += any(pair.significant for pair in compare_pairs(sample, owners))
        found = estimate(sample, owners)
        covered += sum(found[variant].low <= truth[variant] <= found[variant].high for variant in found)
    known = np.isfinite(truth[0])
    return asdict(design) | {
        "times": times, "replicates": replicates, "false_positive_share": false / times,
        "coverage": covered / (times * design.variants) if known else None,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="simulate this metric alone; the others' results stay in the file")
    parser.add_argument("--times", type=int, default=TIMES, help="comparisons of each design")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args()
    chosen = [design for design in designs() if given.only in (None, design.metric)]
    known = json.loads(given.output.read_text()) if given.output.exists() else []
    kept = [one for one in known if Design(**{key: one[key] for key in asdict(Design(""))}) not in chosen]
    started = time.monotonic()
    with ProcessPoolExecutor(given.jobs) as pool:
        found = list(pool.map(measure, chosen, [given.times] * len(chosen)))
    order = [asdict(design) for design in designs()]
    results = sorted([*kept, *found], key=lambda one: order.index({key: one[key] for key in order[0]}))
    given.output.write_text("[\n" + ",\n".join(json.dumps(one) for one in results) + "\n]\n")
    for one in found:
        coverage = "    -" if one["coverage"] is None else f"{100 * one['coverage']:5.1f}"
        print(
            f"{one['metric']:12} {one['tokens']:12} {one['seeds']} seeds {one['variants']} variants, "
            f"shared {one['shared']}: false {100 * one['false_positive_share']:4.1f} %, coverage {coverage} %"
        )
    print(f"{len(found)} designs of {given.times} comparisons in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
