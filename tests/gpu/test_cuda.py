"""What only a CUDA device can show; `scripts/test --gpu` runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from peftlab.errors import StoppedError
from peftlab.methods import METHODS
from peftlab.optimizers.adamw import SMALLEST_8BIT, SMALLEST_PAGED
from peftlab.parameters.trainable import named_parameters
from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.schema import Recipe
from peftlab.runs import training as training_stage
from peftlab.runs.display import NoDisplay
from peftlab.runs.merge import merge
from peftlab.runs.run import train
from peftlab.runs.use import evaluate
from peftlab.runs.verify import differing, load_final
from tests.runs.recipes import short_sections

pytestmark = pytest.mark.gpu

BITSANDBYTES = ["adamw_8bit", "paged_adamw", "paged_adamw_8bit"]


def cuda_recipe(method: str, output, run: dict[str, Any] | None = None, **training) -> Recipe:
    sections = short_sections(method, output, **training)
    sections["run"] |= {"device": "cuda"} | (run or {})
    return Recipe.model_validate(sections)


def changed(recipe: Recipe, **sections: Any) -> Recipe:
    values = recipe.model_dump()
    for section, fields in sections.items():
        values[section] = {**values[section], **fields}
    return Recipe.model_validate(values)


@pytest.fixture
def setups(monkeypatch) -> list[Any]:
    """The setups of the training loops that ran, with their models and optimisers."""
    seen: list[Any] = []
    original = training_stage.run_loop

    def run_loop(setup, *arguments):
        seen.append(setup)
        return original(setup, *arguments)

    monkeypatch.setattr(training_stage, "run_loop", run_loop)
    return seen


@pytest.mark.parametrize("precision", ["bfloat16", "float32", "float16"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_reloads_in_every_precision(tmp_path, method, precision):
    result = train(cuda_recipe(method, tmp_path / "run", precision=precision), display=NoDisplay())
    assert result.environment["types"] == {"weights": precision, "computation": precision}
    assert result.metrics["after"]["loss"] < result.metrics["before"]["loss"]
    assert result.audit.clean, result.audit
    assert result.memory["measured"].device == "cuda"
    # The 16-bit kernels of one shape are deterministic, but a fresh process may pick others.
    assert evaluate(tmp_path / "run")["loss"] == pytest.approx(result.metrics["after"]["loss"], abs=2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_in_float32_cuda_computes_what_the_cpu_does(tmp_path, method):
    """Quantised bytes of the two devices may differ, so that QLoRA's numbers are less close."""
    losses = []
    for device in ("cpu", "cuda"):
        recipe = cuda_recipe(method, tmp_path / device, {"device": device}, precision="float32")
        losses.append(train(recipe, display=NoDisplay()).metrics["after"]["loss"])
    assert losses[1] == pytest.approx(losses[0], abs=2e-2 if method == "qlora" else 1e-3)


@pytest.mark.parametrize("unfreeze", [(), ("*bias",)], ids=["frozen", "trained"])
@pytest.mark.parametrize("base_format", ["nf4", "fp4", "int8"])
def test_quantised_bases_keep_the_types_of_their_biases(tmp_path, setups, base_format, unfreeze):
    recipe = cuda_recipe("qlora", tmp_path / "run")
    recipe = changed(recipe, method={"quantization": base_format, "unfreeze": unfreeze})
    assert train(recipe, display=NoDisplay()).audit.clean
    wanted = torch.float32 if unfreeze else torch.bfloat16
    biases = {p.dtype for name, p in named_parameters(setups[0].model).items() if name.endswith("bias")}
    assert biases == {wanted}


@pytest.mark.parametrize("optimizer", BITSANDBYTES)
def test_bitsandbytes_optimisers_train_with_the_states_that_they_are_named_for(tmp_path, setups, optimizer):
    """All weights train: the embedding has 786,432 numbers, enough for 8 bits and for pages."""
    recipe = changed(cuda_recipe("full", tmp_path / "run", optimizer=optimizer), method={"layers": "all"})
    result = train(recipe, display=NoDisplay())
    assert result.metrics["after"]["loss"] < result.metrics["before"]["loss"]
    assert result.audit.clean
    check_states(setups[0].optimizer, optimizer)


def check_states(optimizer: torch.optim.Optimizer, name: str) -> None:
    sizes = [parameter.numel() for parameter in optimizer.state]
    assert max(sizes) > SMALLEST_PAGED > SMALLEST_8BIT > min(sizes)
    for parameter, state in optimizer.state.items():
        eight_bit = "8bit" in name and parameter.numel() >= SMALLEST_8BIT
        assert state["state1"].dtype == (torch.uint8 if eight_bit else torch.float32)
        paged = "paged" in name and parameter.numel() >= SMALLEST_PAGED
        assert getattr(state["state1"], "is_paged", False) == paged


RESUMED = [*((name, "adamw") for name in METHODS), *(("full", name) for name in BITSANDBYTES)]


@pytest.mark.parametrize(("method", "optimizer"), RESUMED)
def test_with_deterministic_algorithms_a_resumed_run_equals_a_straight_one(tmp_path, setups, method, optimizer):
    def start(folder: str, resume: bool = False, **run: Any):
        settings = {"deterministic": True, "save_every": 6, **run}
        recipe = cuda_recipe(method, tmp_path / folder, settings, optimizer=optimizer)
        recipe = changed(recipe, method={"layers": "all"}) if method == "full" else recipe
        return train(recipe, resume=resume, display=NoDisplay())

    start("straight")
    with pytest.raises(StoppedError):
        start("resumed", stop_after=3)
    result = start("resumed", resume=True)
    assert [(report.step, report.exact) for report in result.resumes] == [(3, True)], result.resumes
    same = differing(load_final(tmp_path / "straight"), load_final(tmp_path / "resumed"))
    assert all(same.values()), [name for name, equal in same.items() if not equal]
    if optimizer != "adamw":
        check_states(setups[-1].optimizer, optimizer)


def test_without_deterministic_algorithms_a_resumed_run_is_not_called_exact(tmp_path):
    with pytest.raises(StoppedError):
        train(cuda_recipe("lora", tmp_path / "run", {"save_every": 6, "stop_after": 3}), display=NoDisplay())
    result = train(cuda_recipe("lora", tmp_path / "run", {"save_every": 6}), resume=True, display=NoDisplay())
    (report,) = result.resumes
    assert not report.exact and "run.deterministic" in report.reasons[0]


@pytest.mark.parametrize("method", [name for name in METHODS if name != "prefix"])
def test_gradient_checkpointing_gives_the_same_loss(tmp_path, method):
    losses = []
    for checkpointing in (False, True):
        recipe = cuda_recipe(method, tmp_path / str(checkpointing), gradient_checkpointing=checkpointing)
        losses.append(train(recipe, display=NoDisplay()).metrics["after"]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=5e-3)


def test_gradient_checkpointing_gives_the_same_loss_with_a_learned_prompt(tmp_path):
    losses = []
    for checkpointing in (False, True):
        recipe = cuda_recipe("prefix", tmp_path / str(checkpointing), gradient_checkpointing=checkpointing)
        recipe = changed(recipe, method={"kind": "prompt"})
        losses.append(train(recipe, display=NoDisplay()).metrics["after"]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=5e-3)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_result_is_timed_and_merged_within_the_limits_of_its_type(tmp_path, method):
    recipe = changed(cuda_recipe(method, tmp_path / "run"), evaluation={"latency": True})
    report = train(recipe, display=NoDisplay()).inference
    assert report is not None and {"base", "unmerged", "merged"} <= report.seconds.keys()
    merged = merge(tmp_path / "run", tmp_path / "merged")
    assert merged.agreements[merged.base].rms <= merged.limit


def test_a_step_that_does_not_fit_is_split_and_stays_within_the_memory_that_was_given(tmp_path):
    whole = train(cuda_recipe("full", tmp_path / "whole", {"plan": "refuse"}, batch_size=64), display=NoDisplay())
    given = whole.memory["predicted"].needed_bytes * 8 // 10
    settings = {"plan": "refuse", "memory": f"{given}B"}
    split = train(cuda_recipe("full", tmp_path / "split", settings, batch_size=64, fit=True), display=NoDisplay())
    training = split.recipe["training"]
    assert training["gradient_accumulation"] > 1 and training["batch_size"] * training["gradient_accumulation"] == 64
    assert split.memory["measured"].peak_bytes <= given
    assert split.metrics["after"]["loss"] == pytest.approx(whole.metrics["after"]["loss"], abs=2e-2)


def test_the_command_trains_in_a_fresh_process(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(cuda_recipe("lora", tmp_path / "run")))
    command = [sys.executable, "-m", "peftlab", "train", str(recipe), "--json"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)
    assert result["status"] == "finished" and result["memory"]["measured"]["device"] == "cuda"
