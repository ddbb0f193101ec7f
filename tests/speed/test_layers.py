"""What the switches of layers do to whole models: which layers, what the report says, equal losses and gradients."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from peftlab.errors import UsageError
from peftlab.methods import METHODS
from peftlab.models.recompute import recompute_activations
from peftlab.recipe.schema import Recipe
from peftlab.recipe.speed import Speed
from peftlab.speed.apply import remove_speed_ups, speed_up
from peftlab.speed.feed_forward import GatedFeedForward
from peftlab.speed.norm import RMSNorm
from peftlab.speed.rotary import Rotation
from tests.sampling import diagonals
from tests.speed.layers import assert_equal

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 67, "pad_token_id": 0}
GATED = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
FAMILIES = {
    "llama": GATED,
    "qwen2": GATED,
    "gemma2": {**GATED, "head_dim": 8},
    "mixtral": {**GATED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "phi": {**SIZES, "intermediate_size": 48},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 67},
    "bert": {**SIZES, "intermediate_size": 48},
}
METHOD_FIELDS = {
    "full": {},
    "lora": {"rank": 4, "dropout": 0.1},
    "adapters": {"bottleneck": 8},
    "prefix": {"length": 3},
    "bitfit": {"add_missing": True},
}
LAYERS = ("linear", "feed_forward", "activation", "norm", "rotary")


def build(family: str) -> nn.Module:
    torch.manual_seed(0)
    auto = AutoModelForSequenceClassification if family == "bert" else AutoModelForCausalLM
    return auto.from_config(AutoConfig.for_model(family, **FAMILIES[family], initializer_range=0.3))


def make_recipe(switch: str = "auto", **switches: str) -> Recipe:
    speed = dict.fromkeys(Speed.model_fields, switch) | switches
    return Recipe.model_validate(
        {
            "model": {"name": "-"},
            "method": {"type": "lora"},
            "data": {"train": "-"},
            "training": {"steps": 1, "learning_rate": 1e-3, "speed": speed},
        }
    )


def moved(model: nn.Module) -> nn.Module:
    """Return the model with nothing that trains at zero, so that every gradient is one."""
    torch.manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def results(model: nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    model.zero_grad()
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 5:] = 0
    logits = model(torch.arange(14).view(2, 7), attention_mask=mask).logits
    (logits * torch.cos(torch.arange(logits.numel())).view(logits.shape)).sum().backward()
    return {"logits": logits.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("method", "family"), diagonals(METHOD_FIELDS, FAMILIES))
def test_every_method_and_family_has_the_gradients_of_the_plain_path_with_dropout(method, family):
    plain = moved(METHODS[method](**METHOD_FIELDS[method]).apply(build(family))).train()
    fast = copy.deepcopy(plain)
    names = dict(fast.named_modules()).keys(), fast.state_dict().keys()
    speed_up(fast, make_recipe())
    assert (dict(fast.named_modules()).keys(), fast.state_dict().keys()) == names
    assert_equal(results(plain), results(fast))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_recomputed_layers_have_the_gradients_of_the_plain_path(family):
    plain = moved(METHODS["lora"](rank=4, dropout=0.1).apply(build(family))).train()
    fast = copy.deepcopy(plain)
    recompute_activations(fast)
    speed_up(fast, make_recipe())
    assert_equal(results(plain), results(fast))


@pytest.mark.parametrize(
    ("family", "used"), [("llama", "linear, feed_forward, norm, rotary"), ("gpt2", "linear, activation")]
)
def test_the_report_says_what_is_used(family, used):
    recipe = make_recipe("off", **dict.fromkeys(LAYERS, "auto"))
    report = speed_up(METHODS["lora"](rank=4).apply(build(family)), recipe)
    assert f"speed-ups: {used};" in report.describe()


@pytest.mark.parametrize("types", ["float32", "float32 under autocast", "bfloat16 under autocast"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "olmo2"])
def test_every_layer_that_the_report_calls_used_is_computed_so(family, method, types, monkeypatch):
    """Trained weights are float32 whatever is computed in, so that layers get inputs of another type than theirs."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**GATED, "head_dim": 8}))
    model = METHODS[method](**METHOD_FIELDS[method]).apply(base.to(getattr(torch, types.split()[0]))).train()
    used = {one.name: one for one in speed_up(model, make_recipe()).switches if one.used}
    assert all(used[name].part == "" for name in ("norm", "rotary", "feed_forward"))
    computed = Counter[str]()
    for function in (RMSNorm, Rotation, GatedFeedForward):

        def count(*inputs, name=function.__name__, own=function.apply):
            computed[name] += 1
            return own(*inputs)

        monkeypatch.setattr(function, "apply", count)
    with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in types):
        model(torch.arange(14).view(2, 7))
    norms = sum(type(one).__name__.endswith("RMSNorm") for one in model.modules())
    assert computed == {"RMSNorm": norms, "Rotation": 2 * 2, "GatedFeedForward": 2}  # queries and keys of two layers


def test_layers_that_are_left_out_are_counted_with_their_reasons():
    model = get_peft_model(build("llama"), LoraConfig(r=2, target_modules="all-linear"))
    second = LoraConfig(r=2, target_modules=["k_proj"], use_dora=True)
    model.add_adapter("second", second)
    for layer in model.base_model.model.model.layers:
        layer.self_attn.k_proj.set_adapter("second")
    switches = {one.name: one for one in speed_up(model, make_recipe()).switches}
    name = "base_model.model.model.layers.0.self_attn.k_proj"
    assert switches["linear"].used
    assert switches["linear"].part == f"12 of 14 LoRA layers, not {name} and 1 more: Dora"
    assert switches["feed_forward"].part == ""


def test_dora_alone_is_declined_and_refused_if_it_must_be_on():
    model = METHODS["lora"](rank=2, dora=True, targets="attention").apply(build("llama"))
    switch = next(one for one in speed_up(model, make_recipe()).switches if one.name == "linear")
    assert not switch.used and switch.reason.startswith("0 of 8 LoRA layers, not ") and switch.reason.endswith(": Dora")
    with pytest.raises(UsageError, match=r"training.speed.linear: it is on, but 0 of 8 LoRA layers"):
        speed_up(model, make_recipe(linear="on"))


def test_what_is_off_is_the_models_own_again():
    model = METHODS["lora"](rank=4).apply(build("llama"))
    plain = {name: one.__dict__.keys() for name, one in model.named_modules()}
    speed_up(model, make_recipe())
    assert sum("forward" in one.__dict__ for one in model.modules()) == 14 + 2 + 5 + 2
    speed_up(model, make_recipe())
    assert sum("forward" in one.__dict__ for one in model.modules()) == 14 + 2 + 5 + 2
    speed_up(model, make_recipe(**dict.fromkeys(LAYERS, "off")))
    assert plain == {name: one.__dict__.keys() for name, one in model.named_modules()}
    speed_up(model, make_recipe())
    remove_speed_ups(model)
    assert plain == {name: one.__dict__.keys() for name, one in model.named_modules()}


def test_a_forward_that_someone_else_replaced_stays():
    model = METHODS["lora"](rank=4).apply(build("llama"))
    first = next(one for one in model.modules() if type(one).__name__ == "LlamaMLP")
    first.forward = theirs = lambda x: x
    report = speed_up(model, make_recipe())
    part = next(one.part for one in report.switches if one.name == "feed_forward")
    assert part.startswith("1 of 2 gated feed-forwards, not ") and part.endswith("its forward is replaced")
    remove_speed_ups(model)
    assert first.forward is theirs


def test_finding_what_a_module_computes_draws_no_random_numbers():
    model = METHODS["lora"](rank=4).apply(build("llama"))
    state = torch.get_rng_state()
    speed_up(model, make_recipe())
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_is_the_plain_path_to_the_last_bit():
    plain = moved(METHODS["lora"](rank=4).apply(build("llama"))).eval()
    fast = copy.deepcopy(plain)
    speed_up(fast, make_recipe())
    ids = torch.arange(14).view(2, 7)
    with torch.no_grad():
        assert torch.equal(fast(ids).logits, plain(ids).logits)


def test_a_model_that_is_merged_afterwards_is_plain():
    model = moved(METHODS["lora"](rank=4).apply(build("llama"))).eval()
    speed_up(model, make_recipe())
    merged = METHODS["lora"](rank=4).merge(model)
    remove_speed_ups(merged)
    assert not any("forward" in one.__dict__ for one in merged.modules())
    ids = torch.arange(14).view(2, 7)
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
