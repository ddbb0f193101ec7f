"""The own rotation of queries and keys against transformers' functions and layers."""

from __future__ import annotations

import copy
import functools
import importlib

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from peftlab.speed import rotary
from peftlab.speed.rotary import Rotations, Rule, find_rule
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
    "olmo2": GATED,
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


def results(model: nn.Module, autocast: bool = False) -> dict[str, torch.Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(torch.arange(14).view(2, 7)).logits.float()
    (logits * torch.cos(torch.arange(logits.numel())).view(logits.shape)).sum().backward()
    return {"logits": logits.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def calls(monkeypatch):
    """The own rotations that were computed."""
    found, own = [], rotary.Rotation.apply
    monkeypatch.setattr(rotary.Rotation, "apply", lambda *args: found.append(1) or own(*args))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_the_plain_ones(family, calls):
    """GPT-NeoX rotates a quarter of each head."""
    plain = build(family).eval()
    fast = fast_copy(plain)
    calls.clear()  # finding out what a function does computes some
    found = results(fast)
    assert len(calls) == 4  # queries and keys of two layers
    assert_equal(results(plain), found)


@pytest.mark.parametrize("family", FAMILIES)
def test_trained_weights_under_autocast_are_rotated_as_exactly_as_by_the_model(family, calls):
    """Projections of float32 weights give 16 bits there, and cos and sin have the hidden states' float32."""
    plain = build(family).eval()
    fast = fast_copy(plain)
    wanted, theirs = results(plain), results(plain, autocast=True)
    calls.clear()
    own = results(fast, autocast=True)
    assert len(calls) == 4

    def distance(found: dict[str, torch.Tensor]) -> float:
        return sum(float((found[name] - one).norm() / one.norm()) for name, one in wanted.items() if one.any())

    assert distance(own) <= 1.2 * distance(theirs)


def rotary_function(family: str):
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}").apply_rotary_pos_emb


def test_what_the_functions_of_families_do_is_found():
    """As their code says: OLMo's gives the inputs' type, GPT-NeoX's passes on what cos is too narrow for."""
    assert find_rule(rotary_function("llama")) == Rule(keeps_type=False, passes_rest=False, takes_dimension=True)
    assert find_rule(rotary_function("olmo2")) == Rule(keeps_type=True, passes_rest=False, takes_dimension=True)
    assert find_rule(rotary_function("gpt_neox")) == Rule(keeps_type=False, passes_rest=True, takes_dimension=True)
    assert find_rule(rotary_function("cohere")) is None


@pytest.mark.parametrize(("family", "width", "dimension"), [("llama", 8, 1), ("llama", 8, 2), ("gpt_neox", 4, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_call_gives_what_the_function_gives(family, width, dimension, dtype, calls):
    heads_first = (2, 3, 5, 8) if dimension == 1 else (2, 5, 3, 8)
    torch.manual_seed(0)
    inputs = [torch.randn(heads_first).to(dtype) for _ in range(2)]
    cos, sin = torch.randn(2, 5, width), torch.randn(2, 5, width)
    plain = rotary_function(family)
    own = functools.partial(rotary._rotate, plain, find_rule(plain))
    sides: list[list[torch.Tensor]] = []
    calls.clear()
    for function in (plain, own):
        leaves = [one.clone().requires_grad_() for one in inputs]
        found = function(*leaves, cos, sin, unsqueeze_dim=dimension)
        sum((one * torch.cos(torch.arange(one.numel())).view(one.shape)).sum() for one in found).backward()
        sides.append([*found, *(one.grad for one in leaves)])
    assert len(calls) == 2
    for one, other in zip(*sides, strict=True):
        assert one.dtype == other.dtype
        assert (other - one).norm() <= (1e-6 if dtype == torch.float32 else 0.005) * one.norm()


@pytest.mark.parametrize(("interleaved", "reason"), [(True, "it rotates otherwise"), (False, None)])
def test_a_layer_that_rotates_by_another_function_of_its_file_stays(interleaved, reason):
    sizes = {**SIZES, "intermediate_size": 48, "q_lora_rank": 8, "kv_lora_rank": 8, "rope_interleave": interleaved}
    widths = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("deepseek_v3", **sizes, **widths))
    layers = [one for one in model.modules() if Rotations().covers(one)]
    assert [Rotations().why_not(one) for one in layers] == [reason] * 2


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
    rule = Rule(keeps_type=False, passes_rest=True, takes_dimension=True)
    assert rotary._rotate(plain, rule, q, cos=cos, sin=cos, unsqueeze_dim=2) == (q, None, 2)
    assert rotary._rotate(plain, rule, q, None, cos, cos) == (q, None, 1)
