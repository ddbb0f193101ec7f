"""Loss and perplexity: functions of the summed loss and of what it is divided by."""

from __future__ import annotations

import math
from math import inf
from typing import TYPE_CHECKING

from peftlab.metrics.base import Metric, RowScores, Sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOSS = ("loss", "count")
WORDS, BYTES = "words", "bytes"
"""The columns of how many words (between white space) and UTF-8 bytes the supervised text of a row has."""


def loss_and(column: str) -> Sums:
    """Return the sums of the loss and of a column by which it is divided."""

    def sums(scores: RowScores, classes: NDArray) -> NDArray:
        import numpy as np

        return np.stack([np.asarray(scores.columns[name], float) for name in ("loss", column)], axis=1)

    return sums


def _ratio(totals: NDArray) -> NDArray:
    return totals[..., 0] / totals[..., 1]


def _perplexity(totals: NDArray) -> NDArray:
    import numpy as np

    return np.exp(_ratio(totals))


def _bits(totals: NDArray) -> NDArray:
    return _ratio(totals) / math.log(2)


TOKEN_METRICS = (
    Metric("loss", ("loss",), False, (0.0, inf), loss_and("count"), _ratio, LOSS),
    Metric("perplexity", ("next_tokens",), False, (1.0, inf), loss_and("count"), _perplexity, LOSS),
    Metric("word_perplexity", ("next_tokens",), False, (1.0, inf), loss_and(WORDS), _perplexity, ("loss", WORDS)),
    Metric("byte_perplexity", ("next_tokens",), False, (1.0, inf), loss_and(BYTES), _perplexity, ("loss", BYTES)),
    Metric("bits_per_byte", ("next_tokens",), False, (0.0, inf), loss_and(BYTES), _bits, ("loss", BYTES)),
)
