"""The own rotation of queries and keys against transformers' functions and layers."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from peftlab.speed import rotary
from peftlab.speed.rotary import Rotations
from tests.speed.layers import assert_equal, change

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 67, "pad_token_id": 0}
GATED = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 48}
FAMILIES = {
    "llama": GATED,
    "qwen3": {**GATED, "head_dim": 16},
    "gemma2": {**GATED, "head_dim": 8},
    "phi": {**SIZES, "intermediate_size": 48},
    "phi3": GATED,
    "gpt_neox": {**SIZES, "intermediate_size": 48},
}


def build(family: str) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family], initializer_range=0.3))


def fast_copy(plain: nn.Module) -> nn.Module:
    found = copy.deepcopy(plain)
    layers = [one for one in found.modules() if Rotations().covers(one)]
    assert len(layers) == 2
    for one in layers:
        change(Rotations(), one)
    return found


def results(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    logits = model(torch.arange(14).view(2, 7)).logits
    (logits * torch.cos(torch.arange(logits.numel())).view(logits.shape)).sum().backward()
    return {"logits": logits.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_the_plain_ones(family, monkeypatch):
    plain, calls = build(family).eval(), []
    fast = fast_copy(plain)
    own = rotary.Rotation.apply
    monkeypatch.setattr(rotary.Rotation, "apply", lambda *args: calls.append(1) or own(*args))
    found = results(fast)
    assert len(calls) == (0 if family == "gpt_neox" else 4)  # queries and keys of two layers; a part of them is plain
    assert_equal(results(plain), found)


@pytest.mark.parametrize("family", ["cohere", "glm", "glm4", "gpt_oss"])
def test_a_rotation_that_is_another_stays(family):
    file = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    layer = next(
        one for name, one in vars(file).items() if name.lower().endswith("attention") and isinstance(one, type)
    )
    one = layer.__new__(layer)
    nn.Module.__init__(one)
    assert rotary.is_rotating(one)
    assert Rotations().why_not(one) == "it rotates otherwise"


def test_nothing_but_cos_and_sin_is_saved():
    q, cos, sin = torch.randn(2, 4, 5, 8, requires_grad=True), torch.randn(2, 1, 5, 8), torch.randn(2, 1, 5, 8)
    saved = rotary.Rotation.apply(q, cos, sin).grad_fn.saved_tensors
    assert [one.data_ptr() for one in saved] == [cos.data_ptr(), sin.data_ptr()]


def test_without_gradients_it_is_the_models_own_function():
    plain = build("llama").eval()
    with torch.no_grad():
        ids = torch.arange(14).view(2, 7)
        assert torch.equal(fast_copy(plain)(ids).logits, plain(ids).logits)


def test_a_restored_layer_is_plain():
    model = fast_copy(build("llama"))
    layers = [one for one in model.modules() if "forward" in one.__dict__]
    assert len(layers) == 2
    Rotations().remove(model)
    assert not any("forward" in one.__dict__ for one in model.modules())


def test_a_call_for_queries_alone_or_by_name_is_the_models_own():
    """Qwen4's indexer rotates its queries alone."""

    def plain(q, k=None, cos=None, sin=None, unsqueeze_dim=1):
        return q, k, unsqueeze_dim

    q, cos = torch.randn(2, 4, 5, 8), torch.randn(2, 5, 8)
    assert rotary._rotate(plain, q, cos=cos, sin=cos, unsqueeze_dim=2) == (q, None, 2)
    assert rotary._rotate(plain, q, None, cos, cos) == (q, None, 1)
