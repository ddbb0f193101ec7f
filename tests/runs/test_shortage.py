"""Out of memory: the error and the record, in the preflight and in the middle of training."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from peftlab.errors import OutOfMemoryError
from peftlab.losses.cross_entropy import PositionCrossEntropy
from peftlab.recipe.schema import Recipe
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from tests.memory.real import PLAIN_STEP
from tests.runs.recipes import short_sections

MORE_THAN_ANY_MACHINE_HAS = 2**60
# The preflight's two steps call the loss once each.
PREFLIGHT_CALLS = 2


def exhausted(
    folder, monkeypatch, calls: int, fail, plan: str, method: str = "bitfit", **switches: str
) -> tuple[OutOfMemoryError, RunDirectory]:
    """Run out of memory at the loss after so many calls; return the error and the run's directory.

    Steps are computed as transformers and peft do, but for the switches.
    """
    seen = []

    total = PositionCrossEntropy.total

    def loss(self, model, batch):
        result = total(self, model, batch)
        if isinstance(result, FakeTensor):  # the plan traces the same step
            return result
        seen.append(1)
        if len(seen) > calls:
            fail()
        return result

    monkeypatch.setattr(PositionCrossEntropy, "total", loss)
    speed = PLAIN_STEP["training.speed"] | switches
    sections = short_sections(method, folder / "run", steps=3, batch_size=8, speed=speed)
    sections["run"]["plan"] = plan
    sections["data"]["evaluation"] = sections["data"]["evaluation_rows"] = None
    with pytest.raises(OutOfMemoryError) as error:
        train(Recipe.model_validate(sections), display=NoDisplay())
    return error.value, RunDirectory.open(folder / "run")


def test_the_ledger_phase_and_remedies_are_reported_where_the_probe_measured(tmp_path, monkeypatch):
    error, directory = exhausted(tmp_path, monkeypatch, 1, lambda: torch.empty(MORE_THAN_ANY_MACHINE_HAS), "refuse")
    what, allocated, ways = str(error).splitlines()
    assert error.exit_code == 7
    assert what.startswith("out of memory in phase steady step, at training.batch_size=8 and data.max_length=96: ")
    assert "can't allocate memory" in what
    assert allocated.startswith("allocated then: ")
    assert " saved activations " in allocated and " optimiser state " in allocated
    assert "training.gradient_checkpointing=true needs" in ways and "training.batch_size=" in ways
    result = directory.read_result()
    assert result.status == "out_of_memory" and result.error == str(error)
    memory, predicted = result.memory["out_of_memory"], result.memory["predicted"]
    assert memory.phases == {"steady_step": memory.peak_bytes} and memory.residual_bytes == 0
    for state in ("frozen_weights", "trainable_weights", "optimiser_state"):
        assert memory.categories[state] == predicted.categories[state], state
    # At the end of the forward pass all that the backward pass needs lives.
    assert memory.categories["saved_activations"] == pytest.approx(predicted.categories["saved_activations"], rel=0.05)
    assert len(memory.remedies) >= 2


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_what_speed_ups_save_counts_as_saved_as_in_the_plan(tmp_path, monkeypatch, method):
    monkeypatch.setattr("peftlab.runs.shortage.remedies", lambda *_: [])  # they take a plan each
    own = ("packing", "linear", "feed_forward", "activation", "norm", "rotary")
    switches = dict.fromkeys(own, "auto")
    fail = lambda: torch.empty(MORE_THAN_ANY_MACHINE_HAS)  # noqa: E731
    _, directory = exhausted(tmp_path, monkeypatch, 1, fail, "refuse", method, **switches)
    result = directory.read_result()
    assert {one.name for one in result.speed.switches if one.used} >= {"packing", "feed_forward", "norm", "rotary"}
    memory, predicted = result.memory["out_of_memory"].categories, result.memory["predicted"].categories
    assert memory["saved_activations"] == pytest.approx(predicted["saved_activations"], rel=0.05)
    assert memory["workspace"] < 0.05 * memory["saved_activations"]


def test_in_training_the_state_and_the_rest_of_the_process_are_reported(tmp_path, monkeypatch):
    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore advice")

    error, directory = exhausted(tmp_path, monkeypatch, PREFLIGHT_CALLS + 1, fail, "off")
    what, allocated, ways = str(error).splitlines()
    assert what.endswith("CUDA out of memory. Tried to allocate 20.00 MiB.") and "phase training" in what
    assert "everything else" in allocated and "frozen weights" in allocated and "nothing was planned" in ways
    memory = directory.read_result().memory
    assert memory["measured"].phases["steady_step"] > 0
    assert memory["out_of_memory"].residual_bytes > 0
