"""ZeRO-3: two processes that each have half of every weight, gradient and state train as one does."""

from __future__ import annotations

import json
import signal
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from peftlab.checkpoint.parts import count_parts, join
from peftlab.errors import UsageError
from peftlab.parameters.divided import (
    are_finite,
    is_divided,
    numbers_of,
    own_numbers,
    own_part,
    part_of,
    whole,
    whole_count,
    whole_shape,
)
from peftlab.recipe.schema import Recipe
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from peftlab.runs.verify import differing, load_final
from peftlab.world.open import refuse_recipe
from peftlab.world.request import variables_of
from peftlab.world.zero3 import Zero3
from tests.runs.pairs import Pair
from tests.runs.recipes import METHODS, shallow_sections
from tests.world.test_fsdp2 import STEPS, TRAINED, gradients_of, losses_of, small_recipe
from tests.world.test_zero2 import with_deepspeed

ZERO3 = variables_of("zero3")
FORMS = TRAINED | {"dora": METHODS["lora"] | {"dora": True, "init": "orthogonal"}}


@pytest.fixture(scope="module", params=list(FORMS))
def pair(request, tmp_path_factory):
    """The folders of a run in one process and in two that divide the weights; as many rows a step."""
    folder = tmp_path_factory.mktemp("zero3")
    two = Pair(small_recipe(FORMS[request.param], folder / "two", 2, plan="report"), folder, environment=ZERO3)
    assert two.wait() == [0, 0], two.outputs()
    train(small_recipe(FORMS[request.param], folder / "one", 4), display=NoDisplay())
    return folder / "one", folder / "two"


@pytest.mark.slow
@with_deepspeed
def test_losses_and_gradients_are_those_of_one_process(pair):
    one, two = pair
    assert losses_of(two) == pytest.approx(losses_of(one), rel=1e-6) and len(losses_of(one)) >= STEPS + 2
    theirs, ours = gradients_of(one), gradients_of(two)
    assert sum(bool(gradient.abs().max() > 1e-7) for gradient in theirs) >= len(theirs) / 2
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@with_deepspeed
def test_each_process_has_half_of_everything_and_the_audit_is_clean(pair):
    one, two = (RunDirectory.open(folder).read_result() for folder in pair)
    assert two.environment["strategy"] == "zero3" and two.parameters == one.parameters
    assert two.audit is not None and two.audit.clean and two.audit.steps == STEPS
    assert two.progress == one.progress and two.examples == one.examples
    ours, theirs = (result.memory["process"].categories for result in (two, one))
    assert ours["frozen_weights"] == pytest.approx(theirs["frozen_weights"] / 2, rel=0.02)
    # DeepSpeed updates a copy of each process's part.
    assert ours["trainable_weights"] == pytest.approx(theirs["trainable_weights"], rel=0.02)
    assert ours["optimiser_state"] < 0.52 * theirs["optimiser_state"] + 1000


@pytest.mark.slow
@with_deepspeed
def test_what_is_saved_is_the_same_folder_as_from_one_process(pair):
    one, two = (RunDirectory.open(folder).weights for folder in pair)
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    for path in one.glob("*.safetensors"):
        theirs, ours = load_file(path), load_file(two / path.name)
        assert {name: (t.shape, t.dtype) for name, t in ours.items()} == {
            name: (t.shape, t.dtype) for name, t in theirs.items()
        }
    folder = pair[1] / "checkpoints" / "step-000003"
    sizes = [(folder / f"part-0000{number}.safetensors").stat().st_size for number in range(2)]
    assert count_parts(folder) == 2 and sizes[0] == pytest.approx(sizes[1], rel=0.1)


@pytest.mark.slow
@with_deepspeed
def test_a_killed_run_resumes_to_the_same_bytes_and_in_other_strategies_with_a_note(tmp_path):
    def recipe(name: str, steps: int) -> Recipe:
        made = small_recipe(METHODS["lora"] | {"dropout": 0.1}, tmp_path / name, 1, save_every=2)
        training = made.training.model_copy(update={"steps": steps, "schedule": "constant"})
        return made.model_copy(update={"training": training})

    killed = Pair(recipe("killed", 200), tmp_path, environment=ZERO3)
    killed.wait_for_step(4)
    killed.processes[1].kill()
    assert killed.wait() == [12, -signal.SIGKILL]
    assert "error: process 1 of 2" in killed.outputs()[0].splitlines()[-1]
    steps = killed.result()["progress"]["step"] + 3
    for name, resume in (("killed", True), ("straight", False)):
        pair = Pair(recipe(name, steps), tmp_path, resume=resume, environment=ZERO3)
        assert pair.wait() == [0, 0], pair.outputs()
    assert all(differing(load_final(tmp_path / "killed"), load_final(tmp_path / "straight")).values())
    # The same number of processes divides by rows in FSDP 2: its parts are other ones.
    for strategy, environment in (("fsdp2", variables_of("fsdp2")), ("zero3", ZERO3)):
        steps += 1
        other = Pair(recipe("killed", steps), tmp_path, resume=True, environment=environment)
        assert other.wait() == [0, 0], other.outputs()
        assert not other.result()["resumes"][-1]["exact"]
        former = "zero3" if strategy == "fsdp2" else "fsdp2"
        assert f"strategy: {former} -> {strategy}" in other.result()["resumes"][-1]["reasons"]
    alone = train(recipe("killed", steps + 1), resume=True, display=NoDisplay())
    assert alone.resumes[-1].step == steps and "strategy: zero3 -> single" in alone.resumes[-1].reasons
    # One process that trains all steps by itself ends near: rows and dropout differ between one and two processes.
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    losses = [one["loss"] for one in map(json.loads, lines) if "loss" in one]
    assert max(losses[-3:]) < 1.2 * losses[0]


@pytest.mark.parametrize(
    ("section", "settings", "reason"),
    [
        ("method", METHODS["qlora"] | {"quantization": "int8"}, "set method.quantization=nf4"),
        ("method", METHODS["prefix"] | {"kind": "prompt"}, "set method.kind=prefix or launch with DDP"),
        ("training", {"optimizer": "adamw_8bit"}, "ZeRO-3 divides the optimizer's states"),
        ("training", {"precision": "float16"}, "set training.precision=bfloat16"),
        ("training", {"average": {"ema": 0.9}}, "training.average.ema, which evaluations need whole"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_before_anything_is_loaded(tmp_path, section, settings, reason):
    sections = shallow_sections("lora", tmp_path, steps=1)
    sections[section] = settings if section == "method" else sections[section] | settings
    world = Zero3.__new__(Zero3)
    world.device = torch.device("cpu")
    world.close = lambda: None
    with pytest.raises(UsageError, match=reason) as error:
        refuse_recipe(world, Recipe.model_validate(sections))
    assert "\n" not in str(error.value)
    assert not Zero3.why_not(Recipe.model_validate(shallow_sections("lora", tmp_path, steps=1)), world.device)


def test_models_that_it_cannot_divide_are_refused():
    """Experts that a process may skip would leave the others waiting; DeepSpeed needs one type of what trains."""
    world = Zero3.__new__(Zero3)
    world.device = torch.device("cpu")
    layer = nn.Module()
    layer.experts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    with pytest.raises(UsageError, match="the experts in experts are layers of their own"):
        world.prepare(layer)
    with pytest.raises(UsageError, match=r"several types \(bfloat16, float32\)"):
        world.prepare(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16()))
    world.prepare(nn.Sequential(nn.Linear(2, 2)))


@pytest.fixture
def parts():
    """A parameter of five numbers as each of two processes has it: three numbers, and two with one of padding."""
    full = torch.arange(5.0)
    made = []
    for process, own in enumerate((full[:3], torch.cat([full[3:], torch.tensor([float("nan")])]))):
        parameter = nn.Parameter(torch.empty(0))
        parameter.ds_tensor, parameter.ds_numel, parameter.ds_shape = own.clone(), 5, torch.Size([5, 1])
        parameter.ds_zero_partition_rank = process
        made.append(parameter)
    return full, made


def test_padding_is_no_part_of_a_parameter(parts):
    full, made = parts
    for one in made:
        assert is_divided(one) and whole_shape(one) == (5, 1) and whole_count(one) == 5
        assert torch.equal(own_numbers(one), numbers_of(one, full.view(5, 1))) and len(own_part(one)) == 3
    assert torch.equal(join([part_of(one) for one in made]), full.view(5, 1))


def test_a_gathered_parameter_is_its_own_whole(parts):
    full, (one, _) = parts
    one.data = full.view(5, 1)
    assert whole(one) is one


def test_a_parameter_is_finite_where_all_processes_find_it_so(parts, monkeypatch):
    _, (one, other) = parts
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, operation: None)
    assert are_finite([one, other]).tolist() == [True, True], "padding is not looked at"
    own_numbers(other)[0] = torch.inf
    assert are_finite([one, other]).tolist() == [True, False]
    assert are_finite([torch.ones(2), torch.tensor([1.0, torch.nan])]).tolist() == [True, False]


def test_gradients_have_no_padding(parts):
    _, made = parts
    world = Zero3.__new__(Zero3)
    kept = SimpleNamespace(averaged_gradients={0: [torch.ones(3), torch.ones(3)]}, fp16_groups=[made])
    world._engine = SimpleNamespace(optimizer=kept)
    assert [len(one) for one in world.gradients(None)] == [3, 2]
    kept.averaged_gradients = {0: None}
    assert world.gradients(None) == []
