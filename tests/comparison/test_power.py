"""The seeds and rows that a difference needs: against textbook values, and against the report's own test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from peftlab.comparison.power import Power
from peftlab.comparison.statistics import compare_pairs
from peftlab.evaluation.resampling import draw_metric

from .simulation import simulate_losses


def test_seeds_alone_give_the_power_of_students_test():
    """Two groups of S: the noncentral t distribution with 2 (S - 1) degrees of freedom; Welch's test has a few less."""
    power = Power(of_seed=1.0, of_row=0.0, rows=100)
    for seeds in (8, 12, 20):
        freedom, shift = 2 * (seeds - 1), 1.0 / (2 / seeds) ** 0.5
        limit = stats.t.ppf(0.975, freedom)
        expected = stats.nct.sf(limit, freedom, shift) + stats.nct.cdf(-limit, freedom, shift)
        assert power.chance(1.0, seeds) == pytest.approx(expected, abs=0.025)
    assert power.seeds_for(1.0) == pytest.approx(17, abs=1)  # the textbook's 17 a group for one standard deviation


def test_without_a_difference_the_chance_is_five_percent_and_falls_with_the_pairs():
    assert Power(1.0, 0.0, 100).chance(0.0, 5) == pytest.approx(0.05, abs=0.011)
    assert Power(1.0, 0.0, 100, pairs=15).chance(0.0, 5) < 0.01


def test_rows_alone_need_as_many_as_a_paired_test():
    power = Power(of_seed=0.0, of_row=1.0, rows=100)
    assert power.rows_for(0.28, seeds=3) == pytest.approx(103, abs=7)  # (1.96 + 0.84)² / 0.28² = 100
    assert power.seeds_for(0.1) is None  # no seed adds rows


@pytest.mark.parametrize("effect", [0.05, 0.1])
def test_the_chance_is_the_share_of_comparisons_that_the_report_calls_different(effect):
    random, found, measured = np.random.default_rng(0), 0, []
    for _ in range(400):
        runs, owners = simulate_losses(random, [0.0, effect], of_seed=0.05, of_row_and_variant=0.1, of_rest=0.1)
        (pair,) = compare_pairs(draw_metric("loss", runs, 200, random), owners)
        found += pair.significant
        measured.append(Power.measured([pair], 3, 100))
    of_seed, of_row = (np.mean([getattr(one, name) for one in measured]) for name in ("of_seed", "of_row"))
    assert of_seed == pytest.approx(0.05**2 + 0.1**2 / 100, rel=0.15)
    assert of_row == pytest.approx(2 * 0.1**2 + 2 * 0.1**2 / 3 - 2 * 0.1**2 / 3, rel=0.3)
    assert Power(of_seed, of_row, 100).chance(effect, 3) == pytest.approx(found / 400, abs=0.07)


def test_what_was_not_measured_plans_nothing():
    assert Power.measured([], 3, 100) is None
