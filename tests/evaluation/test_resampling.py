"""Metrics from row scores against scikit-learn's, and drawings that are the same for all runs."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from peftlab.evaluation import resampling
from peftlab.evaluation.resampling import Sample, draw_metric, row_metrics
from peftlab.metrics import METRICS, RowScores, names_that_need

ORACLES = {
    "accuracy": accuracy_score,
    "f1_macro": lambda label, prediction: f1_score(
        label, prediction, average="macro", labels=range(6), zero_division=0.0
    ),
    "matthews": matthews_corrcoef,
}


def classified(random, rows=40, classes=4):
    label, guess = random.integers(classes, size=(2, rows))
    prediction = np.where(random.uniform(size=rows) < 0.6, label, guess)
    return RowScores(np.ones(rows), np.ones(rows), prediction, label, labels=6)


@pytest.mark.parametrize("name", ORACLES)
def test_class_metrics_are_those_of_scikit_learn_on_all_rows_and_on_drawn_ones(name, monkeypatch):
    random = np.random.default_rng(0)
    runs = [classified(random), classified(random, classes=6)]
    drawn = np.random.default_rng(1).integers(40, size=(5, 40))
    sample = draw_metric(name, runs, 5, np.random.default_rng(1))
    for run, scores in enumerate(runs):
        assert sample.values[run] == pytest.approx(ORACLES[name](scores.label, scores.prediction))
        assert METRICS[name].of_rows(scores) == pytest.approx(ORACLES[name](scores.label, scores.prediction))
        for replicate, rows in enumerate(drawn):
            expected = ORACLES[name](scores.label[rows], scores.prediction[rows])
            assert sample.replicates[replicate, run] == pytest.approx(expected)


def test_loss_is_a_ratio_of_sums_and_perplexity_its_exponential():
    run = RowScores(np.array([2.0, 10.0]), np.array([1.0, 3.0]))
    assert draw_metric("loss", [run], 1).values == pytest.approx([3.0])
    assert draw_metric("perplexity", [run], 1).values == pytest.approx([np.exp(3.0)])


def test_every_run_is_drawn_with_the_same_rows():
    random = np.random.default_rng(2)
    loss = random.gamma(1.0, 1.0, 30)
    runs = [RowScores(loss, np.ones(30)), RowScores(loss + 0.25, np.ones(30))]
    sample = draw_metric("loss", runs, 50)
    assert np.allclose(sample.replicates[:, 1] - sample.replicates[:, 0], 0.25)
    assert sample.replicates[:, 0].std() > 0.05


def test_drawing_in_small_chunks_gives_the_same_replicates(monkeypatch):
    run = RowScores(np.arange(10.0), np.ones(10))
    whole = draw_metric("loss", [run], 7)
    monkeypatch.setattr(resampling, "CHUNK_CELLS", 20)
    assert np.array_equal(draw_metric("loss", [run], 7).replicates, whole.replicates)


def test_the_bootstrap_of_a_mean_has_its_known_error():
    loss = np.random.default_rng(3).gamma(1.0, 1.0, 200)
    sample = draw_metric("loss", [RowScores(loss, np.ones(200))], 4000)
    assert sample.replicates.std() == pytest.approx(loss.std() / 200**0.5, rel=0.04)


def test_a_change_is_drawn_together_only_where_its_rows_are_one():
    before, after = (Sample(np.array([value]), np.full((3, 1), value), 8) for value in (2.0, 1.5))
    assert (after - before).replicates.tolist() == [[-0.5]] * 3
    unlike = after - Sample(np.array([2.0]), np.zeros((3, 1)), 9)
    assert unlike.replicates is None and unlike.values.tolist() == [-0.5]


def test_rows_without_classes_give_losses_only():
    plain, classes = RowScores(np.ones(3), np.ones(3)), classified(np.random.default_rng(0), rows=3)
    assert row_metrics([plain, classes]) == ["loss", "perplexity"]
    assert row_metrics([classes]) == ["loss", "perplexity", *names_that_need("classes")]


@pytest.mark.parametrize("stored", [
    {"loss": [1.0], "count": [1, 2]},
    {"loss": [], "count": []},
    {"loss": [1.0], "count": [1], "prediction": [0], "label": [0, 1]},
    {"loss": ["many"], "count": [1]},
])  # fmt: skip
def test_damaged_row_scores_are_refused(stored):
    with pytest.raises(ValueError):
        RowScores.of(stored)
