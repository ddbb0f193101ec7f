"""The search for the largest that fits, and the changes that make a recipe fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftlab.errors import UsageError
from peftlab.memory.fit import largest_fitting, largest_split, maximize, remedies
from peftlab.recipe.schema import Recipe
from peftlab.reports import MemoryReport
from tests.memory.real import tiny_recipe


def report(size: float) -> MemoryReport:
    return MemoryReport(source="predicted", device="cpu", peak_bytes=int(size))


@given(st.integers(0, 10**6), st.integers(1, 10**4), st.integers(0, 50), st.integers(1, 3000))
def test_the_largest_that_fits_is_found_on_any_rising_curve(base, slope, bend, answer):
    def trial(n: int) -> MemoryReport:
        trials.append(n)
        return report(base + slope * n + bend * n * n // 1000)

    trials: list[int] = []
    capacity = trial(answer).needed_bytes
    found, best = largest_fitting(trial, trial(1), capacity, limit=4000)
    assert best.needed_bytes <= capacity
    assert found == 4000 or trial(found + 1).needed_bytes > capacity
    assert len(trials) < 40


def by_sizes(recipe: Recipe) -> MemoryReport:
    """A stand-in for a prediction: a state, and bytes for every token of a micro-batch."""
    token = 10 if recipe.training.gradient_checkpointing is True else 100
    return report(1000 + token * recipe.training.batch_size * recipe.data.max_length)


def test_length_goes_in_steps_and_stops_at_the_models_positions(tmp_path):
    recipe = tiny_recipe(tmp_path, {"type": "lora"}, batch_size=1)
    assert maximize(recipe, "max_length", 1000 + 100 * 100, by_sizes, longest=4096)[0] == 96
    assert maximize(recipe, "max_length", 10**9, by_sizes, longest=4096)[0] == 4096


@pytest.mark.parametrize(
    ("field", "capacity", "told"),
    [
        ("batchsize", 10**9, "did you mean 'batch_size'"),
        ("rank", 10**9, "method full has none"),
        ("batch_size", 999, "even training.batch_size=1 needs"),
    ],
)
def test_what_cannot_be_maximised_is_told_in_one_line(tmp_path, field, capacity, told):
    with pytest.raises(UsageError, match=told):
        maximize(tiny_recipe(tmp_path, {"type": "full"}), field, capacity, by_sizes, longest=4096)


def test_remedies_keep_the_effective_batch_and_fit(tmp_path):
    recipe = tiny_recipe(tmp_path, {"type": "lora"}, 400, batch_size=8, gradient_accumulation=3)
    capacity = 1000 + 100 * 400 * 5
    changes = remedies(recipe, capacity, by_sizes)
    # Of the divisors of 24 rows, 4 is the largest that is below 5; 8 rows of 224 tokens are below 5 of 400.
    assert [str(change) for change in changes] == [
        "training.gradient_checkpointing=true",
        "training.batch_size=4 training.gradient_accumulation=6",
        "data.max_length=224",
    ]
    assert all(change.report.needed_bytes <= capacity for change in changes)


def test_checkpointing_and_smaller_micro_batches_go_together_where_neither_is_enough(tmp_path):
    recipe = tiny_recipe(tmp_path, {"type": "qlora"}, 400, batch_size=8)
    (first, *_) = remedies(recipe, 1000 + 10 * 400 * 2, by_sizes)
    assert str(first) == ("training.gradient_checkpointing=true training.batch_size=2 training.gradient_accumulation=4")


@pytest.mark.parametrize(
    ("fitting", "batch", "accumulation", "split"),
    [(5, 8, 1, (4, 2)), (5, 6, 4, (4, 6)), (1, 8, 2, (1, 16)), (0, 8, 2, None), (1, 1, 4, None)],
)
def test_a_step_is_split_into_the_largest_smaller_micro_batches_that_divide_it(
    tmp_path, fitting, batch, accumulation, split
):
    recipe = tiny_recipe(tmp_path, {"type": "full"}, 10, batch_size=batch, gradient_accumulation=accumulation)
    change = largest_split(recipe, 1000 + 100 * 10 * fitting, by_sizes)
    found = change and tuple(change.settings.values())
    assert found == split
