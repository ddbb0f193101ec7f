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


def diagonals(rows: Iterable[Any], columns: Iterable[Any], every: int = 3) -> list[Any]:
    """Return the parameters of a test: each pair of a row and a column, every `every`th diagonal in the sample.

    Each row and each column is in the sample; the tuples of rows and columns are joined.
    """
    rows, columns = [_as_tuple(one) for one in rows], [_as_tuple(one) for one in columns]
    assert min(len(rows), len(columns)) >= every, "some rows or columns are on no diagonal of the sample"
    pairs = {(*row, *column): (i + j) % every == 0 for i, row in enumerate(rows) for j, column in enumerate(columns)}
    return sampled(list(pairs), pairs.__getitem__)


def _as_tuple(one: Any) -> tuple[Any, ...]:
    return one if isinstance(one, tuple) else (one,)
