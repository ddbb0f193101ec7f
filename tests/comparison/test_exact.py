"""Paired rows that are right or wrong: exact p-values against scipy's binomial test and against all signs counted."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest

from peftlab.comparison.exact import FEW, exact_p, row_values
from peftlab.comparison.statistics import LEVEL, compare_pairs, estimate
from peftlab.evaluation.resampling import draw_metric
from peftlab.metrics import RowScores


def answered(*runs):
    """Return a sample of the accuracy of runs whose rows are right (1) or wrong (0)."""
    label = np.zeros(len(runs[0]), int)
    scores = [RowScores(np.ones(len(label)), np.ones(len(label)), 1 - np.array(run), label) for run in runs]
    return draw_metric("accuracy", scores)


def discordant(for_first, for_second, rows=64):
    """Return two runs that are right on the same rows but for these numbers of them."""
    first = [1] * for_first + [0] * for_second + [1, 0] * rows
    second = [0] * for_first + [1] * for_second + [1, 0] * rows
    return first[:rows], second[:rows]


@pytest.mark.parametrize("counts", [(5, 0), (6, 0), (4, 1), (9, 2), (1, 1), (0, 8), (20, 9)])
def test_few_discordant_rows_have_mcnemars_exact_p_value(counts):
    expected = binomtest(counts[0], sum(counts)).pvalue
    (pair,) = compare_pairs(answered(*discordant(*counts)), ["a", "b"])
    assert pair.p == pytest.approx(expected)
    assert (pair.low > 0 or pair.high < 0) == pair.significant == (expected < 1 - LEVEL)


def test_five_of_64_rows_that_all_differ_one_way_are_not_significant():
    (pair,) = compare_pairs(answered(*discordant(5, 0)), ["a", "b"])
    assert pair.p == 0.0625 and pair.low <= 0 < pair.high
    change = estimate(answered(*discordant(5, 0)) - answered(*discordant(5, 0)[::-1]), ["a", "b"], change=True)
    assert change["a"].low <= 0 < change["a"].mean == 5 / 64


def test_signs_of_rows_that_differ_by_several_seeds_are_all_counted():
    random = np.random.default_rng(0)
    for _ in range(20):
        sizes = random.integers(-6, 7, 9)
        sums = [sum(signs * sizes) for signs in product((-1, 1), repeat=9)]
        share = np.mean([abs(one) >= abs(sizes.sum()) for one in sums])
        assert exact_p(sizes / 6, 1 / 6) == pytest.approx(share)


def test_many_discordant_rows_and_metrics_of_another_kind_are_left_to_students_distribution():
    assert exact_p(np.ones(FEW)) == pytest.approx(2 / 2**FEW) and exact_p(np.ones(FEW + 1)) == 0.0
    lengths = draw_metric("loss", [RowScores(np.arange(8.0), np.arange(1.0, 9.0))])
    assert row_values(lengths.values, lengths.without) is None
    assert row_values(np.ones(1), None) is None


def test_the_rows_of_a_share_are_found_again():
    first, second = discordant(3, 2)
    sample = answered(first, second)
    assert np.array_equal(row_values(sample.values, sample.without), np.array([first, second]).T)


@pytest.mark.parametrize("seeds", [1, 3])
def test_equal_methods_that_differ_in_five_rows_are_never_called_different(seeds):
    """In 1 of 16 comparisons all five favour one method, more often than 5 %; all seeds of a method agree."""
    random = np.random.default_rng(1)
    for _ in range(100):
        shared = random.integers(0, 2, 64)
        luck = np.concatenate([random.integers(0, 2, 5), shared[5:]])
        other = np.concatenate([1 - luck[:5], shared[5:]])
        (pair,) = compare_pairs(answered(*[luck] * seeds, *[other] * seeds), ["a"] * seeds + ["b"] * seeds)
        assert not pair.significant and pair.low <= 0 <= pair.high
