"""FSDP 2: two processes that each have half of every weight train as one does."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from peftlab.checkpoint.manifest import read_manifest
from peftlab.checkpoint.parts import count_parts, load_whole
from peftlab.errors import UsageError
from peftlab.recipe.schema import Recipe
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.planner import Planner
from peftlab.runs.run import train
from peftlab.runs.verify import differing, load_final
from peftlab.world.fsdp2 import Fsdp2
from peftlab.world.open import open_world, refuse_recipe
from tests.runs.pairs import Pair
from tests.runs.recipes import METHODS, shallow_sections

# As accelerate's launcher sets them, its default of loading too.
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
OFFLOADED = FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"}
# LoRA: both factors start off zero, so that each has a gradient.
TRAINED = {
    "qlora": METHODS["qlora"],
    "lora": METHODS["lora"] | {"init": "orthogonal"},
    "full": {"type": "full"},
    "last layer": {"type": "full", "layers": 1},
    "adapters": METHODS["adapters"],
    "bitfit": METHODS["bitfit"],
    "prefix": METHODS["prefix"],
}
STEPS = 3


def small_recipe(method: dict, folder: Path, accumulation: int, **run) -> Recipe:
    sections = shallow_sections("full", folder, steps=STEPS, batch_size=2, gradient_accumulation=accumulation)
    sections["method"] = method
    sections["data"] |= {"max_length": 48, "train_rows": 12, "evaluation_rows": 5}
    sections["evaluation"] = {"generation": {"examples": 1, "rows": 3, "max_new_tokens": 4}}
    sections["evaluation"] |= {"metrics": ["loss", "exact_match"]}
    sections["run"] |= {"save_every": 1, "keep_checkpoints": 9, "log_every": 1} | run
    return Recipe.model_validate(sections)


def losses_of(run: Path) -> list[float]:
    """Return the logged losses of a run's steps and evaluations, in their order."""
    return [one["loss"] for one in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in one]


def gradients_of(run: Path) -> list[torch.Tensor]:
    """Return each parameter's gradient in the first step, times a tenth: Adam's first average of it."""
    state = load_whole(run / "checkpoints" / "step-000001")["optimizer"]["state"]
    return [moments["exp_avg"] for moments in state.values()]


@pytest.fixture(
    scope="module",
    params=["qlora", *(pytest.param(name, marks=pytest.mark.slow) for name in list(TRAINED)[1:])],
)
def pair(request, tmp_path_factory):
    """The folders of a run in one process and in two that divide the weights; as many rows a step."""
    folder = tmp_path_factory.mktemp("fsdp2")
    two = Pair(small_recipe(TRAINED[request.param], folder / "two", 2, plan="report"), folder, environment=FSDP2)
    assert two.wait() == [0, 0], two.outputs()
    train(small_recipe(TRAINED[request.param], folder / "one", 4), display=NoDisplay())
    return folder / "one", folder / "two"


def test_losses_and_gradients_are_those_of_one_process(pair):
    one, two = pair
    assert losses_of(two) == pytest.approx(losses_of(one), rel=1e-5) and len(losses_of(one)) >= STEPS + 2
    theirs, ours = gradients_of(one), gradients_of(two)
    moving = [gradient for gradient in theirs if gradient.abs().max() > 1e-7]
    assert len(moving) >= len(theirs) / 2 > 0, "an adapter's second factor starts at zero, so that the first has none"
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_each_process_has_half_of_the_weights_and_of_the_optimisers_state(pair):
    one, two = (RunDirectory.open(folder).read_result() for folder in pair)
    assert two.environment["strategy"] == "fsdp2" and two.parameters == one.parameters
    ours, theirs = (result.memory["process"].categories for result in (two, one))
    for name in ("frozen_weights", "trainable_weights"):
        assert ours[name] == pytest.approx(theirs[name] / 2, rel=0.02)
    assert ours["quantisation_state"] == theirs["quantisation_state"], "scales are whole on each process"
    assert ours["optimiser_state"] < 0.52 * theirs["optimiser_state"] + 1000


def test_the_audit_is_clean_and_a_speed_up_that_reads_weights_is_declined(pair):
    result = RunDirectory.open(pair[1]).read_result()
    assert result.audit is not None and result.audit.clean and result.audit.steps == STEPS
    (loss,) = [switch for switch in result.speed.switches if switch.name == "loss"]
    assert not loss.used and "divides them among processes" in loss.reason


def test_the_plan_has_the_state_of_one_process(pair):
    recipe = Recipe.model_validate(RunDirectory.open(pair[1]).read_result().recipe)
    planned = Planner(torch.device("cpu"), processes=2, strategy="fsdp2")(recipe)
    measured = RunDirectory.open(pair[1]).read_result().memory["process"].categories
    for name in ("frozen_weights", "trainable_weights", "optimiser_state"):
        # A buffer of 256 bytes, that of rotary frequencies, is all that full fine-tuning freezes.
        assert planned.categories[name] == pytest.approx(measured[name], rel=0.02, abs=256)


def test_the_peaks_of_a_process_are_as_planned(pair):
    """Within 2 %. In a step gloo's thread frees a buffer sooner or later: full took 21.07 or 21.77 MB."""
    result = RunDirectory.open(pair[1]).read_result()
    planned, measured = (result.memory[source].phases for source in ("predicted", "measured"))
    for phase in ("evaluation", "generation", "save"):
        assert measured[phase] == pytest.approx(planned[phase], rel=0.02)
    kept = Planner(torch.device("cpu")).blueprint(Recipe.model_validate(result.recipe)).weights
    layer = sum(one.whole for one in kept if one.layer == 0)
    for phase in ("first_step", "steady_step"):
        assert 0.97 * planned[phase] <= measured[phase] <= 1.02 * planned[phase] + layer


def test_the_audit_and_the_fingerprints_see_the_scales_of_packed_weights(pair):
    """A run on one process and one on two have the same frozen bytes, scales included."""
    manifests = [read_manifest(folder / "checkpoints" / "step-000003").facts for folder in pair]
    assert manifests[0]["frozen"] == manifests[1]["frozen"]


def test_a_checkpoint_has_half_of_the_trained_state_from_each_process(pair):
    folder = pair[1] / "checkpoints" / "step-000003"
    assert count_parts(folder) == 2 and count_parts(pair[0] / "checkpoints" / "step-000003") == 0
    sizes = [(folder / f"part-0000{number}.safetensors").stat().st_size for number in range(2)]
    whole = (pair[0] / "checkpoints" / "step-000003" / "state.safetensors").stat().st_size
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1) and sum(sizes) == pytest.approx(whole, rel=0.1)
    assert {f"part-0000{number}.safetensors" for number in range(2)} < read_manifest(folder).files.keys()


def test_what_is_saved_is_the_same_folder_as_from_one_process(pair):
    one, two = (RunDirectory.open(folder).weights for folder in pair)
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    for path in one.glob("*.safetensors"):
        theirs, ours = load_file(path), load_file(two / path.name)
        assert {name: (t.shape, t.dtype) for name, t in ours.items()} == {
            name: (t.shape, t.dtype) for name, t in theirs.items()
        }
    assert (two / "peftlab_adapter.json").read_bytes() == (one / "peftlab_adapter.json").read_bytes()


def test_a_run_whose_process_was_killed_resumes_to_the_same_bytes_and_in_one_process_with_a_note(tmp_path):
    def recipe(name: str, steps: int) -> Recipe:
        made = small_recipe(METHODS["lora"] | {"dropout": 0.1}, tmp_path / name, 1, save_every=2)
        training = made.training.model_copy(update={"steps": steps, "schedule": "constant"})
        return made.model_copy(update={"training": training})

    killed = Pair(recipe("killed", 200), tmp_path, environment=OFFLOADED)
    killed.wait_for_step(4)
    killed.processes[1].kill()
    assert killed.wait() == [12, -signal.SIGKILL]
    assert "error: process 1 of 2" in killed.outputs()[0].splitlines()[-1]
    steps = killed.result()["progress"]["step"] + 3
    resumed = Pair(recipe("killed", steps), tmp_path, resume=True, environment=OFFLOADED)
    assert resumed.wait() == [0, 0], resumed.outputs()
    straight = Pair(recipe("straight", steps), tmp_path, environment=OFFLOADED)
    assert straight.wait() == [0, 0]
    assert all(differing(load_final(tmp_path / "killed"), load_final(tmp_path / "straight")).values())
    alone = train(recipe("killed", steps + 1), resume=True, display=NoDisplay())
    assert alone.resumes[-1].step == steps and not alone.resumes[-1].exact
    reasons = alone.resumes[-1].reasons
    assert "processes: 2 -> 1" in reasons and "strategy: fsdp2 -> single" in reasons


@pytest.mark.parametrize(
    ("section", "settings", "reason"),
    [
        ("method", METHODS["qlora"] | {"quantization": "int8"}, "set method.quantization=nf4"),
        ("method", METHODS["prefix"] | {"kind": "prompt"}, "set method.kind=prefix or launch with DDP"),
        ("method", METHODS["prefix"] | {"projection": True}, "set method.projection=false or launch with DDP"),
        ("training", {"optimizer": "adamw_8bit"}, "set training.optimizer=adamw"),
        ("training", {"precision": "float16"}, "set training.precision=bfloat16"),
        ("training", {"optimizer_in_backward": True, "clip": None}, "set it to false, or use one process"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_before_anything_is_loaded(tmp_path, section, settings, reason):
    sections = shallow_sections("lora", tmp_path, steps=1)
    sections[section] = settings if section == "method" else sections[section] | settings
    closed: list[bool] = []
    world = Fsdp2.__new__(Fsdp2)
    world.device = torch.device("cpu")
    world.close = lambda: closed.append(True)
    with pytest.raises(UsageError, match=reason) as error:
        refuse_recipe(world, Recipe.model_validate(sections))
    assert "\n" not in str(error.value) and closed
    assert not Fsdp2.why_not(Recipe.model_validate(shallow_sections("lora", tmp_path, steps=1)), world.device)


def test_a_launch_of_one_process_trains_alone_with_a_note(monkeypatch):
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    world = open_world("cpu")
    assert world.strategy == "single"
    assert world.notes == ("FSDP 2 was asked for, but the launch has one process: its device has the whole model",)


def test_a_process_works_on_its_share_alone_unless_weights_are_divided():
    place = SimpleNamespace(process=1, processes=3, divided=False)
    assert list(Fsdp2.own_share(place, 5)) == [1, 4]
    assert list(Fsdp2.own_share(SimpleNamespace(divided=True), 3)) == [0, 1, 2]
