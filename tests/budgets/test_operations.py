"""Steps solved for floating-point operations: the count per token by hand, the tokens of the recipe's own rows."""

from __future__ import annotations

import pytest

from peftlab.budgets.operations import operations_per_step
from peftlab.budgets.solve import apply_budget
from peftlab.methods import METHODS
from peftlab.recipe.budget import parse_budget
from peftlab.runs.data_report import report_data
from peftlab.runs.loading import read_shape
from peftlab.runs.plan import operations_per_token
from tests.budgets.recipes import recipe_for
from tests.budgets.shapes import published_shape
from tests.runs.recipes import short_recipe


def test_full_fine_tuning_takes_six_operations_a_matrix_weight_and_three_passes_of_attention():
    shape = published_shape("GPT-2 medium")
    recipe = recipe_for({"type": "full"}, shape.task)
    matrices = 24 * (4 * 1024 * 1024 + 2 * 1024 * 4096)
    attention = 2 * 100 * 1024 * 24
    assert operations_per_token(recipe.method, shape, 100) == 6 * matrices + 3 * attention


@pytest.mark.parametrize(("method", "passes"), [("full", 6), ("bitfit", 4)])
def test_a_tied_head_is_computed_at_the_targets_alone(tmp_path, method, passes):
    recipe = short_recipe("bitfit", tmp_path / "run")
    recipe = recipe.model_copy(update={"method": METHODS[method]()})
    shape, steps = read_shape(recipe, None), report_data(recipe, count=0).steps
    body = steps.tokens * operations_per_token(recipe.method, shape, round(steps.tokens / steps.rows))
    head = steps.supervised * passes * shape.vocabulary * shape.hidden_size
    assert operations_per_step(recipe, shape) == pytest.approx(body + head) and steps.supervised < steps.tokens / 2


def test_a_budget_of_operations_below_one_step_is_shown_beside_a_size_that_is_met(tmp_path):
    recipe = short_recipe("lora", tmp_path / "run")
    shape = read_shape(recipe, None)
    one = operations_per_step(apply_budget(recipe, parse_budget("trainable=5%"), shape)[0], shape)
    solved, both = apply_budget(recipe, parse_budget("trainable=5%,operations=1"), shape)
    assert (both.kind, both.asked, both.reached, both.met) == ("operations", 1, one, False)
    assert solved.training.steps == 1 and solved.method.count_trainable(shape) > 100_000


def test_the_steps_are_the_most_that_stay_within_the_operations(tmp_path):
    recipe = short_recipe("lora", tmp_path / "run")
    shape = read_shape(recipe, None)
    one = operations_per_step(recipe, shape)
    solved, report = apply_budget(recipe, parse_budget(f"operations={100.4 * one:.12g}"), shape)
    assert (solved.training.steps, report.solved["training.steps"], report.met) == (100, 100, True)
    assert report.reached == pytest.approx(100 * one) and report.kind == "operations"
    too_few, missed = apply_budget(recipe, parse_budget(f"operations={0.5 * one:.12g}"), shape)
    assert too_few.training.steps == 1 and not missed.met and "one step takes" in missed.reason


def test_a_size_and_a_number_of_steps_are_solved_together(tmp_path):
    recipe = short_recipe("lora", tmp_path / "run")
    shape = read_shape(recipe, None)
    solved, report = apply_budget(recipe, parse_budget("operations=100G,trainable=100k"), shape)
    alone, _ = apply_budget(recipe, parse_budget("trainable=100k"), shape)
    assert solved.method == alone.method and report.kind == "trainable"
    again, _ = apply_budget(alone, parse_budget("operations=100G"), shape)
    assert solved.training.steps == again.training.steps > 1
