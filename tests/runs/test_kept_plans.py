"""A plan is made once for a model, method, settings and rows; what it depends on gives it another name."""

from __future__ import annotations

import pytest

from peftlab.data.dataset import Dataset
from peftlab.recipe.schema import Recipe
from peftlab.reports import MemoryReport
from peftlab.runs.display import NoDisplay
from peftlab.runs.kept_plans import KeptPlan
from peftlab.runs.planner import Planner
from peftlab.runs.run import train
from peftlab.tasks import TASKS
from tests.runs.recipes import shallow_sections

NOTE = "the memory plan is that of an earlier run with the same model, method, settings and rows"
ENVIRONMENT = {"python": "3", "versions": {}, "commit": "0123abcd", "device": "cpu", "threads": 1, "processes": 1}
REPORT = MemoryReport(source="predicted", device="cpu", peak_bytes=7, capacity_bytes=9, phases={"load": 7})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("peftlab.runs.environment.source_commit", lambda: "0123abcd")
    return tmp_path / "cache"


def make_recipe(folder, kind: str = "bitfit", **changes) -> Recipe:
    sections = shallow_sections(kind, folder, steps=1)
    sections["run"]["plan"] = "refuse"
    sections["data"]["seed"] = 0  # otherwise the run's seed chooses the rows
    for section, values in changes.items():
        sections[section] = values if section == "method" else sections[section] | values
    return Recipe.model_validate(sections)


def rows(content: str = "a") -> Dataset:
    report = {"format": "completion", "train": {"tokens_sha256": content}}
    return Dataset(TASKS["causal-lm"], [], [], None, [], 0, report)


def find(recipe: Recipe, dataset: Dataset | None = None, **settings) -> MemoryReport | None:
    environment = ENVIRONMENT | settings.pop("environment", {})
    return KeptPlan(recipe, dataset or rows(), environment, **settings).find(99)


def test_a_run_with_another_learning_rate_seed_and_length_has_the_plan_of_the_first(tmp_path, monkeypatch):
    made, call = [], Planner.__call__
    monkeypatch.setattr(Planner, "__call__", lambda planner, recipe: made.append(recipe) or call(planner, recipe))
    first = train(make_recipe(tmp_path / "first"), display=NoDisplay())
    planned = len(made)
    changes = {"training": {"steps": 2, "learning_rate": 0.5}, "run": {"seed": 3, "plan": "report"}}
    second = train(make_recipe(tmp_path / "second", **changes), display=NoDisplay())
    assert planned > 0 and len(made) == planned and NOTE in second.notes and NOTE not in first.notes
    kept, planned_first = second.memory["predicted"], first.memory["predicted"]
    assert kept.phases == planned_first.phases and kept.categories == planned_first.categories
    assert kept.peak_bytes == planned_first.peak_bytes and kept.fits is True


def test_the_capacity_is_that_of_the_device_now(tmp_path):
    recipe = make_recipe(tmp_path)
    KeptPlan(recipe, rows(), ENVIRONMENT).keep(REPORT)
    assert find(recipe) == REPORT.model_copy(update={"capacity_bytes": 99})
    assert KeptPlan(recipe, rows(), ENVIRONMENT).find(5).fits is False


@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"type": "lora", "rank": 4}},
        {"training": {"batch_size": 3}},
        {"training": {"optimizer": "sgd"}},
        {"training": {"gradient_checkpointing": True}},
        {"training": {"speed": {"packing": "off"}}},
        {"evaluation": {"batch_size": 2}},
        {"evaluation": {"generation": {"max_new_tokens": 9, "examples": 1}}},
        {"data": {"max_length": 64}},
        {"model": {"name": "builtin:tiny"}},
        {"run": {"deterministic": True}},
    ],
)
def test_what_a_plan_depends_on_plans_anew(tmp_path, changes):
    KeptPlan(make_recipe(tmp_path), rows(), ENVIRONMENT).keep(REPORT)
    assert find(make_recipe(tmp_path, **changes)) is None


def test_other_rows_devices_and_software_plan_anew(tmp_path):
    recipe = make_recipe(tmp_path)
    KeptPlan(recipe, rows(), ENVIRONMENT, device="cpu").keep(REPORT)
    assert find(recipe, device="cpu") is not None
    assert find(recipe, rows("b"), device="cpu") is None and find(recipe, device="cuda") is None
    for environment in ({"commit": "4567"}, {"versions": {"torch": "3"}}, {"commit": "0123abcd with changes"}):
        assert find(recipe, device="cpu", environment=environment) is None


def test_a_damaged_plan_is_made_anew(tmp_path, cache):
    recipe = make_recipe(tmp_path)
    KeptPlan(recipe, rows(), ENVIRONMENT).keep(REPORT)
    (path,) = (cache / "plans").iterdir()
    path.write_text(path.read_text()[:-9])
    assert find(recipe) is None
