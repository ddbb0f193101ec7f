"""Matrices of which the normal suite runs a sample: the other cases are slow tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest


def sampled(cases: Sequence[Any], sample: Callable[[Any], bool] | Iterable[Any]) -> list[Any]:
    """Return the parameters of a test: `cases`, those not in the sample marked slow.

    A case that the sample names and the matrix lacks is an error, so that a renamed one is not silently slow.
    """
    if not callable(sample):
        chosen = list(sample)
        assert all(one in cases for one in chosen), "the sample names what the matrix lacks"
        return sampled(cases, chosen.__contains__)
    return [
        one if sample(one) else pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=pytest.mark.slow)
        for one in cases
    ]
