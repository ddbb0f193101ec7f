"""Processes of one launch that train one recipe after another, as a script with two calls of `train` does."""

from __future__ import annotations

import pytest

from peftlab.world.open import STRATEGIES
from tests.runs.pairs import Pair
from tests.world.compared import compare
from tests.world.crew import Crew
from tests.world.runs import TRAINED, even_recipe, with_deepspeed


def marked(strategy: str):
    marks = [] if strategy == "ddp" else [pytest.mark.slow]
    return pytest.param(strategy, marks=marks + [with_deepspeed] * bool(STRATEGIES[strategy].package), id=strategy)


@pytest.fixture(params=[marked(strategy) for strategy in ("ddp", "fsdp2", "tensor", "zero2", "zero3")])
def crew(request, tmp_path):
    crew = Crew(request.param, tmp_path)
    yield crew
    crew.end()


def recipe_of(folder, method="lora", **run):
    return even_recipe(TRAINED[method], folder, 1, **run)


def test_a_second_run_is_that_of_new_processes(tmp_path, crew):
    """Oracle: two processes that train nothing else, to the last bit."""
    for name, method in (("full", "full"), ("second", "lora")):
        assert crew.train(recipe_of(tmp_path / name, method)) == ["", ""]
    alone = Pair(recipe_of(tmp_path / "alone"), tmp_path, environment=crew.environment)
    assert alone.wait() == [0, 0], alone.outputs()
    found = compare(tmp_path / "alone", tmp_path / "second")
    assert found.unequal == ()
    assert (found.losses, found.norms, found.metrics, found.scores, found.weights) == (0, 0, 0, 0, 0)


def test_after_a_run_that_ended_early_another_is_refused_in_one_line(tmp_path, crew):
    assert all("stop_after" in error for error in crew.order(recipe_of(tmp_path / "run", stop_after=1)))
    errors = crew.order(recipe_of(tmp_path / "run"), resume=True)
    assert all("launch again for another run" in error and "\n" not in error for error in errors), errors
    crew.end()
    assert crew.train(recipe_of(tmp_path / "run"), resume=True) == ["", ""]
