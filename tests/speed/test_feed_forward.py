"""The own function of a gated feed-forward against transformers' modules, on equal weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GemmaConfig, LlamaConfig
from transformers.models.gemma.modeling_gemma import GemmaMLP
from transformers.models.llama.modeling_llama import LlamaMLP

from peftlab.models.quantize import quantize_
from peftlab.speed import feed_forward
from peftlab.speed.feed_forward import FeedForwards, GatedFeedForward
from peftlab.speed.lora_linear import LoraLinears
from tests.speed.layers import Holder, assert_equal, change, function_of, halve, results

WIDTH, INNER = 64, 128
SIZES = {"hidden_size": WIDTH, "intermediate_size": INNER}
TARGETS = {
    "all": ["gate_proj", "up_proj", "down_proj"],
    "gate": ["gate_proj"],
    "up": ["up_proj"],
    "down": ["down_proj"],
    "gate and down": ["gate_proj", "down_proj"],
}


def module(activation: str = "silu", bias: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return LlamaMLP(LlamaConfig(hidden_act=activation, mlp_bias=bias, **SIZES)).train()


def adapted(targets: str = "all", base: str = "plain", bias: bool = False, **config: Any) -> nn.Module:
    """Return a feed-forward with LoRA on some of its layers, all matrices different from zero."""
    holder = Holder(module(bias=bias))
    if base != "plain":
        quantize_(holder, base, compute_dtype=torch.float32)
    model: Any = get_peft_model(holder, LoraConfig(r=4, target_modules=TARGETS[targets], **config))  # type: ignore[arg-type]
    found: nn.Module = model.base_model.model.layer
    for name, parameter in found.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return found.train()


def fast_copy(plain: nn.Module) -> nn.Module:
    found = copy.deepcopy(plain)
    change(FeedForwards(), found)
    return found


def used(layer: nn.Module, x: torch.Tensor) -> bool:
    return type(function_of(layer(x))).__name__ == f"{GatedFeedForward.__name__}Backward"


def tokens(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(2)).to(dtype)


@pytest.mark.parametrize("base", ["plain", "nf4"])
@pytest.mark.parametrize("targets", TARGETS)
def test_outputs_and_gradients_are_those_of_the_modules(targets, base):
    plain = adapted(targets, base)
    fast = fast_copy(plain)
    assert used(fast, tokens().requires_grad_())
    assert_equal(results(plain, tokens()), results(fast, tokens()))


@pytest.mark.parametrize("activation", ["silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast"])
def test_each_activation_is_recognised_by_what_it_computes(activation):
    plain = module(activation)
    assert_equal(results(plain, tokens()), results(fast_copy(plain), tokens()))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_without_lora_frozen_or_trained_it_is_the_same(frozen, bias):
    plain = module(bias=bias).requires_grad_(not frozen)
    fast = fast_copy(plain)
    assert used(fast, tokens().requires_grad_())
    assert_equal(results(plain, tokens()), results(fast, tokens()))


def test_biases_alone_train_as_with_bitfit():
    plain = module(bias=True)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    assert_equal(results(plain, tokens()), results(fast_copy(plain), tokens()))


def test_dropout_of_all_three_drops_what_peft_drops_from_the_same_seed():
    plain = adapted(lora_dropout=0.2)
    assert_equal(results(plain, tokens()), results(fast_copy(plain), tokens()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base", ["plain", "nf4"])
def test_autocast_differs_by_its_own_rounding(dtype, base):
    plain = adapted(base=base)
    for name, parameter in plain.named_parameters():
        if "lora_" not in name and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    fast, x = fast_copy(plain), tokens(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert used(fast, tokens(dtype).requires_grad_())
    kept = results(plain, x, autocast=torch.bfloat16), results(fast, x, autocast=torch.bfloat16)
    assert_equal(*kept, 0.015)


def test_an_input_without_gradient_gets_none():
    plain = adapted()
    fast = fast_copy(plain)
    for layer in (plain, fast):
        layer(tokens()).square().sum().backward()
    wanted, found = ({n: p.grad for n, p in one.named_parameters() if p.grad is not None} for one in (plain, fast))
    assert_equal(wanted, found)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(0, 7, WIDTH), (5, WIDTH), (WIDTH,)])
def test_rows_of_any_number_of_dimensions(size):
    plain, x = adapted(), torch.randn(size)
    assert_equal(results(plain, x), results(fast_copy(plain), x))


def test_two_uses_in_one_graph_add_their_gradients():
    plain, x = adapted(), tokens()
    assert_equal(results(plain, x, 2 * x), results(fast_copy(plain), x, 2 * x))


def test_it_saves_its_input_and_two_inner_rows_and_without_lora_those_two_alone():
    def saved_bytes(layer: nn.Module) -> int:
        own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
        found: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda one: one):
            kept = layer(x)
        del kept
        return sum(size for address, size in found.items() if address not in own)

    x = tokens().requires_grad_()
    rows = 2 * 7 * 4
    assert saved_bytes(fast_copy(module().requires_grad_(False))) == rows * 2 * INNER
    assert saved_bytes(fast_copy(adapted())) == rows * (2 * INNER + WIDTH + 3 * 4)


def test_layers_inside_that_are_computed_by_their_own_function_are_not_called():
    plain = adapted()
    fast = fast_copy(plain)
    for name in feed_forward.PARTS:
        change(LoraLinears(), fast.get_submodule(name))
    assert used(fast, tokens().requires_grad_())
    assert_equal(results(plain, tokens()), results(fast, tokens()))


@pytest.mark.parametrize("name", ["gate_proj", "up_proj", "down_proj", "act_fn", "down_proj.base_layer"])
def test_a_hook_inside_is_called(name):
    fast, seen = fast_copy(adapted()), []
    fast.get_submodule(name).register_forward_hook(lambda *_: seen.append(name))
    assert not used(fast, tokens().requires_grad_())
    assert seen == [name]


@pytest.mark.parametrize("name", ["gate_proj", "up_proj", "down_proj", "act_fn", "down_proj.base_layer"])
def test_a_forward_that_someone_else_put_inside_is_called(name):
    plain = adapted()
    fast = fast_copy(plain)
    for one in (plain, fast):
        halve(one, name)
    assert not used(fast, tokens().requires_grad_())
    assert_equal(results(plain, tokens()), results(fast, tokens()))


def test_without_gradients_it_is_the_modules_own_forward():
    plain = adapted()
    fast = fast_copy(plain)
    with torch.no_grad():
        assert torch.equal(fast(tokens()), plain(tokens()))


class Normed(LlamaMLP):
    """Normalises between the activation and down, as BitNet does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(inner / inner.norm(dim=-1, keepdim=True))


class Doubled(LlamaMLP):
    """Adds 1 to what up gives, as gpt-oss does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * (self.up_proj(x) + 1))


class Dropping(LlamaMLP):
    """Drops at random in training, but not in the evaluation in which it is recognised."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(nn.functional.dropout(inner, 0.5, self.training))


class Capped(LlamaMLP):
    """Clamps large activations alone, as some mixtures do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x).clamp(max=7.0)) * self.up_proj(x).clamp(-7.0, 7.0))


@pytest.mark.parametrize("kind", [Normed, Doubled, Dropping, Capped])
@pytest.mark.parametrize("training", [True, False])
def test_a_module_that_computes_something_else_stays_as_it_is(kind, training):
    torch.manual_seed(0)
    one = kind(LlamaConfig(**SIZES)).train(training)
    state = torch.get_rng_state()
    assert FeedForwards().why_not(one) == f"{kind.__name__} computes something else"
    assert torch.equal(torch.get_rng_state(), state)
    assert "forward" not in one.__dict__


def test_other_activations_stay_as_they_are():
    assert FeedForwards().why_not(module("relu")) == "LlamaMLP computes something else"


def test_a_layer_in_8_bits_is_the_reason_why_not():
    holder = quantize_(Holder(module()), "int8", compute_dtype=torch.float32)
    assert FeedForwards().why_not(holder.layer) == "gate_proj: a EightBitLinear"  # type: ignore[arg-type]


def test_it_is_recognised_without_weights():
    with torch.device("meta"):
        one = GemmaMLP(GemmaConfig(hidden_act="gelu_pytorch_tanh", **SIZES))
        change(FeedForwards(), one)
    assert one(torch.empty(2, WIDTH, device="meta", requires_grad=True)).shape == (2, WIDTH)


def test_a_restored_module_is_plain():
    fast = fast_copy(adapted())
    FeedForwards().remove(fast)
    assert not used(fast, tokens().requires_grad_())
    assert fast.__dict__.keys() == adapted().__dict__.keys()
