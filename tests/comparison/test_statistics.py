"""Intervals and differences against known answers: simulated comparisons, values by hand, scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from peftlab.comparison.statistics import Chance, adjust_holm, compare_pairs, estimate, freedom_of, holm_factors
from peftlab.comparison.variants import best_of
from peftlab.evaluation.resampling import Sample, draw_metric
from peftlab.metrics import RowScores

from .simulation import simulate_classes, simulate_losses

REPLICATES = 200
MIXTURES = {
    "seeds decide": {"of_seed": 0.1, "of_row_and_variant": 0.0, "of_rest": 0.05},
    "rows decide": {"of_seed": 0.0, "of_row_and_variant": 0.5, "of_rest": 0.1},
    "every run by itself": {"of_seed": 0.0, "of_row_and_variant": 0.0, "of_rest": 0.5},
    "all of them": {"of_seed": 0.05, "of_row_and_variant": 0.3, "of_rest": 0.3},
}


def at_most(share, trials):
    """Return how many of so many trials may come true at this chance: one in a thousand such tests fails by chance."""
    return stats.binom.ppf(0.999, trials, share)


def simulated_pairs(times, simulate, **how):
    random = np.random.default_rng(0)
    for _ in range(times):
        runs, owners = simulate(random, **how)
        yield compare_pairs(draw_metric("loss", runs, REPLICATES, random), owners)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_two_equal_methods_are_called_different_at_no_more_than_five_percent(mixture):
    pairs = simulated_pairs(600, simulate_losses, effects=[0, 0], **MIXTURES[mixture])
    assert sum(pair.significant for (pair,) in pairs) <= at_most(0.05, 600)


def test_two_equal_classifiers_are_called_different_at_no_more_than_five_percent():
    random = np.random.default_rng(0)
    different = 0
    for _ in range(300):
        runs, owners = simulate_classes(random, [0.7, 0.7])
        (pair,) = compare_pairs(draw_metric("f1_macro", runs, REPLICATES, random), owners)
        different += pair.significant
    assert different <= at_most(0.05, 300)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_any_false_difference_among_six_equal_methods_comes_in_no_more_than_five_percent(seeds):
    families = simulated_pairs(150, simulate_losses, effects=[0] * 6, seeds=seeds)
    assert sum(any(pair.significant for pair in pairs) for pairs in families) <= at_most(0.05, 150)


def test_a_planted_difference_is_found_and_its_interval_covers_it():
    pairs = [pair for (pair,) in simulated_pairs(300, simulate_losses, effects=[0.0, 0.4])]
    assert sum(pair.significant for pair in pairs) >= 285
    assert all(pair.value < 0 for pair in pairs if pair.significant)
    assert sum(not pair.low <= -0.4 <= pair.high for pair in pairs) <= at_most(0.05, 300)


def test_the_interval_of_a_mean_covers_what_more_rows_and_seeds_would_give():
    random = np.random.default_rng(0)
    missed = 0
    for _ in range(300):
        runs, owners = simulate_losses(random, [0.0])
        found = estimate(draw_metric("loss", runs, REPLICATES, random), owners)[0]
        missed += not found.low <= 1.0 <= found.high  # the rows' gamma distribution has the mean 1
    # The rows' skewness costs a little: Student's interval of 100 such rows alone misses in 6.5 %.
    assert missed <= at_most(0.065, 300)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_an_interval_of_two_seeds_covers_a_mean_whichever_chance_decides(share):
    """`share` is the seeds' part of the variance, which two of them show with one degree of freedom."""
    random, times, missed = np.random.default_rng(0), 4000, 0
    for error, seeds, rows in zip(
        random.normal(size=times), random.chisquare(1, times), random.chisquare(149, times) / 149, strict=True
    ):
        chance = Chance({"seeds": (share * seeds, 1.0), "rows": ((1 - share) * rows, 149.0)})
        missed += abs(error) > chance.added_half_width()
    assert missed <= at_most(0.05, times)


def test_two_seeds_and_rows_have_the_interval_worked_by_hand():
    values, drawn = np.array([1.0, 3.0]), np.array([[0.0, 2.0], [2.0, 4.0]])
    found = estimate(Sample(values, drawn, rows=100), ["a", "a"])["a"]
    # Seeds: variance 2 / 2, one freedom. Rows: means 1 and 3 have variance 2, times 100 / 99; equal in both seeds.
    of_seeds, of_rows = stats.t.ppf(0.975, 1), (2 * 100 / 99) ** 0.5 * stats.t.ppf(0.975, 99)
    assert found.high - found.mean == pytest.approx((of_seeds**2 + of_rows**2) ** 0.5)


def test_seeds_alone_give_welchs_test():
    first, second = [0.71, 0.74, 0.69], [0.63, 0.66, 0.58, 0.60]
    sample = Sample(np.array(first + second))
    (pair,) = compare_pairs(sample, ["a"] * 3 + ["b"] * 4)
    reference = stats.ttest_ind(first, second, equal_var=False)
    interval = reference.confidence_interval(0.95)
    assert pair.p == pytest.approx(reference.pvalue)
    assert (pair.low, pair.high) == pytest.approx((interval.low, interval.high))


def test_the_interval_of_seeds_alone_is_students():
    values = [1.0, 2.0, 4.0]
    found = estimate(Sample(np.array(values)), ["a"] * 3)["a"]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (found.low, found.high, found.spread) == pytest.approx((low, high, np.std(values, ddof=1)))
    assert (found.of_rows, found.of_seeds) == (False, True)


def test_one_seed_has_the_interval_of_its_rows_and_differs_by_its_weights_alone():
    random = np.random.default_rng(0)
    loss = random.gamma(1.0, 1.0, 200)
    runs = [RowScores(loss + shift, np.ones(200)) for shift in (0.0, random.normal(0.05, 0.3, 200))]
    sample = draw_metric("loss", runs, 4000)
    (pair,) = compare_pairs(sample, ["a", "b"])
    reference = stats.ttest_rel(runs[0].loss, runs[1].loss)
    assert (pair.scope, pair.significant) == ("weights", reference.pvalue < 0.05)
    assert pair.p == pytest.approx(reference.pvalue, rel=0.2)
    low, high = reference.confidence_interval(0.95)
    assert (pair.low, pair.high) == pytest.approx((low, high), abs=0.1 * (high - low))
    alone = estimate(sample, ["a", "b"])["a"]
    assert (alone.spread, alone.of_rows, alone.of_seeds) == (None, True, False)


def test_equal_runs_differ_by_nothing_and_constant_ones_significantly():
    sample = Sample(np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0]))
    equal, _, apart = compare_pairs(sample, list("aaabbbccc"))
    assert (equal.value, equal.p, equal.low, equal.high) == (0.0, 1.0, 0.0, 0.0)
    assert (apart.value, apart.significant) == (-1.0, True)


def test_values_that_are_not_finite_drop_out_of_the_seeds():
    sample = Sample(np.array([1.0, np.nan, 3.0, np.inf]))
    found = estimate(sample, ["a", "a", "a", "b"])
    assert list(found) == ["a"]
    assert (found["a"].mean, found["a"].seeds) == (2.0, 2)
    assert compare_pairs(sample, ["a", "a", "a", "b"]) == []


def test_without_rows_one_seed_is_compared_with_nothing():
    sample = Sample(np.array([1.0, 2.0, 2.1, 2.2]))
    (pair,) = compare_pairs(sample, ["a", "b", "b", "b"])
    assert (pair.scope, pair.significant, pair.p, pair.adjusted) == ("nothing", False, 1.0, 1.0)
    assert pair.low == pair.high == pair.value


def test_holms_factors_are_those_of_its_decisions():
    # 0.01 times 4 is rejected, 0.02 times 3 is not: the rest is kept with it, by the same factor.
    assert holm_factors([0.03, 0.01, 0.4, 0.02]) == [3, 4, 3, 3]
    assert holm_factors([0.001, 0.001]) in ([1, 2], [2, 1])
    assert holm_factors([]) == []


def test_intervals_are_corrected_as_the_verdicts_are():
    """Three variants of two numbers each: the first p-value is multiplied by 3, so its interval is of 98.3 %."""
    first, second, third = [1.0, 1.1, 1.2], [1.05, 1.2, 1.0], [3.0, 3.3, 3.1]
    pairs = compare_pairs(Sample(np.array(first + second + third)), list("aaabbbccc"))
    smallest = min(pairs, key=lambda pair: pair.p)
    values = {"a": first, "b": second, "c": third}
    reference = stats.ttest_ind(values[smallest.first], values[smallest.second], equal_var=False)
    low, high = reference.confidence_interval(1 - 0.05 / 3)
    assert (smallest.low, smallest.high) == pytest.approx((low, high))
    assert [pair.significant for pair in pairs] == [pair.low > 0 or pair.high < 0 for pair in pairs]


def test_rows_of_equal_weight_have_one_freedom_less_than_rows_and_one_that_decides_has_few():
    assert freedom_of(None, 50) == 49
    assert freedom_of(np.tile([1.0, -1.0], 25), 50) == pytest.approx(49)
    without = np.zeros(50)
    without[7] = 1.0  # kurtosis of one among n: about n
    squares = (without - 0.02) ** 2
    excess = (squares**2).mean() / squares.mean() ** 2 - 3
    assert freedom_of(without, 50) == pytest.approx(2 / (2 / 49 + excess / 50)) and freedom_of(without, 50) < 3


def test_the_metric_without_each_row_is_that_of_the_other_rows():
    random = np.random.default_rng(0)
    loss, count = random.gamma(1, 1, 7), random.integers(1, 9, 7).astype(float)
    sample = draw_metric("loss", [RowScores(loss, count)], 5)
    others = [np.delete(loss, row).sum() / np.delete(count, row).sum() for row in range(7)]
    assert sample.without[:, 0] == pytest.approx(others)


def test_holms_correction_is_the_one_worked_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.4 times 4, 3, 2, 1; never less than the one before, never above 1.
    assert adjust_holm([0.03, 0.01, 0.4, 0.02]) == pytest.approx([0.06, 0.04, 0.4, 0.06])
    assert adjust_holm([0.6, 0.7]) == [1.0, 1.0]
    assert adjust_holm([]) == []


def test_equal_learning_rates_chosen_with_a_seed_of_their_own_are_reported_without_its_luck():
    """Five learning rates that are equally good: the best by one seed is 1.16 deviations lucky."""
    random, times = np.random.default_rng(0), 4000
    shared, separate = [], []
    for _ in range(times):
        values = random.normal(0, 1, (5, 4))  # learning rates, and a tuning seed before the three of the report
        tuning, first = (best_of(dict(enumerate(values[:, seed])), higher_is_better=True) for seed in (0, 1))
        separate.append(values[tuning, 1:].mean())
        shared.append(values[first, 1:].mean())
    error = 4 / (3 * times) ** 0.5
    assert abs(np.mean(separate)) < error
    assert np.mean(shared) == pytest.approx(1.163 / 3, abs=error)  # as it was: seed 0 chose and was reported
