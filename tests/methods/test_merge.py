"""Merged models are plain transformers models with the same outputs; what they were merged from stays as it was."""

from __future__ import annotations

import pytest
import torch

from peftlab.errors import MethodError
from peftlab.methods import METHODS, Adapters, BitFit, Full, LoRA, Prefix, QLoRA
from peftlab.models.quantize import dequantize_, quantize_
from peftlab.parameters.trainable import named_parameters, trainable_parameters
from tests.methods.test_values import randomise
from tests.methods.tiny import head_names, tiny_batch, tiny_model

CLASSIFY = "sequence-classification"
UPDATES = {
    "plain": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "pissa": {"init": "pissa"},
    "biases and norms": {"bias": "all", "unfreeze": ("*norm*",)},
}


def trained(method, model, fresh=frozenset()):
    """Apply a method and give what trains random values, as training would."""
    model = method.apply(model, fresh).eval()
    randomise(model)
    return model


def assert_same_model(merged, original) -> None:
    """Both are the same transformers architecture: same class, same tensors' names and sizes."""
    assert type(merged) is type(original)
    sizes = {name: tensor.shape for name, tensor in merged.state_dict().items()}
    assert sizes == {name: tensor.shape for name, tensor in original.state_dict().items()}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**tiny_batch()).logits


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(("family", "task"), [("qwen2", "causal-lm"), ("gpt2", "causal-lm"), ("bert", CLASSIFY)])
def test_merged_lora_gives_the_unmerged_logits_to_rounding(family, task, update):
    settings = dict(UPDATES[update])
    if "unfreeze" in settings and family != "qwen2":
        settings["unfreeze"] = {"gpt2": ("ln_*",), "bert": ("LayerNorm",)}[family]
    base = tiny_model(family, task)
    model = trained(LoRA(rank=3, alpha=5, **settings), tiny_model(family, task), head_names(base))
    before = {name: parameter.clone() for name, parameter in named_parameters(model).items()}
    expected = logits(model)
    assert not torch.allclose(expected, logits(base), atol=1e-2)
    merged = LoRA(rank=3, alpha=5, **settings).merge(model)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)
    assert_same_model(merged, base)
    assert torch.equal(logits(model), expected)
    assert all(torch.equal(parameter, before[name]) for name, parameter in named_parameters(model).items())


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
@pytest.mark.parametrize(
    ("family", "sizes", "dora"),
    [
        ("qwen2", {}, False),
        ("bert", {}, False),
        # Rows of whole blocks: others bitsandbytes 0.50 unpacks wrongly on CPUs, and peft takes DoRA's norms from that.
        ("qwen2", {"hidden_size": 64, "intermediate_size": 128}, True),
        ("gpt2", {"n_embd": 64}, True),
        ("gpt2", {}, False),
    ],
)
def test_merged_qlora_is_plain_and_gives_the_unmerged_logits(family, sizes, dora, quantization):
    method = QLoRA(rank=3, alpha=5, quantization=quantization, dora=dora)
    task = CLASSIFY if family == "bert" else "causal-lm"
    base = tiny_model(family, task, **sizes)
    model = trained(method, quantize_(tiny_model(family, task, **sizes), quantization), head_names(base))
    expected = logits(model)
    merged = method.merge(model)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert_same_model(merged, base)
    assert torch.equal(logits(model), expected)
    assert all(parameter.dtype == torch.float32 for parameter in merged.parameters())


def test_merged_8_bit_qlora_contains_the_dequantised_weights_and_the_update():
    method = QLoRA(rank=3, alpha=6, quantization="int8")
    model = trained(method, quantize_(tiny_model("qwen2"), "int8"))
    weights, merged = named_parameters(model), named_parameters(method.merge(model))
    name = "model.layers.1.mlp.up_proj"
    packed = weights[f"{name}.weight"]
    stands_for = packed.data.float() * packed.SCB[:, None] / 127
    update = 2.0 * weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"]
    torch.testing.assert_close(merged[f"{name}.weight"], stands_for + update, rtol=1e-5, atol=1e-6)


def test_dequantised_weights_are_near_the_originals_in_their_type():
    original = tiny_model("gpt2").bfloat16()
    frozen = tiny_model("gpt2").bfloat16().requires_grad_(False)
    plain = dequantize_(quantize_(frozen, "nf4", compute_dtype=torch.float32))
    assert_same_model(plain, original)
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.bfloat16}
    for name, parameter in original.named_parameters():
        error = (plain.get_parameter(name).float() - parameter.float()).norm() / parameter.float().norm()
        assert error < 0.12, name


@pytest.mark.parametrize("method", [Full(layers=1), BitFit(add_missing=True)], ids=["full", "bitfit"])
def test_what_adds_no_modules_is_merged_already(method):
    model = trained(method, tiny_model("llama"))
    assert method.merge(model) is model and trainable_parameters(model)


@pytest.mark.parametrize("method", [Adapters(), Prefix(length=3)], ids=["adapters", "prefix"])
def test_what_cannot_be_merged_says_so(method):
    with pytest.raises(
        MethodError, match="cannot be merged: what it adds cannot be written as other weights of the base"
    ):
        method.merge(trained(method, tiny_model("llama")))


def test_every_method_says_whether_it_merges():
    assert {name for name, method in METHODS.items() if method.mergeable} == {"full", "lora", "qlora", "bitfit"}
