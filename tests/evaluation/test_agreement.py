"""How far two models are from each other: sums by hand, and torch's own functions over more targets than one block."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from peftlab.evaluation.agreement import BLOCK, Outputs, compare_metric, compare_outputs, rms
from peftlab.metrics import RowScores


def outputs(logits: torch.Tensor, losses: list[float], counts: list[int]) -> Outputs:
    return Outputs(logits, RowScores(np.array(losses), np.array(counts, float)))


def test_the_figures_are_those_worked_out_by_hand():
    """Two targets of two classes: (1/2, 1/2) against (1/4, 3/4), and equal ones that are larger by 2."""
    first = outputs(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), [2.0, 1.0], [1, 1])
    second = outputs(torch.tensor([[0.0, math.log(3)], [3.0, 2.0]]), [3.0, 1.0], [1, 1])
    found = compare_outputs(first, second)
    assert (found.rows, found.targets, found.largest) == (2, 2, 2.0)
    assert found.mean == pytest.approx((math.log(3) + 4) / 4)
    assert found.rms == pytest.approx(math.sqrt((math.log(3) ** 2 + 8) / 4))
    assert found.kl == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2)
    assert found.same_top == 0.5 and found.loss_change[0] == pytest.approx(0.5)


def test_many_targets_are_compared_as_few_are():
    torch.manual_seed(0)
    one, other = torch.randn(2, 2 * BLOCK + 3, 50)
    found = compare_outputs(outputs(one, [1.0], [len(one)]), outputs(other, [1.0], [len(one)]))
    wanted = functional.kl_div(other.log_softmax(-1), one.log_softmax(-1), log_target=True, reduction="batchmean")
    assert found.kl == pytest.approx(float(wanted), rel=1e-5)
    assert found.rms == pytest.approx(float(functional.mse_loss(one, other).sqrt()), rel=1e-5)
    assert found.rms == pytest.approx(rms(one, other)) and rms(one) == pytest.approx(float(one.square().mean().sqrt()))
    assert found.mean == pytest.approx(float(functional.l1_loss(one, other)), rel=1e-5)
    assert found.same_top == float((one.argmax(-1) == other.argmax(-1)).double().mean())


def test_a_difference_that_is_no_number_is_never_small():
    logits = torch.zeros(BLOCK + 1, 4)
    logits[-1, 0] = math.nan
    found = compare_outputs(outputs(torch.zeros(BLOCK + 1, 4), [1.0], [1]), outputs(logits, [1.0], [1]))
    assert math.isnan(found.rms) and math.isnan(found.largest)


def test_a_metric_of_texts_is_made_of_the_answers_and_left_out_without_them():
    scores = RowScores(np.ones(2), np.ones(2))
    answered = (
        RowScores(sums={"exact_match": np.array(right, float)}) for right in ([1, 1, 0, 1] * 2, [1, 0, 0, 1] * 2)
    )
    first, second = (Outputs(torch.zeros(2, 3), scores, texts) for texts in answered)
    found = compare_outputs(first, second, ["loss", "exact_match"]).metrics["exact_match"]
    assert (found.first, found.second, found.change[0]) == (0.75, 0.5, -0.25) and found.change[1] <= -0.25
    assert compare_outputs(first, Outputs(torch.zeros(2, 3), scores), ["exact_match"]).metrics == {}


def test_a_metric_of_both_models_has_the_interval_of_its_change():
    """Ten rows, of which the second model has two more right: each drawing counts how often these two came."""
    label = np.zeros(10, np.int64)
    first, second = (
        RowScores(np.ones(10), np.ones(10), (np.arange(10) >= right).astype(np.int64), label) for right in (6, 8)
    )
    found = compare_metric("accuracy", first, second)
    assert found is not None and (found.first, found.second) == (0.6, 0.8)
    change, low, high = found.change
    assert change == pytest.approx(0.2) and low == 0.0 and high == pytest.approx(0.5)  # of a binomial, 10 and 0.2
    assert compare_metric("span_f1", first, second) is None


@pytest.mark.parametrize("rows", [1, 5, 6])
def test_fewer_than_six_rows_have_no_interval(rows):
    """Were five to agree on which model is better, chance alone would do that in 6 % of cases."""
    first, second = (RowScores(np.full(rows, loss), np.ones(rows)) for loss in (1.0, 1.5))
    found = compare_metric("loss", first, second)
    assert found.change == ((0.5, None, None) if rows < 6 else (0.5, 0.5, 0.5))
