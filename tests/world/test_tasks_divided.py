"""Every task and setting under every strategy: two processes give the results of one, or refuse before they train."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from peftlab.world.open import STRATEGIES
from tests.world.compared import compare
from tests.world.crew import Crew
from tests.world.runs import with_deepspeed
from tests.world.varied import VARIANTS, recipe_of, write_files

DIVIDING = ("ddp", "fsdp2", "fsdp2-offload", "tensor", "zero2", "zero3")
# What the normal suite tries: what was wrong once, and what no other test has.
NORMAL = {("ddp", "streamed mixed"), ("ddp", "sampled"), ("fsdp2", "tags"), ("fsdp2", "answers t5")}
NORMAL |= {("fsdp2", "attention"), ("fsdp2", "labels bert prefix")}


def cases() -> list:
    return [marked(strategy, name) for strategy in DIVIDING for name in VARIANTS]


def marked(strategy: str, name: str):
    world = STRATEGIES[strategy.removesuffix("-offload")]
    marks = [] if (strategy, name) in NORMAL else [pytest.mark.slow]
    return pytest.param(strategy, name, marks=marks + [with_deepspeed] * bool(world.package), id=f"{strategy} {name}")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def crew_of(tmp_path_factory):
    """Return the function from a strategy to its two processes."""
    crews: dict[str, Crew] = {}

    def find(strategy: str) -> Crew:
        if strategy not in crews:
            for other in crews.values():  # strategies come one after another
                other.end()
            crews[strategy] = Crew(strategy, tmp_path_factory.mktemp(strategy))
        return crews[strategy]

    yield find
    for crew in crews.values():
        crew.end()


@pytest.fixture(scope="module")
def alone(files, tmp_path_factory):
    """Return the function from a variant's name to the folder of its run in one process; each runs once."""
    folders: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("alone") / "run"
            train(recipe_of(VARIANTS[name], files, folders[name], 1), display=NoDisplay())
        return folders[name]

    return run


@pytest.mark.parametrize(("strategy", "name"), cases())
def test_two_processes_give_the_results_of_one_or_refuse(files, tmp_path, crew_of, alone, strategy, name):
    """Losses, norms, metrics, each row's scores, predictions, generated texts, counts, the audit, the saved weights."""
    variant = VARIANTS[name]
    recipe = recipe_of(variant, files, tmp_path / "two", 1 if strategy == "tensor" else 2)
    errors = crew_of(strategy).train(recipe)
    if reason := variant.refused.get(strategy):
        assert all(re.search(reason, error) and "\n" not in error for error in errors), errors
        return
    assert errors == ["", ""]
    found = compare(alone(name), tmp_path / "two")
    assert found.unequal == ()
    assert max(found.losses, found.metrics, found.scores) <= variant.bound
    assert found.norms <= 10 * variant.bound and found.weights <= 100 * variant.bound
