"""The least of a parabola, by hand."""

from __future__ import annotations

from math import inf, nan

import pytest

from peftlab.comparison.parabola import least_between


def test_the_least_of_a_parabola_is_found_whatever_the_distances():
    def parabola(x: float) -> float:
        return 3 * (x - 1.25) ** 2 + 7

    for places in ((0, 1, 2), (-3, 1, 1.5), (1, 1.25, 9)):
        assert least_between(places, [parabola(x) for x in places]) == pytest.approx(1.25)


@pytest.mark.parametrize("lost", [None, nan, inf])
def test_beside_a_place_without_a_value_it_is_halfway_to_the_other(lost):
    assert least_between((0, 1, 4), (5.0, 1.0, lost)) == 0.5
    assert least_between((0, 1, 4), (lost, 1.0, 5.0)) == 2.5
    assert least_between((0, 1, 4), (lost, 1.0, lost)) is None


def test_equal_values_have_no_least():
    assert least_between((0, 1, 2), (1.0, 1.0, 1.0)) is None
