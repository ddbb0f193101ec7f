"""Metrics against values worked out by hand, and the table of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from peftlab.comparison.resampling import draw_metric
from peftlab.metrics import METRICS, Metric, RowScores, names_that_need
from peftlab.recipe.vocabulary import json_schema


def score_classes(prediction, label, name):
    return METRICS[name].of_rows(RowScores([1.0] * len(label), [1] * len(label), prediction, label))


def test_class_metrics_equal_values_by_hand():
    # true 0: 2 right, 1 called 1; true 1: 1 right, 1 called 0
    scores = {name: score_classes([0, 0, 1, 1, 0], [0, 0, 0, 1, 1], name) for name in names_that_need("classes")}
    assert scores["accuracy"] == pytest.approx(3 / 5)
    assert scores["f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores["matthews"] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))


def test_class_that_is_never_predicted_counts_as_zero_in_f1():
    assert score_classes([0, 0], [0, 1], "f1") == pytest.approx((2 / 3 + 0) / 2)


def test_loss_is_a_ratio_of_sums_and_perplexity_its_exponential_even_beyond_the_largest_float():
    scores = RowScores([2.0, 10.0], [1, 3])
    assert METRICS["loss"].of_rows(scores) == 3.0
    assert METRICS["perplexity"].of_rows(scores) == pytest.approx(math.exp(3.0))
    assert METRICS["perplexity"].of_rows(RowScores([2000.0], [1])) == math.inf


def test_a_loss_does_not_depend_on_the_order_of_its_rows():
    loss = np.random.default_rng(0).gamma(1.0, 1.0, 1000).tolist()
    values = {METRICS["loss"].of_rows(RowScores(rows, [1] * 1000)) for rows in (loss, loss[::-1], sorted(loss))}
    assert values == {math.fsum(loss) / 1000}


def test_exact_match_takes_any_reference_and_ignores_space_around():
    outputs, references = [" four\n", "five", "six"], [["4", "four"], ["Five"], ["six", "6"]]
    assert METRICS["exact_match"].of_texts(outputs, references) == pytest.approx(2 / 3)


def test_rouge_is_the_best_references_longest_common_subsequence():
    # "the cat sat" against "the cat on mat": common 2, precision 2/3, recall 2/4
    by_hand = 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)
    assert METRICS["rouge"].of_texts(["the cat sat"], [["dog", "the cat on mat"]]) == pytest.approx(by_hand)


def test_bleu_equals_its_formula_and_takes_all_references():
    # 6 words; matching n-grams 5/6, 3/5, 2/4, 1/3; as long as the reference, so no brevity penalty
    by_hand = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)
    output, reference = "the cat sat on a mat", "the cat sat on the mat"
    assert METRICS["bleu"].of_texts([output], [[reference]]) == pytest.approx(by_hand)
    several = [["nothing like it", output], [reference]]
    assert METRICS["bleu"].of_texts([output, reference], several) == pytest.approx(100)


def test_a_recipe_may_name_every_metric_of_the_table_and_no_other():
    (items,) = [field["items"] for name, field in json_schema()["$defs"]["Evaluation"]["properties"].items()
                if name == "metrics"]  # fmt: skip
    assert items["enum"] == list(METRICS)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_a_metric_is_of_rows_or_of_texts(metric):
    assert (metric.sums is None) == (metric.value is None) == (metric.texts is not None)
    assert metric.range[0] < metric.range[1]


def test_a_metric_of_further_columns_is_one_entry(monkeypatch):
    def sums(scores, classes):
        return np.stack([scores.sums[name] for name in ("hits", "predicted", "true")], axis=1)

    spans = Metric(
        "toy_f1", "spans", True, (0.0, 1.0), sums, lambda t: 2 * t[..., 0] / (t[..., 1] + t[..., 2]),
        columns=("hits", "predicted", "true"),
    )  # fmt: skip
    monkeypatch.setitem(METRICS, "toy_f1", spans)
    stored = {"loss": [1.0, 2.0], "count": [3, 4], "sums": {"hits": [1, 2], "predicted": [2, 2], "true": [1, 3]}}
    scores = RowScores.of(stored)
    assert spans.of_rows(scores) == pytest.approx(2 * 3 / 8)  # precision 3/4, recall 3/4
    assert draw_metric("toy_f1", [scores], 4).values == pytest.approx([0.75])
    assert spans.suits(scores) and not spans.suits(RowScores([1.0], [1]))
    assert RowScores.of(scores.dump() | {"sums": {}}).sums == {}
