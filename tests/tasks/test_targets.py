"""Numbers and label sets as targets: cells, rows, losses, metrics, against values by hand, scipy and scikit-learn."""

from __future__ import annotations

from decimal import Decimal
from random import Random

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import f1_score
from torch import nn

from peftlab.data.parts import read_examples
from peftlab.data.token_rows import LabelSetRow, NumberRow
from peftlab.data.view import view_row
from peftlab.errors import DataError, RecipeError
from peftlab.losses.pointwise import BinaryCrossEntropy, SquaredError
from peftlab.metrics import METRICS, RowScores
from peftlab.models.build import build_meta
from peftlab.recipe import load_recipe
from peftlab.recipe.schema import Data, Model
from peftlab.tables.files import Table
from peftlab.tasks import TASKS
from peftlab.tasks.multi_label import as_labels
from peftlab.tasks.regression import as_number

REGRESSION, MULTI_LABEL = TASKS["regression"], TASKS["multi-label-classification"]


def section(layout: str, **fields) -> Data:
    return Data.model_validate({"train": "-", "format": layout, **fields})


class Fixed(nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, **_):
        return self


@pytest.mark.parametrize(
    ("cell", "number"),
    [(1, 1.0), (-2.5, -2.5), ("3.25", 3.25), (" 1e-3 ", 0.001), ("007", 7.0), (Decimal("1.50"), 1.5)],
)
def test_a_number_or_its_text_is_a_number(cell, number):
    assert as_number(cell) == number


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        ("high", "needs a number, not str 'high'"),
        ("1,5", "needs a number, not str '1,5'"),
        (True, "needs a number, not bool True"),
        ([1.0], "needs a number, not list"),
        ("inf", "needs a finite number"),
        (1e39, "needs a finite number that fits into 32 bits, not 1e\\+39"),
        (10**400, "needs a number, not int"),
        ("nan", "needs a finite number"),
    ],
)
def test_what_is_not_a_number_is_refused_in_one_line_with_its_row(cell, fault):
    table = Table("t", {"text": ["a", "b"], "target": [1.0, cell]})
    with pytest.raises(DataError, match=rf"t: row 2: column 'target': {fault}") as caught:
        read_examples(table, section("regression"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        (["a", "b c"], ["a", "b c"]),
        ("a, b c", ["a", "b c"]),
        ('["a, b", "c"]', ["a, b", "c"]),
        ([3, "x", 3], ["3", "x"]),
        ("x,,y,", ["x", "y"]),
        (7, ["7"]),
        ([], []),
        ("", []),
        (None, []),
        (float("nan"), []),
    ],
)
def test_labels_are_a_list_json_or_text_with_commas(cell, labels):
    assert as_labels(cell) == labels


@pytest.mark.parametrize("cell", [[1, 0, 1], [0, 0], "[1, 1, 0]", "0,0,1", [True, False]])
def test_one_number_for_each_label_is_not_a_list_of_labels(cell):
    with pytest.raises(ValueError, match="has a 0 or 1 for each label, .*; list the names of the row's own labels"):
        as_labels(cell)


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        ("['a', 'b']", "begins like a list and is not valid JSON"),
        ({"a": 1}, "needs a list of labels, or a text with commas between them, not dict"),
        ([["a"]], "a label is a text or a whole number, not list"),
        (["a", " "], "one of its labels is empty"),
        (1.5, "needs a list of labels"),
    ],
)
def test_what_is_no_set_of_labels_is_refused_with_its_row(cell, fault):
    with pytest.raises(DataError, match=rf"t: row 1: column 'labels': {fault}"):
        read_examples(Table("t", {"text": ["a"], "labels": [cell]}), section("multi-label"))


def test_a_row_without_labels_is_read_and_one_without_a_number_refused():
    (example,) = read_examples(Table("t", {"text": ["a"], "labels": [None]}), section("multi-label"))
    assert example.labels == []
    with pytest.raises(DataError, match="row 1: column 'target' is empty"):
        read_examples(Table("t", {"text": ["a"], "target": [None]}), section("regression"))


def test_targets_are_indicators_in_the_order_of_the_labels():
    table = Table("t", {"text": ["x", "y", "z"], "labels": ["b,a", "", "c"]})
    examples = read_examples(table, section("multi-label"))
    labels = MULTI_LABEL.list_labels(examples)
    assert labels == ["a", "b", "c"]
    rows = [LabelSetRow(np.arange(2, dtype=np.int32), MULTI_LABEL.target_of(example, labels)) for example in examples]
    assert rows[0].stack(rows, [0, 2, 4])["targets"].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 1]
    assert [row.supervised for row in rows] == [3, 3, 3]
    assert [row.describe(labels) for row in rows] == ["a, b", "", "c"]


def test_squared_errors_are_those_by_hand():
    """(1.5-1)² + (-2-0)² = .25 + 4."""
    batch = {"input_ids": torch.zeros(2, 1), "targets": torch.tensor([1.0, 0.0])}
    model = Fixed([[1.5], [-2.0]])
    assert SquaredError().total(model, batch).item() == 4.25
    scored = SquaredError().rows(model, batch, [1, 1])
    assert scored.losses.tolist() == [0.25, 4.0] and scored.predictions.tolist() == [1.5, -2.0]


def test_binary_cross_entropy_is_that_by_hand():
    """Logit 0 costs log 2 whatever the target; logit log 3 is p = 3/4: -log(3/4) if true, -log(1/4) if not."""
    batch = {"input_ids": torch.zeros(2, 1), "targets": torch.tensor([1.0, 1.0, 0.0, 0.0])}
    model = Fixed([[0.0, float(np.log(3))], [0.0, float(np.log(3))]])
    scored = BinaryCrossEntropy().rows(model, batch, [2, 2])
    first, second = np.log(2) - np.log(3 / 4), np.log(2) - np.log(1 / 4)
    assert scored.losses.tolist() == pytest.approx([first, second], rel=1e-6)
    assert BinaryCrossEntropy().total(model, batch).item() == pytest.approx(first + second, rel=1e-6)
    assert scored.predictions.tolist() == pytest.approx([0.5, 0.75, 0.5, 0.75])


def test_a_probability_of_exactly_the_threshold_predicts_nothing():
    row = LabelSetRow(np.arange(2, dtype=np.int32), np.array([1, 1, 0], np.int8))
    assert MULTI_LABEL.score_row(row, [0.5, 0.6, 0.7], ["a", "b", "c"]) == (1, 2, 2, 0, 0, 1, 1, 1, 1, 0)
    assert MULTI_LABEL.score_row(row, [0.5, 0.6, 0.7], ["a", "b", "c"], 0.4)[:4] == (2, 3, 2, 0)


def numbers(predicted, true) -> RowScores:
    return RowScores([0.0] * len(true), [1] * len(true), sums={"number_predicted": predicted, "number_true": true})


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_correlations_are_those_of_scipy(offset):
    random = np.random.default_rng(0)
    true = np.round(random.normal(size=200), 1) + offset
    scores = numbers(np.round(true + random.normal(size=200), 1), true)
    for name, theirs in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        expected = theirs(*scores.sums.values()).statistic
        assert METRICS[name].of_rows(scores) == pytest.approx(expected, abs=1e-9)


def test_errors_are_those_by_hand():
    """Errors 3, -4 and 0: mean square 25/3, mean 7/3."""
    scores = numbers([4.0, -4.0, 1.0], [1.0, 0.0, 1.0])
    assert METRICS["rmse"].of_rows(scores) == pytest.approx((25 / 3) ** 0.5)
    assert METRICS["mae"].of_rows(scores) == pytest.approx(7 / 3)


def test_f1_of_label_sets_is_that_of_scikit_learn():
    random, labels = Random(0), ["a", "b", "c", "d"]
    rows = [([random.random() for _ in labels], [random.randint(0, 1) for _ in labels]) for _ in range(60)]
    scored = [
        MULTI_LABEL.score_row(LabelSetRow(np.arange(2, dtype=np.int32), np.array(true)), predicted, labels)
        for predicted, true in rows
    ]
    sums = dict(zip(MULTI_LABEL.name_columns(labels), map(list, zip(*scored, strict=True)), strict=True))
    scores = RowScores([0.0] * 60, [4] * 60, sums=sums)
    predicted = np.array([[p > 0.5 for p in probabilities] for probabilities, _ in rows])
    true = np.array([true for _, true in rows])
    for average in ("micro", "macro", "weighted"):
        assert METRICS[f"label_f1_{average}"].of_rows(scores) == pytest.approx(
            f1_score(true, predicted, average=average)
        )
    assert METRICS["label_match"].of_rows(scores) == pytest.approx((true == predicted).all(axis=1).mean())


def test_a_dry_run_shows_the_number_and_the_labels(bpe):
    ids = np.array(bpe("the cat")["input_ids"], np.int32)
    assert view_row(NumberRow(ids, 2.5), bpe, ["target"]).label == "2.5"
    assert view_row(LabelSetRow(ids, np.array([0, 1])), bpe, ["a", "b"]).label == "b"


def test_a_regression_head_has_one_output_without_data_too():
    model, fresh = build_meta(Model(name="builtin:tiny", task="regression"))
    assert model.config.num_labels == 1 and model.score.weight.shape == (1, 192) and fresh == {"score.weight"}


@pytest.fixture(scope="module")
def bpe():
    from tests.tasks.tokenizers_of_words import train_bpe

    return train_bpe(first_space=True)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (["data.format=classification"], "format classification needs model.task: sequence-classification"),
        (["evaluation.metrics=[accuracy]"], "accuracy: only for task sequence-classification, not regression"),
        (["evaluation.metrics=[bleu]"], "bleu: only for task causal-lm or sequence-to-sequence, not regression"),
        (["data.general=x.jsonl"], "regression has no loss on running text"),
        (["data.columns={label: y}"], "format regression has no such column"),
    ],
)
def test_what_does_not_suit_the_task_is_refused_at_check(tmp_path, changes, fault):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: {name: builtin:tiny, task: regression}\nmethod: {type: lora}\n"
        "data: {train: t.jsonl, evaluation: 2, format: regression}\ntraining: {steps: 1, learning_rate: 1e-3}\n"
    )
    load_recipe(path, [])
    with pytest.raises(RecipeError, match=fault):
        load_recipe(path, changes)
