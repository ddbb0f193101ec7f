"""Six configurations of each trainer, as their documentation has them: converted, checked, and planned at full size.

Trainable parameters are worked out by hand: a layer of LoRA has rank * (inputs + outputs) for each projection.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from peftlab.cli.app import run
from peftlab.conversion.convert import PEERS, convert
from peftlab.conversion.sheet import Fate
from peftlab.nested import flatten
from tests.conversion.shapes import write_shape

FOLDER = Path(__file__).parent / "configs"
# Inputs and outputs of a layer's projections, together: those of 3.1 8B are Mistral 7B's too.
LLAMA_8B = {"q": 8192, "k": 5120, "v": 5120, "o": 8192, "mlp": 3 * 18432}
LLAMA_1B = {"q": 4096, "k": 2560, "v": 2560, "o": 4096, "mlp": 3 * 10240}
QWEN = {"q": 1792, "k": 1024, "v": 1024, "o": 1792, "mlp": 3 * 5760}
# DoRA's magnitudes: one for each output.
QWEN_OUTPUTS = 24 * (2 * 896 + 2 * 128 + 2 * 4864 + 896)
LLAMA_1B_LAYER = 2 * 2048 * 2048 + 2 * 512 * 2048 + 3 * 2048 * 8192 + 2 * 2048


class Expected(NamedTuple):
    """A file's model, what trains there, how fast, and the keys that have no counterpart."""

    shape: str
    method: str
    trainable: int
    learning_rate: float
    missed: str = ""


PUBLIC = {
    "axolotl/llama-lora-1b.yaml": Expected(
        "llama-3.2-1b", "lora", 16 * 16 * sum(LLAMA_1B.values()), 2e-4, "evals_per_epoch saves_per_epoch special_tokens"
    ),
    "axolotl/mistral-qlora.yaml": Expected(
        "mistral-7b", "qlora", 32 * 32 * sum(LLAMA_8B.values()), 2e-4, "loss_watchdog_threshold loss_watchdog_patience"
    ),
    "axolotl/llama-full-8b.yaml": Expected("llama-3.1-8b", "full", 8_030_261_248, 2e-5, "saves_per_epoch"),
    "axolotl/qwen-dora-chat.yaml": Expected(
        "qwen2.5-0.5b", "lora", 8 * 24 * sum(QWEN.values()) + QWEN_OUTPUTS, 1e-4, "chat_template"
    ),
    "axolotl/llama-completion-8bit.yaml": Expected(
        "llama-3.1-8b", "qlora", 8 * 32 * (LLAMA_8B["q"] + LLAMA_8B["v"]), 2e-4, "evals_per_epoch"
    ),
    "axolotl/llama-own-prompt.yaml": Expected(
        "llama-3.2-1b", "lora", 4 * 16 * sum(LLAMA_1B.values()), 3e-4, "loraplus_lr_ratio datasets.type.no_input_format"
    ),
    "llama-factory/llama3_lora_sft.yaml": Expected(
        "llama-3.1-8b", "lora", 8 * 32 * sum(LLAMA_8B.values()), 1e-4, "dataset template max_samples"
    ),
    "llama-factory/mistral_qlora_bnb.yaml": Expected(
        "mistral-7b", "qlora", 64 * 32 * (LLAMA_8B["q"] + LLAMA_8B["v"]), 2e-4, "dataset template"
    ),
    "llama-factory/qwen_full_sft.yaml": Expected(
        "qwen2.5-0.5b", "full", 494_032_768, 1e-5, "dataset template save_strategy"
    ),
    "llama-factory/llama_freeze_sft.yaml": Expected(
        "llama-3.2-1b", "full", 2 * LLAMA_1B_LAYER, 5e-5, "dataset template"
    ),
    "llama-factory/llama_lora_pretrain.yaml": Expected(
        "llama-3.2-1b", "lora", 16 * 16 * (sum(LLAMA_1B.values()) - LLAMA_1B["mlp"]) + 128256 * 2048, 1e-4, "dataset"
    ),
    "llama-factory/qwen_dora_sft.yaml": Expected(
        "qwen2.5-0.5b", "lora", 8 * 24 * sum(QWEN.values()) + QWEN_OUTPUTS, 5e-5,
        "dataset template loraplus_lr_ratio neftune_noise_alpha lr_scheduler_type eval_strategy load_best_model_at_end",
    ),
    "trl/full.yaml": Expected("smollm2-135m", "full", 134_515_008, 2e-5, "assistant_only_loss eos_token"),
    "trl/full.sh": Expected("qwen2.5-0.5b", "full", 494_032_768, 2e-5),
    "trl/lora.sh": Expected(
        "qwen2.5-0.5b", "lora", 32 * 24 * (QWEN["q"] + QWEN["v"]), 2e-4, "assistant_only_loss eos_token"
    ),
    "trl/qlora.yaml": Expected(
        "mistral-7b", "qlora", 16 * 32 * sum(LLAMA_8B.values()), 2e-4, "assistant_only_loss eval_strategy"
    ),
    "trl/launched.sh": Expected("llama-3.1-8b", "lora", 16 * 32 * sum(LLAMA_8B.values()), 2e-4),
    "trl/completion.yaml": Expected(
        "llama-3.2-1b", "qlora", 4 * 16 * (LLAMA_1B["q"] + LLAMA_1B["o"]) + 128256 * 2048, 1e-4,
        "assistant_only_loss neftune_noise_alpha",
    ),
    "torchtune/llama3_2_1B_lora.yaml": Expected(
        "llama-3.2-1b", "lora", 64 * 16 * (sum(LLAMA_1B.values()) - LLAMA_1B["k"]), 3e-4,
        "tokenizer.max_seq_len dataset.train_on_input",
    ),
    "torchtune/llama3_1_8B_qlora.yaml": Expected("llama-3.1-8b", "qlora", 8 * 32 * sum(LLAMA_8B.values()), 3e-4),
    "torchtune/llama3_2_1B_full.yaml": Expected(
        "llama-3.2-1b", "full", 1_235_814_400, 2e-5, "dataset.train_on_input"
    ),
    "torchtune/qwen2_5_0_5B_lora.yaml": Expected(
        "qwen2.5-0.5b", "lora", 32 * 24 * (QWEN["q"] + QWEN["k"] + QWEN["v"]), 2e-3, "tokenizer.max_seq_len"
    ),
    "torchtune/mistral_7B_lora.yaml": Expected(
        "mistral-7b", "lora", 64 * 32 * (sum(LLAMA_8B.values()) - LLAMA_8B["o"]), 2e-5,
        "tokenizer.max_seq_len model.apply_lora_to_output",
    ),
    "torchtune/llama3_1_8B_dora.yaml": Expected(
        "llama-3.1-8b", "lora", 32 * (8 * (LLAMA_8B["q"] + LLAMA_8B["v"]) + 4096 + 1024), 1e-2
    ),
    "peft/lora.json": Expected("llama-3.1-8b", "lora", 16 * 32 * (sum(LLAMA_8B.values()) - LLAMA_8B["mlp"]), 0),
    "peft/all-linear.json": Expected("mistral-7b", "lora", 64 * 32 * sum(LLAMA_8B.values()), 0),
    "peft/dora.json": Expected(
        "qwen2.5-0.5b", "lora", 8 * 24 * sum(QWEN.values()) + QWEN_OUTPUTS, 0, "alpha_pattern"
    ),
    # The head: a dense layer and one for two classes, each with biases.
    "peft/classifier.json": Expected(
        "roberta-base", "lora", 8 * 12 * 2 * 1536 + 768 * 768 + 768 + 2 * 768 + 2, 0
    ),
    "peft/prompt.json": Expected("bloomz-560m", "prefix", 8 * 1024, 0, "prompt_tuning_init prompt_tuning_init_text"),
    "peft/prefix.json": Expected("gpt2-medium", "prefix", 2 * 24 * 1024 * 20, 0),
}  # fmt: skip
# What a file of PEFT does not say, and the rows of the classifier, of which only the classes matter here.
UNSAID = ["data.train=rows.jsonl", "training.steps=10", "training.learning_rate=1e-3"]


def test_each_trainer_has_six_files():
    assert sorted(PUBLIC) == sorted(f"{path.parent.name}/{path.name}" for path in FOLDER.glob("*/*"))
    assert {peer: sum(name.startswith(f"{peer}/") for name in PUBLIC) for peer in PEERS} == dict.fromkeys(PEERS, 6)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_configuration_becomes_a_recipe_that_check_accepts(name):
    expected, made = PUBLIC[name], convert(FOLDER / name)
    fields = flatten(made.recipe)
    assert made.peer.name == name.partition("/")[0]
    assert fields["method.type"] == expected.method
    assert fields.get("training.learning_rate", 0) == expected.learning_rate
    missed = {line.key for line in made.lines if line.fate is Fate.NO_COUNTERPART}
    assert missed == set(expected.missed.split())
    assert [line.key for line in made.lines if line.fate is Fate.UNKNOWN] == []
    lacking = {problem.path for problem in made.problems}
    assert lacking == set() if expected.learning_rate else lacking >= {"data", "training"}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_configuration_is_planned_at_its_own_size(name, tmp_path, capfd, monkeypatch):
    expected = PUBLIC[name]
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps({"text": "a", "label": one}) + "\n" for one in ("no", "yes")))
    overrides = [f"model.name={write_shape(tmp_path, expected.shape)}", "model.revision=null"]
    overrides += [] if expected.learning_rate else UNSAID
    assert (
        run(["plan", "--from", str(FOLDER / name), *overrides, "--device", "cuda", "--memory", "H100", "--json"]) == 0
    )
    planned = json.loads(capfd.readouterr().out)
    # CUDA rounds each tensor up to 512 bytes.
    assert planned["categories"]["trainable_weights"] == pytest.approx(4 * expected.trainable, rel=2e-4)
