"""Runs that recompute as many layers as fit: what the plan decides, what is noted and recorded, equal results."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from peftlab.errors import MissingRequirementError, OutOfMemoryError, RecipeError
from peftlab.memory.blueprint import LayersToRecompute
from peftlab.recipe.load import load_recipe
from peftlab.recipe.schema import Recipe
from peftlab.reports import CheckpointingReport, MemoryReport
from peftlab.runs.display import NoDisplay
from peftlab.runs.identity import present_form, recipe_changes, why_inexact
from peftlab.runs.prediction import plan_run
from peftlab.runs.run import train
from tests.runs.recipes import shallow_recipe, shallow_sections

LAYERS = 4


class InventedPlanner:
    """A planner of 1000 bytes, 100 for each row of a micro-batch and layer that is kept, and 10 for one that is not."""

    def __init__(self, usable_bytes: int):
        self.usable_bytes, self.plans = usable_bytes, 0

    def __call__(self, recipe: Recipe) -> MemoryReport:
        self.plans += 1
        wanted = recipe.training.gradient_checkpointing
        count = LAYERS if wanted is True else wanted if isinstance(wanted, int) else 0
        peak = 1000 + recipe.training.batch_size * (10 * count + 100 * (LAYERS - count))
        found = CheckpointingReport(layers=count, of=LAYERS) if count else None
        return MemoryReport(
            source="predicted", device="cpu", peak_bytes=peak, capacity_bytes=self.usable_bytes, checkpointing=found
        )

    def blueprint(self, recipe: Recipe):
        return SimpleNamespace(layers=LayersToRecompute(LAYERS, True))


def planned(usable_bytes: int, method: str = "lora", **training):
    """Return the recipe to run, its plan, and the notes."""
    recipe = shallow_recipe(method, "-", **{"batch_size": 6, **training})
    recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update={"plan": "refuse"})})
    memory: dict[str, MemoryReport] = {}
    notes: list[str] = []
    planner = InventedPlanner(usable_bytes)
    used = plan_run(recipe, planner, memory, notes.append)
    return used.training, memory["predicted"], notes


def test_nothing_is_recomputed_where_there_is_room():
    training, report, notes = planned(10_000)
    assert training.gradient_checkpointing == "auto" and report.checkpointing is None and notes == []


def test_as_few_layers_are_recomputed_as_are_needed():
    training, report, notes = planned(1000 + 6 * (2 * 10 + 2 * 100))
    assert training.gradient_checkpointing == 2 and report.checkpointing.layers == 2
    assert notes == [
        "training.gradient_checkpointing: the first 2 of 4 layers are recomputed in the backward pass: "
        "that needs 2.3 KiB of 2.3 KiB"
    ]


def test_a_number_stays_though_more_memory_is_there():
    assert planned(10_000, gradient_checkpointing=3)[0].gradient_checkpointing == 3


def test_a_smaller_micro_batch_comes_before_recomputing_and_both_where_one_is_not_enough():
    whole = planned(1000 + 3 * 400, fit=True)[0]
    assert (whole.batch_size, whole.gradient_accumulation, whole.gradient_checkpointing) == (3, 2, "auto")
    both, report, notes = planned(1000 + 130, fit=True)  # less than one row that keeps all, or six that keep nothing
    assert (both.batch_size, both.gradient_accumulation, both.gradient_checkpointing) == (3, 2, True)
    assert report.fits and len(notes) == 2


@pytest.mark.parametrize(("method", "checkpointing"), [("lora", False), ("prefix", "auto")])
def test_a_run_that_may_not_or_cannot_recompute_is_refused(monkeypatch, method, checkpointing):
    monkeypatch.setattr("peftlab.runs.prediction.remedies", lambda *_: [])
    with pytest.raises(OutOfMemoryError):
        planned(1000 + 6 * 300, method, gradient_checkpointing=checkpointing)


def test_offload_is_refused_on_the_cpu(tmp_path):
    sections = shallow_sections("bitfit", tmp_path / "run", gradient_checkpointing="offload")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(str(sections).replace("None", "null").replace("True", "true").replace("False", "false"))
    with pytest.raises(RecipeError, match="offload needs CUDA, and run.device is cpu; set it to true"):
        load_recipe(recipe, ["run.device=cpu"])
    sections["run"] |= {"device": "auto", "plan": "off"}
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(MissingRequirementError, match="offload needs CUDA, and the device is cpu"):
        train(Recipe.model_validate(sections), display=NoDisplay())


def test_the_number_may_change_when_a_run_resumes_and_is_no_reason_to_be_inexact():
    recipes = [
        present_form(shallow_recipe("lora", "-", gradient_checkpointing=wanted).model_dump(mode="json"))
        for wanted in (2, "auto")
    ]
    assert recipe_changes(*recipes) == {}
    records = [{"recipe": one, "environment": {"processes": 1}, "frozen": ""} for one in recipes]
    assert why_inexact(*records) == []


@pytest.mark.slow
def test_a_run_with_little_memory_recomputes_and_has_the_same_weights(tmp_path):
    """The whole way: plan, note, record, and the same bytes as the run with room."""
    sections = shallow_sections("lora", tmp_path / "room", steps=3, batch_size=6)
    sections["run"] |= {"plan": "refuse"}
    room = train(Recipe.model_validate(sections), display=NoDisplay())
    sections["training"]["gradient_checkpointing"] = True
    sections["run"] |= {"output": str(tmp_path / "all")}
    every = train(Recipe.model_validate(sections), display=NoDisplay())
    needs = [one.memory["predicted"].needed_bytes for one in (room, every)]
    sections["training"]["gradient_checkpointing"] = "auto"
    sections["run"] |= {"output": str(tmp_path / "tight"), "memory": f"{sum(needs) // 2}B"}
    tight = train(Recipe.model_validate(sections), display=NoDisplay())
    assert 0 < tight.checkpointing.layers <= every.checkpointing.layers and room.checkpointing is None
    assert tight.recipe["training"]["gradient_checkpointing"] in (True, tight.checkpointing.layers)
    assert any("recomputed in the backward pass" in note for note in tight.notes)
    predicted, measured = (tight.memory[name].phases for name in ("predicted", "measured"))
    assert predicted == pytest.approx(measured, rel=0.02)
    weights = [
        load_file(next((tmp_path / name / "weights").glob("*.safetensors"))) for name in ("room", "all", "tight")
    ]
    for other in weights[1:]:
        assert all(torch.equal(other[name], one) for name, one in weights[0].items())
