"""Error rates of generated texts: the edits that make the reference of a text, by words (or phonemes) and characters.

White space separates words, so that a text of phonemes gives their error rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING

from peftlab.metrics.base import Metric, References, RowScores, Texts, TextScores, TextSettings, ratio
from peftlab.metrics.match import compared_references, find_answer, normalise, signature

if TYPE_CHECKING:
    from numpy.typing import NDArray

Split = Callable[[str], Sequence[str]]


def _scorer(name: str, split: Split) -> Callable[[Texts, References, TextSettings], TextScores]:
    """Return the scorer of texts by their edits to the reference that needs the fewest a token."""

    def scores(outputs: Texts, references: References, settings: TextSettings) -> TextScores:
        edits: list[float] = []
        tokens: list[float] = []
        for output, known in zip(outputs, compared_references(references, settings), strict=True):
            answer = normalise(find_answer(output, settings.extract) or "", settings.normalise)
            best = min((_compare(split(answer), split(one)) for one in known), key=lambda pair: _rate(*pair))
            edits.append(best[0])
            tokens.append(best[1])
        rows = [_rate(*pair) if pair[1] else None for pair in zip(edits, tokens, strict=True)]
        return TextScores({f"{name}_edits": edits, f"{name}_tokens": tokens}, rows, signature(settings))

    return scores


def _compare(output: Sequence[str], reference: Sequence[str]) -> tuple[int, int]:
    """Return the fewest insertions, deletions and substitutions, and the reference's tokens."""
    from nltk.metrics.distance import edit_distance  # comes with rouge-score

    return edit_distance(output, reference), len(reference)


def _rate(edits: float, tokens: float) -> float:
    return edits / tokens if tokens else (inf if edits else 0.0)


def _metric(name: str, split: Split) -> Metric:
    columns = (f"{name}_edits", f"{name}_tokens")

    def sums(scores: RowScores, classes: NDArray) -> NDArray:
        import numpy as np

        return np.stack([np.asarray(scores.sums[column], float) for column in columns], axis=1)

    return Metric(
        name,
        ("texts",),
        False,
        (0.0, inf),
        sums,
        ratio,
        columns,
        "no reference has a token",
        texts=_scorer(name, split),
    )


EDIT_METRICS = (_metric("word_error_rate", str.split), _metric("character_error_rate", list))
