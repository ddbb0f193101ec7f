"""Exact match and token F1: a text compared with each of its references, as both are normalised."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from math import nan
from typing import Literal

from peftlab.errors import UsageError, one_line
from peftlab.metrics.base import Metric, References, Texts, TextScores, TextSettings, mean_of, ratio
from peftlab.metrics.words import split_words

Normalisation = Literal["case", "punctuation", "articles", "numbers"]
ARTICLES = re.compile(r"\b(?:a|an|the)\b", re.IGNORECASE)
# Commas belong to a number before groups of two or three digits of which the last has three (1,200; 12,00,000), and at
# its end (7,). Those of a list (1,2,3) do not.
NUMBER = re.compile(r"[-+]?(?:(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?![\d,]*\d)|\d+)(?:\.\d*)?(?:,(?!\d))?|\.\d+)")
Score = Callable[[str, Sequence[str]], float]


def _plain_number(found: re.Match[str]) -> str:
    """Return a number without commas between digits, a plus sign, and zeros at the end: 1,200.50 is 1200.5."""
    text = found[0].replace(",", "").removeprefix("+")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text or "0"


STEPS: dict[str, Callable[[str], str]] = {
    "case": str.casefold,
    "articles": lambda text: ARTICLES.sub(" ", text),
    "numbers": lambda text: NUMBER.sub(_plain_number, text),
    "punctuation": lambda text: "".join(" " if unicodedata.category(c)[0] == "P" else c for c in text),
}
"""What each normalisation does, in the order in which they are done."""


def normalise(text: str, steps: Sequence[str]) -> str:
    """Return a text in Unicode's composed form, with these steps done; with any step white space is single spaces."""
    text = unicodedata.normalize("NFC", text).strip()
    for name, step in STEPS.items():
        if name in steps:
            text = step(text)
    return " ".join(text.split()) if steps else text


def find_answer(text: str, pattern: str | None) -> str | None:
    """Return the first match of a pattern, or its first group where it has one; None where nothing matches."""
    if pattern is None:
        return text
    found = re.search(pattern, text, re.MULTILINE)
    return None if found is None else next((group for group in found.groups() if group is not None), found[0])


def compared_references(references: References, settings: TextSettings) -> list[list[str]]:
    """Return the normalised answers in the references. Raises UsageError for a row whose references have none."""
    found = [
        [
            normalise(answer, settings.normalise)
            for one in known
            if (answer := find_answer(one, settings.extract)) is not None
        ]
        for known in references
    ]
    if missing := [row for row, known in enumerate(found) if not known]:
        text = one_line(references[missing[0]][0], 60)
        raise UsageError(
            f"evaluation.texts.extract: {settings.extract} matches no reference of {len(missing)} of {len(found)} "
            f"prompts, the first of them {text!r}; change the pattern or the data"
        )
    return found


def _best(name: str, score: Score) -> Callable[[Texts, References, TextSettings], TextScores]:
    """Return the scorer of a text by the best of its references."""

    def scores(outputs: Texts, references: References, settings: TextSettings) -> TextScores:
        rows: list[float] = []
        for output, known in zip(outputs, compared_references(references, settings), strict=True):
            answer = find_answer(output, settings.extract)
            rows.append(0.0 if answer is None else score(normalise(answer, settings.normalise), known))
        return TextScores({name: rows}, [None if row != row else row for row in rows], signature(settings))

    return scores


def signature(settings: TextSettings) -> str:
    """Return the settings of a comparison as one text."""
    steps = "+".join(name for name in STEPS if name in settings.normalise) or "none"
    return f"normalise:{steps}" + (f"|extract:{settings.extract}" if settings.extract is not None else "")


def _exact_match(output: str, references: Sequence[str]) -> float:
    return float(output in references)


def _token_f1(output: str, references: Sequence[str]) -> float:
    """Return the F1 of the words that a text shares with its best reference; NaN where neither has any word."""
    if output in references:
        return 1.0
    scores = [_shared(split_words(output), split_words(one)) for one in references]
    known = [score for score in scores if score == score]
    return max(known) if known else nan


def _shared(output: Sequence[str], reference: Sequence[str]) -> float:
    if not output and not reference:
        return nan
    return 2 * (Counter(output) & Counter(reference)).total() / (len(output) + len(reference))


def _metric(name: str, score: Score, undefined: str = "") -> Metric:
    return Metric(
        name, ("texts",), True, (0.0, 1.0), mean_of(name), ratio, (name,), undefined, texts=_best(name, score)
    )


MATCH_METRICS = (
    _metric("exact_match", _exact_match),
    _metric("token_f1", _token_f1, "no text and no reference has a word"),
)
