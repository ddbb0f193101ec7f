"""Metrics against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from peftlab.evaluation.metrics import CLASS_METRICS, TEXT_METRICS, score_classes, score_texts


def test_class_metrics_equal_values_by_hand():
    # true 0: 2 right, 1 called 1; true 1: 1 right, 1 called 0
    scores = score_classes([0, 0, 1, 1, 0], [0, 0, 0, 1, 1], CLASS_METRICS)
    assert scores["accuracy"] == pytest.approx(3 / 5)
    assert scores["f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores["matthews"] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))


def test_class_that_is_never_predicted_counts_as_zero_in_f1():
    assert score_classes([0, 0], [0, 1], ("f1",)) == {"f1": pytest.approx((2 / 3 + 0) / 2)}


def test_exact_match_takes_any_reference_and_ignores_space_around():
    scores = score_texts([" four\n", "five", "six"], [["4", "four"], ["Five"], ["six", "6"]], ("exact_match",))
    assert scores == {"exact_match": pytest.approx(2 / 3)}


def test_rouge_is_the_best_references_longest_common_subsequence():
    # "the cat sat" against "the cat on mat": common 2, precision 2/3, recall 2/4
    by_hand = 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)
    assert score_texts(["the cat sat"], [["dog", "the cat on mat"]], ("rouge",))["rouge"] == pytest.approx(by_hand)


def test_bleu_equals_its_formula_and_takes_all_references():
    # 6 words; matching n-grams 5/6, 3/5, 2/4, 1/3; as long as the reference, so no brevity penalty
    by_hand = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)
    output, reference = "the cat sat on a mat", "the cat sat on the mat"
    assert score_texts([output], [[reference]], ("bleu",))["bleu"] == pytest.approx(by_hand)
    several = [["nothing like it", output], [reference]]
    assert score_texts([output, reference], several, ("bleu",))["bleu"] == pytest.approx(100)


def test_only_what_is_asked_for_is_returned():
    assert set(score_texts(["a"], [["a"]], TEXT_METRICS)) == set(TEXT_METRICS)
    assert set(score_classes([0], [0], ("accuracy", "loss"))) == {"accuracy"}
