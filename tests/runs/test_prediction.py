from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from peftlab.errors import OutOfMemoryError
from peftlab.memory.constants import cuda_constants
from peftlab.memory.fit import Change
from peftlab.methods import METHODS
from peftlab.recipe.schema import Recipe
from peftlab.reports import PHASES, MemoryReport
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.dry_run import dry_run
from peftlab.runs.prediction import usable_bytes
from peftlab.runs.run import train
from tests.runs.pairs import Pair
from tests.runs.recipes import shallow_recipe, shallow_sections
from tests.sampling import sampled


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


@pytest.mark.parametrize("method", sampled(list(METHODS), ["full", "qlora", "prefix"]))
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


@pytest.mark.parametrize("rows", sampled([1, 2], [2]))
def test_the_measured_peak_is_the_most_that_a_step_can_take_whatever_the_seed(tmp_path, rows):
    """Oracle: gradients of an earlier micro-batch and the longest batch together; the plan is within 2 % of it."""
    lengths = [200, 3, 5, 40, 2, 90, 4, 7]
    rows_of = [{"prompt": "f", "completion": " x" * length} for length in lengths]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of))
    sections = shallow_sections("full", tmp_path / "run", steps=1, batch_size=rows, gradient_accumulation=2)
    sections |= {"method": {"type": "full"}, "data": {"train": str(tmp_path / "rows.jsonl")}, "evaluation": {}}
    peaks = []
    for seed in range(4):
        sections["run"] |= {"seed": seed, "plan": "report" if seed in (0, 3) else "off"}
        memory = dry_run(Recipe.model_validate(sections), display=NoDisplay()).memory
        peaks.append(memory["measured"].peak_bytes)
        if "predicted" in memory:
            assert memory["predicted"].peak_bytes == pytest.approx(peaks[0], rel=0.02)
    assert len(set(peaks)) == 1
    sections["training"] |= {"gradient_accumulation": 1}
    alone = dry_run(Recipe.model_validate(sections), display=NoDisplay()).memory["measured"]
    assert peaks[0] > alone.peak_bytes  # without earlier gradients


RAGGED = [90, 3, 5, 40, 2, 60, 4, 7, 11, 30, 2, 80]
STEPS = {
    "packed": {"batch_size": 2, "gradient_accumulation": 3},
    "padded": {"batch_size": 2, "gradient_accumulation": 3, "speed": {"packing": "off"}},
    "by length": {"batch_size": 3, "gradient_accumulation": 2, "gradient_checkpointing": True},
    "one row": {"batch_size": 1, "gradient_accumulation": 4},
}


def ragged_recipe(folder, method: str, steps: str, init: str, seed: int = 0) -> Recipe:
    """A run of ragged rows with accumulation; few targets in its longest row, many in another."""
    rows = [{"prompt": "f", "completion": " x" * length} for length in RAGGED]
    rows.append({"prompt": "f" + " y" * 100, "completion": " x"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = shallow_sections(method, folder / "run", steps=1, **STEPS[steps])
    sections["model"] |= {"init": init}
    part = {"train": str(folder / "rows.jsonl"), "evaluation": str(folder / "rows.jsonl"), "max_length": 128}
    sections["data"] = part
    sections["run"] |= {"seed": seed, "plan": "report"}
    return Recipe.model_validate(sections)


def assert_planned(memory: dict[str, MemoryReport]) -> None:
    planned, measured = (memory[source].phases for source in ("predicted", "measured"))
    assert tuple(planned) == tuple(measured) == PHASES
    for phase in PHASES:
        assert planned[phase] == pytest.approx(measured[phase], rel=0.02), phase


EVERY = [
    (method, steps, init)
    for method in METHODS
    for steps in STEPS
    for init in ("pretrained", "random")
    if METHODS[method]().supports_gradient_checkpointing or "gradient_checkpointing" not in STEPS[steps]
]


@pytest.mark.parametrize(
    ("method", "steps", "init"), sampled(EVERY, [("full", "packed", "random"), ("lora", "padded", "pretrained")])
)
def test_every_phase_of_ragged_rows_with_accumulation_is_as_planned(tmp_path, method, steps, init):
    assert_planned(train(ragged_recipe(tmp_path, method, steps, init), display=NoDisplay()).memory)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "steps", "init"), EVERY)
def test_every_phase_of_two_processes_is_as_planned(tmp_path, method, steps, init):
    pair = Pair(ragged_recipe(tmp_path, method, steps, init), tmp_path)
    assert pair.wait() == [0, 0], pair.outputs()
    assert_planned(RunDirectory.open(tmp_path / "run").read_result().memory)


def test_a_plan_for_packed_rows_is_made_again_where_the_model_declines_them(tmp_path, monkeypatch):
    packed = train(planned("lora", tmp_path / "packed"), display=NoDisplay()).memory["predicted"]
    monkeypatch.setattr("peftlab.speed.packing.probe", lambda *_: "packed rows change the model's outputs")
    result = train(planned("lora", tmp_path / "padded"), display=NoDisplay())
    predicted, measured = (result.memory[name].phases for name in ("predicted", "measured"))
    assert predicted == pytest.approx(measured, rel=0.02) and predicted != packed.phases
    assert any("the plan was made again for padded rows" in note for note in result.notes)
