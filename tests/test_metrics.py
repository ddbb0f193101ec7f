"""Metrics of rows against values worked out by hand and scikit-learn's, and the table of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from peftlab.evaluation.resampling import draw_metric
from peftlab.metrics import METRICS, RENAMED, Metric, RowScores, names_that_need
from peftlab.recipe.schema import Evaluation
from peftlab.recipe.vocabulary import json_schema


def score_classes(prediction, label, name, labels=None):
    return METRICS[name].of_rows(RowScores([1.0] * len(label), [1] * len(label), prediction, label, labels=labels))


def score_numbers(predicted, true, name):
    return METRICS[name].of_rows(RowScores(sums={"number_predicted": predicted, "number_true": true}))


def test_class_metrics_equal_values_by_hand():
    # true 0: 2 right, 1 called 1; true 1: 1 right, 1 called 0
    scores = {name: score_classes([0, 0, 1, 1, 0], [0, 0, 0, 1, 1], name) for name in names_that_need("classes")}
    assert scores["accuracy"] == scores["f1_micro"] == pytest.approx(3 / 5)
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores["f1_weighted"] == pytest.approx(3 / 5 * 2 / 3 + 2 / 5 * 1 / 2)
    assert scores["f1_positive"] == pytest.approx(1 / 2)
    assert scores["matthews"] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))


def test_class_that_is_never_predicted_counts_as_zero_in_f1():
    assert score_classes([0, 0], [0, 1], "f1_macro") == pytest.approx((2 / 3 + 0) / 2)


def test_macro_f1_runs_over_all_labels_of_the_task_as_in_scikit_learn():
    prediction, label = [2, 0, 2, 0], [2, 2, 2, 0]
    oracle = f1_score(label, prediction, average="macro", labels=range(4), zero_division=0)
    assert score_classes(prediction, label, "f1_macro", labels=4) == pytest.approx(oracle)
    assert oracle < score_classes(prediction, label, "f1_macro")  # of the labels that occur


@pytest.mark.parametrize(
    ("name", "prediction", "label", "labels"),
    [
        ("f1_positive", [0, 0], [0, 0], 2),
        ("f1_positive", [0, 1], [2, 1], 3),
        ("matthews", [0, 1], [1, 1], 2),
        ("matthews", [1, 1], [0, 1], 2),
    ],
)
def test_what_is_undefined_has_no_value_and_a_reason(name, prediction, label, labels):
    assert math.isnan(score_classes(prediction, label, name, labels)) and METRICS[name].undefined


def test_correlations_are_scipys_also_with_ties_and_a_large_offset():
    random = np.random.default_rng(1)
    true = random.integers(0, 6, 40).astype(float)
    predicted = np.round(true + random.normal(0, 2, 40))
    for shift in (0.0, 1e6):
        assert score_numbers(predicted + shift, true, "pearson") == pytest.approx(stats.pearsonr(predicted, true)[0])
        assert score_numbers(predicted + shift, true, "spearman") == pytest.approx(stats.spearmanr(predicted, true)[0])
    assert score_numbers(predicted, true, "rmse") == pytest.approx(np.sqrt(((predicted - true) ** 2).mean()))
    assert score_numbers(predicted, true, "mae") == pytest.approx(np.abs(predicted - true).mean())


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_correlations_are_drawn_with_their_rows(name):
    random = np.random.default_rng(2)
    predicted, true = random.integers(0, 9, (2, 12)).astype(float)
    oracle = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[name]
    scores = RowScores(sums={"number_predicted": predicted, "number_true": true})
    weights = np.array([np.bincount(random.integers(12, size=12), minlength=12) for _ in range(5)], float)
    for row, value in zip(weights, METRICS[name].draw(scores, scores.classes, weights), strict=True):
        places = np.repeat(np.arange(12), row.astype(int))
        assert value == pytest.approx(oracle(predicted[places], true[places])[0])


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("constant", [0.1, 1e300, 7.0])
def test_a_correlation_with_equal_numbers_is_undefined(name, constant):
    assert math.isnan(score_numbers([constant] * 7, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], name))


def test_loss_is_a_ratio_of_sums_and_perplexity_its_exponential_even_beyond_the_largest_float():
    scores = RowScores([2.0, 10.0], [1, 3])
    assert METRICS["loss"].of_rows(scores) == 3.0
    assert METRICS["perplexity"].of_rows(scores) == pytest.approx(math.exp(3.0))
    assert METRICS["perplexity"].of_rows(RowScores([2000.0], [1])) == math.inf


def test_a_loss_does_not_depend_on_the_order_of_its_rows():
    loss = np.random.default_rng(0).gamma(1.0, 1.0, 1000).tolist()
    values = {METRICS["loss"].of_rows(RowScores(rows, [1] * 1000)) for rows in (loss, loss[::-1], sorted(loss))}
    assert values == {math.fsum(loss) / 1000}


def test_perplexity_by_word_and_byte_divides_the_loss_by_words_and_bytes():
    scores = RowScores([6.0, 4.0], [3, 2], sums={"words": [3, 1], "bytes": [20, 5]})
    values = {name: METRICS[name].of_rows(scores) for name in names_that_need("next_tokens")}
    by_hand = {"perplexity": math.exp(10 / 5), "word_perplexity": math.exp(10 / 4),
               "byte_perplexity": math.exp(10 / 25), "bits_per_byte": 10 / 25 / math.log(2)}  # fmt: skip
    assert values == pytest.approx(by_hand)


def test_names_of_earlier_versions_become_the_present_ones():
    assert Evaluation(metrics=("loss", *RENAMED)).metrics == ("loss", *RENAMED.values())
    assert set(RENAMED.values()) <= set(METRICS) and not set(RENAMED) & set(METRICS)


def test_a_recipe_may_name_every_metric_of_the_table_and_no_other():
    (items,) = [field["items"] for name, field in json_schema()["$defs"]["Evaluation"]["properties"].items()
                if name == "metrics"]  # fmt: skip
    assert items["enum"] == list(METRICS)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_a_metric_has_one_way_to_its_value(metric):
    assert (metric.sums is None) == (metric.value is None) == (metric.weighted is not None)
    assert (metric.texts is not None) == (metric.needs == ("texts",))
    assert metric.range[0] < metric.range[1]


def test_a_metric_of_further_columns_is_one_entry(monkeypatch):
    def sums(scores, classes):
        return np.stack([scores.sums[name] for name in ("hits", "predicted", "true")], axis=1)

    spans = Metric(
        "toy_f1", ("spans",), True, (0.0, 1.0), sums, lambda t: 2 * t[..., 0] / (t[..., 1] + t[..., 2]),
        columns=("hits", "predicted", "true"),
    )  # fmt: skip
    monkeypatch.setitem(METRICS, "toy_f1", spans)
    stored = {"loss": [1.0, 2.0], "count": [3, 4], "sums": {"hits": [1, 2], "predicted": [2, 2], "true": [1, 3]}}
    scores = RowScores.of(stored)
    assert spans.of_rows(scores) == pytest.approx(2 * 3 / 8)  # precision 3/4, recall 3/4
    assert draw_metric("toy_f1", [scores], 4).values == pytest.approx([0.75])
    assert spans.suits(scores) and not spans.suits(RowScores([1.0], [1]))
    assert RowScores.of(scores.dump() | {"sums": {}}).sums == {}
