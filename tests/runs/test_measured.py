"""Trial steps are made where they can tell something: the first time, without room, and without a plan."""

from __future__ import annotations

import pytest

from peftlab.recipe.schema import Recipe
from peftlab.reports import MemoryReport
from peftlab.runs import training
from peftlab.runs.display import NoDisplay
from peftlab.runs.measured import find_measured, keep_measured
from peftlab.runs.run import train
from tests.runs.recipes import shallow_model, short_sections


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def trials(cache, monkeypatch):
    """The trial steps that were made, in a cache that the tests of this file share."""
    monkeypatch.setenv("PEFTLAB_CACHE", str(cache))
    made, measure = [], training.measure_longest

    def counting(*arguments):
        made.append(measure(*arguments))
        return made[-1]

    monkeypatch.setattr("peftlab.runs.training.measure_longest", counting)
    return made


def make_recipe(output, memory: str | None = None, plan: str = "report", **settings) -> Recipe:
    sections = short_sections("lora", output, steps=2, **settings)
    sections["model"]["name"] = str(shallow_model())
    sections["run"] |= {"plan": plan, "memory": memory}
    return Recipe.model_validate(sections)


def run(recipe: Recipe):
    return train(recipe, display=NoDisplay())


@pytest.fixture(scope="module")
def first(cache):
    """A run with room; the trial steps of its recipe are known from then on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTLAB_CACHE", str(cache))
        return run(make_recipe(cache / "first"))


def test_a_second_run_makes_none_and_trains_the_same_with_the_same_numbers(first, tmp_path, trials):
    second = run(make_recipe(tmp_path / "second", learning_rate=5e-3))
    assert not trials and any(line.startswith("no trial steps:") for line in second.notes)
    assert second.metrics == first.metrics and second.progress == first.progress
    assert second.memory["measured"].phases.keys() == first.memory["measured"].phases.keys()
    assert second.memory["measured"].peak_bytes == first.memory["measured"].peak_bytes


def test_another_batch_size_and_another_switch_are_measured(first, tmp_path, trials):
    run(make_recipe(tmp_path / "rows", batch_size=3))
    run(make_recipe(tmp_path / "speed", speed={"loss": "off"}))
    assert len(trials) == 2


@pytest.mark.parametrize("settings", [{"memory": "1MiB"}, {"plan": "off"}])
def test_a_tight_run_and_one_without_a_plan_are_measured(first, tmp_path, trials, settings):
    run(make_recipe(tmp_path / "tight", **settings))
    assert len(trials) == 1


def test_a_damaged_measurement_is_made_again(cache, trials):
    report = MemoryReport(source="measured", device="cpu", peak_bytes=5, phases={"load": 5})
    keep_measured("one", report)
    assert find_measured("one") == report
    (cache / "memory" / "one.json").write_text("{")
    assert find_measured("one") is None and find_measured("another") is None


def test_a_cache_that_cannot_be_written_stops_nothing(cache, monkeypatch):
    (cache / "file").write_text("")
    monkeypatch.setenv("PEFTLAB_CACHE", str(cache / "file"))
    keep_measured("one", MemoryReport(source="measured", device="cpu", peak_bytes=5))
    assert find_measured("one") is None


def test_the_seconds_to_the_first_step_are_in_the_result(first):
    assert 0 < first.seconds["first_step"] < first.seconds["total"]
