"""Tensor parallel: two processes that each compute half of every dense layer train as one does on the same rows."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from peftlab.errors import UsageError
from peftlab.methods import METHODS as REGISTERED
from peftlab.recipe.schema import Recipe
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from peftlab.runs.verify import differing, load_final
from peftlab.world import tensor as tensor_module
from peftlab.world.open import open_world, refuse_recipe
from peftlab.world.request import variables_of
from peftlab.world.tensor import Tensor, count_sums, keep_own_part_
from tests.parameters.families import build
from tests.runs.pairs import Pair, free_port
from tests.runs.recipes import METHODS, even_model, shallow_model, shallow_sections
from tests.world.test_fsdp2 import STEPS, TRAINED, gradients_of, losses_of, small_recipe

TENSOR = variables_of("tensor")
DIVIDED = {name: TRAINED[name] for name in ("lora", "full", "last layer", "adapters", "bitfit")}


def even_recipe(method: dict, folder: Path, accumulation: int, **run) -> Recipe:
    made = small_recipe(method, folder, accumulation, **run)
    return made.model_copy(update={"model": made.model.model_copy(update={"name": str(even_model())})})


@pytest.fixture(scope="module", params=list(DIVIDED))
def pair(request, tmp_path_factory):
    """The folders of a run in one process and in two that divide the layers; the same rows in each step."""
    folder = tmp_path_factory.mktemp("tensor")
    two = Pair(even_recipe(DIVIDED[request.param], folder / "two", 2), folder, environment=TENSOR)
    assert two.wait() == [0, 0], two.outputs()
    train(even_recipe(DIVIDED[request.param], folder / "one", 2), display=NoDisplay())
    return folder / "one", folder / "two"


@pytest.mark.slow
def test_losses_and_gradients_are_those_of_one_process(pair):
    one, two = pair
    assert losses_of(two) == pytest.approx(losses_of(one), rel=1e-5) and len(losses_of(one)) >= STEPS + 2
    theirs, ours = gradients_of(one), gradients_of(two)
    assert sum(bool(gradient.abs().max() > 1e-7) for gradient in theirs) >= len(theirs) / 2
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_the_audit_is_clean_and_layers_are_divided(pair):
    one, two = (RunDirectory.open(folder).read_result() for folder in pair)
    assert two.environment["strategy"] == "tensor" and two.parameters == one.parameters
    assert two.audit is not None and two.audit.clean and two.audit.steps == STEPS
    assert two.progress == one.progress and two.examples == one.examples
    assert two.metrics["after"]["loss"] == pytest.approx(one.metrics["after"]["loss"], rel=1e-5)
    ours, theirs = (sum(result.memory["process"].categories.values()) for result in (two, one))
    assert 0.5 < ours / theirs < 0.95, "embeddings and head are whole, with adapters feed-forward layers too"


@pytest.mark.slow
def test_what_is_saved_is_the_same_folder_as_from_one_process(pair):
    one, two = (RunDirectory.open(folder).weights for folder in pair)
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    for path in one.glob("*.safetensors"):
        theirs, ours = load_file(path), load_file(two / path.name)
        assert theirs.keys() == ours.keys()
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=2e-3)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes_and_in_one_process_with_a_note(tmp_path):
    def recipe(name: str, steps: int) -> Recipe:
        made = even_recipe(METHODS["lora"] | {"dropout": 0.1}, tmp_path / name, 1, save_every=2)
        training = made.training.model_copy(update={"steps": steps, "schedule": "constant"})
        return made.model_copy(update={"training": training})

    killed = Pair(recipe("killed", 200), tmp_path, environment=TENSOR)
    killed.wait_for_step(4)
    killed.processes[1].kill()
    assert killed.wait()[0] == 12
    steps = killed.result()["progress"]["step"] + 3
    for name, resume in (("killed", True), ("straight", False)):
        pair = Pair(recipe(name, steps), tmp_path, resume=resume, environment=TENSOR)
        assert pair.wait() == [0, 0], pair.outputs()
    assert all(differing(load_final(tmp_path / "killed"), load_final(tmp_path / "straight")).values())
    alone = train(recipe("killed", steps + 1), resume=True, display=NoDisplay())
    assert alone.resumes[-1].step == steps and "strategy: tensor -> single" in alone.resumes[-1].reasons


@pytest.mark.parametrize(
    ("section", "settings", "reason"),
    [
        ("method", METHODS["qlora"], "set method.type=lora"),
        ("method", METHODS["prefix"], "a prefix has the keys of all heads"),
        ("training", {"optimizer": "adamw_8bit"}, "set training.optimizer=adamw"),
        ("training", {"precision": "float16"}, "set training.precision=bfloat16"),
        ("training", {"average": {"ema": 0.9}}, "training.average.ema is untried there"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_before_anything_is_loaded(tmp_path, section, settings, reason):
    sections = shallow_sections("lora", tmp_path, steps=1)
    sections[section] = settings if section == "method" else sections[section] | settings
    world = Tensor.__new__(Tensor)
    world.device = torch.device("cpu")
    world.close = lambda: None
    with pytest.raises(UsageError, match=reason) as error:
        refuse_recipe(world, Recipe.model_validate(sections))
    assert "\n" not in str(error.value)


def test_heads_that_processes_cannot_share_are_refused(monkeypatch):
    world = Tensor.__new__(Tensor)
    world.device, world.processes = torch.device("cpu"), 2
    for name, value in TENSOR.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tensor_module, "init_device_mesh", lambda *_, **__: None)
    model = AutoModelForCausalLM.from_pretrained(shallow_model())
    with pytest.raises(UsageError, match="3 key-value heads cannot be divided among 2 processes; launch with FSDP 2"):
        world.prepare(model)
    world.processes = 3
    with pytest.raises(UsageError, match="PARALLELISM_CONFIG_TP_SIZE is 2, and the launch has 3 processes"):
        world.prepare(model)


def test_layers_that_cannot_be_divided_evenly_are_refused(monkeypatch):
    world = Tensor.__new__(Tensor)
    world.device, world.processes = torch.device("cpu"), 2
    for name, value in TENSOR.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tensor_module, "init_device_mesh", lambda *_, **__: None)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 16, "intermediate_size": 15}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    with pytest.raises(UsageError, match="15 out_features of model.layers.0.mlp.gate_proj cannot be divided by 2"):
        world.prepare(AutoModelForCausalLM.from_config(LlamaConfig(**sizes, **heads)))


def test_models_without_a_plan_are_refused(monkeypatch):
    world = Tensor.__new__(Tensor)
    world.device, world.processes = torch.device("cpu"), 2
    for name, value in TENSOR.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tensor_module, "init_device_mesh", lambda *_, **__: None)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 16, "n_positions": 8}
    with pytest.raises(UsageError, match="no tensor parallel plan for gpt2 models"):
        world.prepare(AutoModelForCausalLM.from_config(GPT2Config(**sizes)))


METHODS_SUMMED = {
    "lora": {"rank": 2, "targets": "all-linear"},
    "full": {},
    "bitfit": {},
    "adapters": {"bottleneck": 4},
}


def sum_all(number: int, environment: dict[str, str], folder: Path) -> None:
    """Be one of two processes, and write for each method the bytes that are summed in the passes of 20 tokens."""
    os.environ.update(environment | {"RANK": str(number), "LOCAL_RANK": str(number)})
    world, found = open_world("cpu"), {}
    for name, settings in METHODS_SUMMED.items():
        model = world.prepare(REGISTERED[name](**settings).apply(build("qwen2", num_hidden_layers=3)))
        ids = torch.ones(2, 10, dtype=torch.int64)
        with Summed() as summed:
            model(input_ids=ids, labels=ids).loss.backward()
        found[name] = summed.bytes
    world.close()
    (folder / f"{number}.json").write_text(json.dumps(found))


class Summed(TorchDispatchMode):
    """Counts the bytes of what processes sum."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if DTensor in types:
            return NotImplemented
        if func.name().startswith("_c10d_functional::all_reduce"):
            self.bytes += args[0].nbytes
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
def test_what_is_summed_is_what_the_plan_says(tmp_path):
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} | TENSOR
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=sum_all, args=(number, shared, tmp_path)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    measured = json.loads((tmp_path / "0.json").read_text())
    assert measured == json.loads((tmp_path / "1.json").read_text())
    for name, settings in METHODS_SUMMED.items():
        model = REGISTERED[name](**settings).apply(build("qwen2", num_hidden_layers=3, device="meta"))
        keep_own_part_(model, 2)
        assert 20 * 4 * sum(count_sums(model)) == measured[name], name


@pytest.mark.slow
def test_the_peaks_of_a_process_are_as_planned(tmp_path):
    for name in ("lora", "full"):
        recipe = even_recipe(DIVIDED[name], tmp_path / name, 2, plan="report")
        two = Pair(recipe, tmp_path, environment=TENSOR)
        assert two.wait() == [0, 0], two.outputs()
        planned, measured = (two.result()["memory"][source]["phases"] for source in ("predicted", "measured"))
        for phase in ("first_step", "steady_step", "evaluation", "generation", "save"):
            assert measured[phase] == pytest.approx(planned[phase], rel=0.005), (name, phase)
