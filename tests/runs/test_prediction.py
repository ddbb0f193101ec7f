from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from peftlab.errors import OutOfMemoryError
from peftlab.memory.constants import cuda_constants
from peftlab.memory.fit import Change
from peftlab.methods import METHODS
from peftlab.reports import PHASES, MemoryReport
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.prediction import usable_bytes
from peftlab.runs.run import train
from tests.runs.recipes import shallow_recipe


def test_on_cuda_a_runs_own_context_is_not_missing_twice():
    """Of a device 10 GiB are free after the context was made, and a plan counts the context."""
    world = SimpleNamespace(device=torch.device("cuda"), gather=lambda items: items, free_bytes=lambda: 10 * 2**30)
    recipe, context = shallow_recipe("lora", "-"), cuda_constants((9, 0)).context
    assert usable_bytes(recipe, world, (9, 0)) == 10 * 2**30 + context
    world.device = torch.device("cpu")
    assert usable_bytes(recipe, world) == 10 * 2**30


def planned(method, folder, plan="refuse"):
    recipe = shallow_recipe(method, folder, steps=1)
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"plan": plan})})


@pytest.mark.parametrize("method", METHODS)
def test_a_prediction_is_within_two_percent_of_the_longest_rows_measurement(tmp_path, method):
    memory = train(planned(method, tmp_path / "run"), display=NoDisplay()).memory
    assert tuple(memory["predicted"].phases) == tuple(memory["measured"].phases) == PHASES
    for phase in PHASES:
        assert memory["predicted"].phases[phase] == pytest.approx(memory["measured"].phases[phase], rel=0.02), phase


def test_a_run_that_will_not_fit_is_refused_before_weights_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("peftlab.world.hardware.free_bytes", lambda device: 10 * 2**20)
    monkeypatch.setattr("peftlab.runs.loading.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    fitting = MemoryReport(source="predicted", device="cpu", peak_bytes=2**20)
    changes = [Change({"training.batch_size": 1}, fitting)]
    monkeypatch.setattr("peftlab.runs.prediction.remedies", lambda recipe, capacity, planner: changes)
    message = "MiB, but 10.0 MiB is available; these fit: training.batch_size=1 needs 1.0 MiB; run.plan=report starts"
    with pytest.raises(OutOfMemoryError, match=message):
        train(planned("lora", tmp_path / "run"), display=NoDisplay())
    result = RunDirectory.open(tmp_path / "run").read_result()
    assert result.status == "out_of_memory" and result.memory["predicted"].fits is False


def test_a_run_that_will_not_fit_starts_with_plan_report(tmp_path, monkeypatch):
    monkeypatch.setattr("peftlab.world.hardware.free_bytes", lambda device: 10 * 2**20)
    assert train(planned("bitfit", tmp_path / "run", "report"), display=NoDisplay()).status == "finished"


def test_a_model_that_cannot_be_traced_still_trains(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise NotImplementedError("no such operation on fake tensors")

    notes = []
    display = NoDisplay()
    display.note = notes.append
    monkeypatch.setattr("peftlab.runs.planner.predict", fail)
    assert train(planned("bitfit", tmp_path / "run"), display=display).status == "finished"
    message = (
        "Memory cannot be predicted for this model (no such operation on fake tensors); training continues without a"
    )
    assert any(note.startswith(message) for note in notes)
