"""The exact p-value of paired rows that are right or wrong, where few of them differ.

Student's distribution is too hopeful of them: 5 of 64 rows that differ, all one way, are 0.037 by it and 2 / 2**5 =
0.0625 exactly. Each row that differs is as likely to have differed the other way, were there no difference. With one
seed that is the sign test of McNemar (1947); with several a row counts by how many of their pairs differ in it
(Fisher's randomisation test).
"""

from __future__ import annotations

import numpy as np

from peftlab.evaluation.resampling import Floats

FEW = 50  # of more rows that differ, a distribution of sums is close enough
TOLERANCE = 1e-6


def row_values(values: Floats, without: Floats | None, largest: int = 1) -> Floats | None:
    """Return (rows, runs) what each row gives a mean over rows, if it gives whole numbers of `largest` at most.

    `values` are of all rows, (runs,), `without` of all but one, (rows, runs). None for metrics of another kind.
    """
    if without is None or len(without) < 2:
        return None
    rows = len(without)
    found = rows * values - (rows - 1) * without
    whole = np.rint(found)
    if not np.isfinite(found).all() or (np.abs(found - whole) > TOLERANCE).any() or (np.abs(whole) > largest).any():
        return None
    return whole if np.allclose(whole.mean(0), values, atol=TOLERANCE) else None


def exact_p(differences: Floats, unit: float = 1.0) -> float:
    """Return the two-sided p-value of the sum of differences of rows, whole multiples of `unit`, if signs are chance.

    0 where more than `FEW` rows differ, so that it is never the larger of two p-values there.
    """
    sizes = np.rint(differences / unit).astype(int)
    sizes = sizes[sizes != 0]
    if len(sizes) > FEW:
        return 0.0
    chances = np.ones(1)
    for size in np.abs(sizes):
        step = np.zeros(2 * size + 1)
        step[[0, -1]] = 0.5
        chances = np.convolve(chances, step)
    sums = np.arange(len(chances)) - len(chances) // 2
    return min(1.0, float(chances[np.abs(sums) >= abs(sizes.sum())].sum()))
