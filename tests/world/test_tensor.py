"""Tensor parallel: what is its own; `test_divided` compares its runs with those of one process on the same rows."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from peftlab.errors import UsageError
from peftlab.methods import METHODS as REGISTERED
from peftlab.recipe.schema import Recipe
from peftlab.runs import bench
from peftlab.runs.plan import plan
from peftlab.world import tensor as tensor_module
from peftlab.world.open import open_world
from peftlab.world.request import variables_of
from peftlab.world.tensor import Tensor, count_sums, keep_own_part_
from tests.parameters.families import build
from tests.runs.pairs import free_port
from tests.runs.recipes import shallow_model, shallow_sections

TENSOR = variables_of("tensor")


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


def test_a_plan_and_a_run_refuse_such_heads_before_anything_is_read(monkeypatch, tmp_path):
    """A run: before its tokenizer, its rows and its weights."""
    recipe = Recipe.model_validate(shallow_sections("lora", tmp_path, steps=1))
    with pytest.raises(UsageError, match="3 key-value heads cannot be divided among 2 processes"):
        plan(recipe, devices=2, strategy="tensor")
    for name, value in TENSOR.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bench, "load_tokenizer", lambda *_: pytest.fail("something was read"))
    world = Tensor.__new__(Tensor)
    world.device, world.processes = torch.device("cpu"), 2
    with pytest.raises(UsageError, match="3 key-value heads cannot be divided among 2 processes") as error:
        bench.prepare(recipe, world)
    assert "\n" not in str(error.value)


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
