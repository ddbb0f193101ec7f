"""The search for the largest that fits, and the changes that make a recipe fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftlab.errors import UsageError
from peftlab.memory.fit import largest_fitting, maximize, remedies
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
    token = 10 if recipe.training.gradient_checkpointing else 100
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
    recipe = tiny_recipe(tmp_path, {"type": "lora"}, 400, batch_size=8, gradient_accumulation=2)
    changes = remedies(recipe, 1000 + 100 * 400, by_sizes)
    assert [str(change) for change in changes] == [
        "training.gradient_checkpointing=true",
        "training.batch_size=1 training.gradient_accumulation=16",
        "training.gradient_checkpointing=true training.batch_size=1 training.gradient_accumulation=16",
    ]
    assert all(change.report.needed_bytes <= 1000 + 100 * 400 for change in changes)
