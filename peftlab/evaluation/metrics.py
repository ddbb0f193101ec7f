"""Metrics over predicted classes and over generated texts, through well-kept libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

LOSS_METRICS = ("loss", "perplexity")
CLASS_METRICS = ("accuracy", "f1", "matthews")
SPAN_METRICS = ("span_f1", "span_precision", "span_recall")
TEXT_METRICS = ("exact_match", "bleu", "rouge")
HIGHER_IS_BETTER = dict.fromkeys(LOSS_METRICS, False) | dict.fromkeys(
    (*CLASS_METRICS, *SPAN_METRICS, *TEXT_METRICS), True
)
# The smallest and the largest value.
RANGES = {"loss": (0.0, inf), "perplexity": (1.0, inf), "matthews": (-1.0, 1.0), "bleu": (0.0, 100.0)}
RANGES |= dict.fromkeys(("accuracy", "f1", "exact_match", "rouge", *SPAN_METRICS), (0.0, 1.0))


def score_classes(predictions: Sequence[int], references: Sequence[int], metrics: Sequence[str]) -> dict[str, float]:
    """Return the wanted ones of accuracy, f1 (macro) and matthews (Matthews' correlation)."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    functions = {
        "accuracy": lambda: accuracy_score(references, predictions),
        "f1": lambda: f1_score(references, predictions, average="macro", zero_division=0.0),
        "matthews": lambda: matthews_corrcoef(references, predictions),
    }
    return {name: float(functions[name]()) for name in CLASS_METRICS if name in metrics}


def score_spans(columns: Mapping[str, Sequence[int]], metrics: Sequence[str]) -> dict[str, float]:
    """Return the wanted ones of precision, recall and F1 over all spans, as CoNLL-2000's evaluation counts them.

    `columns` are the rows' `span_hits`, `span_predicted` and `span_true`. Without any span a ratio is 0.
    """
    hits, predicted, true = (sum(columns[f"span_{name}"]) for name in ("hits", "predicted", "true"))
    values = {
        "span_f1": 2 * hits / (predicted + true) if predicted + true else 0.0,
        "span_precision": hits / predicted if predicted else 0.0,
        "span_recall": hits / true if true else 0.0,
    }
    return {name: values[name] for name in SPAN_METRICS if name in metrics}


def score_texts(
    outputs: Sequence[str], references: Sequence[Sequence[str]], metrics: Sequence[str]
) -> dict[str, float]:
    """Return the wanted ones of exact_match (0 to 1), bleu (sacrebleu's, 0 to 100), rouge (ROUGE-L F1, 0 to 1).

    Each output may have several references: one that matches is enough, the best one counts for ROUGE, and
    BLEU takes them all. White space around a text does not count.
    """
    outputs = [output.strip() for output in outputs]
    references = [[one.strip() for one in known] for known in references]
    functions = {"exact_match": _exact_match, "bleu": _bleu, "rouge": _rouge}
    return {name: functions[name](outputs, references) for name in TEXT_METRICS if name in metrics}


def _exact_match(outputs: list[str], references: list[list[str]]) -> float:
    return sum(output in known for output, known in zip(outputs, references, strict=True)) / len(outputs)


def _bleu(outputs: list[str], references: list[list[str]]) -> float:
    from sacrebleu import corpus_bleu

    most = max(len(known) for known in references)
    streams = [[known[i] if i < len(known) else None for known in references] for i in range(most)]
    return float(corpus_bleu(outputs, streams).score)


def _rouge(outputs: list[str], references: list[list[str]]) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    pairs = zip(outputs, references, strict=True)
    return sum(scorer.score_multi(known, output)["rougeL"].fmeasure for output, known in pairs) / len(outputs)
