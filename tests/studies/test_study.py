"""The rule of a verdict, and the quantities that it judges, against values worked out by hand."""

from __future__ import annotations

from math import exp, inf, isinf, nan

import pytest

from peftlab.studies.quantity import Quantity
from peftlab.studies.study import Expectation, conclude

from .invented import invent

FIVE_TO_TWENTY = Expectation("ratio", "a ratio", 5, 20)


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (6, 19, "not refuted"),
        (5, 20, "not refuted"),
        (1, 4.9, "refuted"),
        (20.1, 30, "refuted"),
        (4, 6, "undecided"),
        (19, 21, "undecided"),
        (1, 30, "undecided"),
        (-inf, inf, "undecided"),
    ],
)
def test_only_an_interval_wholly_outside_refutes_and_one_wholly_inside_does_not(low, high, outcome):
    assert FIVE_TO_TWENTY.judge(Quantity((low + high) / 2, low, high)) == outcome


def test_what_was_not_measured_decides_nothing():
    assert FIVE_TO_TWENTY.judge(None) == "undecided"
    assert FIVE_TO_TWENTY.judge(Quantity.of_values([1.0], 0.95)) == "undecided"  # one seed has no interval


def test_an_open_range_refutes_on_one_side_alone():
    at_least = Expectation("d", "a difference", least=0)
    assert [at_least.judge(Quantity.exact(value)) for value in (-1, 0, 1e9)] == [
        "refuted", "not refuted", "not refuted"
    ]  # fmt: skip
    assert (at_least.range_text, at_least.refuted_where) == ("at least 0", "its whole interval is below 0")
    at_most = Expectation("m", "a share", most=0.5, unit="GB")
    assert (at_most.range_text, at_most.refuted_where) == ("at most 0.5 GB", "its whole interval is above 0.5 GB")


def test_one_refuted_expectation_refutes_the_claim_and_an_undecided_one_leaves_it_open():
    assert conclude(["not refuted", "refuted", "undecided"]) == "refuted"
    assert conclude(["not refuted", "undecided"]) == "undecided"
    assert conclude(["not refuted", "not refuted"]) == "not refuted"
    assert conclude([]) == "undecided"


def test_a_trial_decides_nothing():
    assert conclude(["refuted", "not refuted"], "trial") == "undecided"


def test_an_interval_of_seeds_is_students():
    # Mean 2, standard deviation 1, three seeds: t(2) at 95 % is 4.303, so 4.303 / sqrt(3) = 2.484.
    found = Quantity.of_values([1.0, 2.0, 3.0], 0.95)
    assert (found.value, found.low, found.high) == pytest.approx((2, -0.484, 4.484), abs=1e-3)


def test_values_that_are_not_finite_do_not_count():
    assert Quantity.of_values([nan, inf], 0.95) is None
    assert Quantity.of_values([nan, 1.0, 1.0], 0.95) == Quantity.exact(1.0)


def test_a_falling_function_turns_the_interval_round():
    assert Quantity(2, 1, 3).through(lambda x: -x) == Quantity(-2, -3, -1)
    assert Quantity(0, -1, 1).through(exp) == Quantity(1, exp(-1), exp(1))


def test_a_difference_has_the_chance_of_both_variants_seeds():
    # Variances of the means 1/3 each, together 2/3; Welch's degrees of freedom are 4, t(4) at 95 % is 2.776.
    found = invent({"loss": {"a": [1, 2, 3], "b": [4, 5, 6]}}).difference("loss", "a", "b", 0.95)
    half = 2.776 * (2 / 3) ** 0.5
    assert (found.value, found.low, found.high) == pytest.approx((-3, -3 - half, -3 + half), abs=1e-3)


def test_a_contrast_adds_and_subtracts_means():
    compared = invent({"loss": {"a": [1, 1], "b": [2, 2], "c": [5, 5], "d": [7, 7]}})
    found = compared.contrast("loss", ["d", "a"], ["c", "b"], 0.95)
    assert found == Quantity.exact(1.0)


def test_one_seed_has_no_interval_and_an_unknown_variant_no_quantity():
    compared = invent({"loss": {"a": [1.0], "b": [2.0, 2.1]}})
    found = compared.difference("loss", "a", "b", 0.95)
    assert found.value == pytest.approx(-1.05) and isinf(found.low) and isinf(found.high)
    assert compared.mean("loss", "other") is None
    assert compared.mean("bleu", "a") is None
