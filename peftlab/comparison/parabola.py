"""The least value of a curve that is known at three places: of a loss, by the logarithm of the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite


def least_between(places: Sequence[float], values: Sequence[float | None]) -> float | None:
    """Return where the parabola through three points is least, the middle one of which is the lowest.

    Where one outer value is not known, because that run diverged, it is halfway to the other; None where neither is,
    and where the three are equal.
    """
    (left, middle, right), (before, lowest, after) = places, (_finite(value) for value in values)
    if lowest is None or (before is None and after is None):
        return None
    if before is None or after is None:
        return (middle + (right if before is None else left)) / 2
    down, up = (before - lowest) / (middle - left), (after - lowest) / (right - middle)
    if down + up <= 0:
        return None
    # A chord's slope is the parabola's halfway along it, and that slope is a straight line: where is it 0?
    return ((left + middle) * up + (middle + right) * down) / (2 * (down + up))


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
