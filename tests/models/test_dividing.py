"""Loading in parts: two processes keep half of every weight each, and have what one process loads whole."""

from __future__ import annotations

import multiprocessing

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from peftlab.export.gguf_model import write_model
from peftlab.memory.blueprint import build_blueprint
from peftlab.recipe.schema import Recipe
from tests.models.dividing import act
from tests.parameters.families import ENCODER_DECODERS, build
from tests.runs.recipes import shallow_model

# Sizes that two processes cannot halve: rows, and bytes of packed weights.
UNEVEN = {"vocab_size": 61, "intermediate_size": 45}
# Large beside what exchanging a few names takes.
EVEN = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 40}
CLASSES = {"task": "sequence-classification"}
pytestmark = pytest.mark.slow  # test_divided has a run of QLoRA in the normal suite
METHODS = {
    "plain": {"type": "lora", "rank": 2},
    "nf4": {"type": "qlora", "rank": 2},
    "fp4": {"type": "qlora", "rank": 2, "quantization": "fp4", "double_quantization": False},
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """The models, each with the form in which its base is kept."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(1)
    for name, family, changes in (
        ("untied", "llama", UNEVEN | {"tie_word_embeddings": False, "dtype": "bfloat16"}),
        ("tied", "qwen2", UNEVEN | {"tie_word_embeddings": True}),
        ("experts", "mixtral", {}),
        ("transposed", "gpt2", {}),
        ("headless", "bert", {}),
        ("even", "llama", EVEN),
    ):
        build(family, **changes).save_pretrained(folder / name)
    AutoModelForSeq2SeqLM.from_config(
        AutoConfig.for_model("t5", **ENCODER_DECODERS["t5"] | {"num_decoder_layers": 2})
    ).save_pretrained(folder / "t5")
    headless = folder / "headless" / "model.safetensors"
    kept = {name: one for name, one in load_file(headless).items() if not name.startswith("classifier")}
    # On the first of two processes its rows are as many as those of three classes.
    save_file(
        kept | {"classifier.weight": torch.ones(4, 32), "classifier.bias": torch.ones(4)}, headless, {"format": "pt"}
    )
    write_model(shallow_model(), folder / "packed.gguf", "q8_0", "packed")
    forms = {
        "untied": "plain",
        "tied": "nf4",
        "experts": "plain",
        "transposed": "nf4",
        "t5": "plain",
        "packed.gguf": "plain",
    }
    sections = {name: ({"name": str(folder / name)}, form) for name, form in forms.items()}
    sections["t5"][0]["task"] = "sequence-to-sequence"
    sections["headless"] = {"name": str(folder / "headless")} | CLASSES, "plain"
    sections["drawn"] = {"name": str(folder / "tied"), "init": "random"}, "nf4"
    sections["packed"] = {"name": str(folder / "even")}, "nf4"
    sections["fp4"] = {"name": str(folder / "even")}, "fp4"
    sections["packed gguf"] = {"name": str(folder / "packed.gguf")}, "nf4"
    sections["even"] = {"name": str(folder / "even")}, "plain"
    sections["float32"] = {"name": str(folder / "untied"), "dtype": "float32"}, "plain"
    return sections


@pytest.fixture(scope="module")
def processes(cases, tmp_path_factory):
    """What each process found of each case."""
    folder = tmp_path_factory.mktemp("processes")
    started = [
        multiprocessing.get_context("fork").Process(target=act, args=(number, str(folder / "meeting"), cases, folder))
        for number in range(2)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    return [torch.load(folder / f"{number}.pt") for number in range(2)]


def test_the_parts_of_all_processes_are_what_one_process_loads(processes):
    wanted = ("equal", "fresh", "buffers", "tied", "packing", "divided")
    assert {
        (name, key) for found in processes for name, one in found.items() for key in wanted if not one[key]
    } == set()


def test_a_pass_gathers_what_it_computes_and_leaves_parts(processes):
    for found in processes:
        assert {name for name, one in found.items() if not one["logits"] or not one["parts_after"]} == set()
        assert {one["hooks"] for one in found.values()} == {0}


def test_each_process_has_half_of_the_bytes(processes):
    for name in processes[0]:
        own = [found[name]["own_bytes"] for found in processes]
        assert sum(own) == processes[0][name]["whole_bytes"], name
        assert max(own) < 0.56 * sum(own), name


def test_the_whole_base_is_on_no_process_while_it_loads_and_the_plan_says_what_is(processes, cases):
    limits = {"packed": 0.14, "fp4": 0.14, "drawn": 1.2}
    for name in ("even", "packed", "fp4", "packed.gguf", "packed gguf", "drawn"):
        section, form = cases[name]
        recipe = {
            "model": section,
            "method": METHODS[form],
            "data": {"train": "-"},
            "training": {"steps": 1, "learning_rate": 1e-3},
        }
        load = build_blueprint(Recipe.model_validate(recipe), torch.device("cpu")).load
        for found in processes:
            assert found[name]["peak_bytes"] == pytest.approx(load.divided(2), rel=0.02), name
            assert found[name]["peak_bytes"] < limits.get(name, 0.75) * load.plain, name
