"""The own RMS norm against transformers' modules."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

from peftlab.speed.norm import RMSNorm, RMSNorms
from tests.speed.layers import assert_equal, change, results

WIDTH = 48


def norm(kind: Any = LlamaRMSNorm, dtype: torch.dtype = torch.float32) -> nn.Module:
    one: nn.Module = kind(WIDTH, 1e-5)
    nn.init.normal_(one.get_parameter("weight"), 0.5)
    return one.to(dtype)


def fast_copy(plain: nn.Module) -> nn.Module:
    found = copy.deepcopy(plain)
    change(RMSNorms(), found)
    return found


def used(layer: nn.Module, x: torch.Tensor) -> bool:
    return type(layer(x).grad_fn).__name__ == f"{RMSNorm.__name__}Backward"


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma2RMSNorm])
@pytest.mark.parametrize("size", [(2, 7, WIDTH), (5, WIDTH), (WIDTH,), (0, 3, WIDTH)])
@pytest.mark.parametrize("trains", [True, False])
def test_outputs_and_gradients_are_those_of_the_module(kind, size, trains):
    torch.manual_seed(0)
    plain, x = norm(kind).requires_grad_(trains), torch.randn(size) * 3
    fast = fast_copy(plain)
    assert used(fast, x.requires_grad_())
    assert_equal(results(plain, x), results(fast, x))


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma2RMSNorm])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_16_bits_differ_by_their_own_rounding(kind, autocast):
    torch.manual_seed(0)
    plain, x = norm(kind, torch.bfloat16), torch.randn(2, 7, WIDTH, dtype=torch.bfloat16)
    fast = fast_copy(plain)
    assert used(fast, x.requires_grad_())
    assert_equal(results(plain, x, autocast=autocast), results(fast, x, autocast=autocast), 0.01)


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma2RMSNorm, Olmo2RMSNorm, Gemma4RMSNorm])
@pytest.mark.parametrize("types", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_an_input_of_another_type_than_the_weight_differs_by_its_own_rounding(kind, types):
    """A trained weight is float32, and what a linear layer gives under autocast has 16 bits."""
    torch.manual_seed(0)
    of_x, of_weight = types
    plain, x = norm(kind, of_weight), torch.randn(2, 7, WIDTH).to(of_x)
    fast = fast_copy(plain)
    assert used(fast, x.requires_grad_())
    right, found = results(plain, x), results(fast, x)
    assert {name: one.dtype for name, one in right.items()} == {name: one.dtype for name, one in found.items()}
    assert_equal(right, found, 0.01)


@pytest.mark.parametrize("kind", [Olmo2RMSNorm, Gemma4RMSNorm])
def test_a_norm_that_multiplies_in_float32_rounds_once(kind):
    torch.manual_seed(0)
    plain, x = norm(kind, torch.bfloat16), torch.randn(40, WIDTH, dtype=torch.bfloat16)
    exact = copy.deepcopy(plain).double()(x.double())
    own, theirs = ((one(x) - exact).abs().mean() for one in (fast_copy(plain), plain))
    assert own <= 1.01 * theirs


class OneTypeRMSNorm(LlamaRMSNorm):
    """Takes inputs of its weight's type alone."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        assert hidden_states.dtype == self.weight.dtype
        return super().forward(hidden_states)


def test_a_norm_that_takes_one_type_is_the_modules_own_with_another():
    fast = fast_copy(norm(OneTypeRMSNorm))
    assert used(fast, torch.randn(2, WIDTH, requires_grad=True))
    with pytest.raises(AssertionError):
        fast(torch.randn(2, WIDTH, dtype=torch.bfloat16))


def test_an_input_that_is_not_contiguous_is_the_same():
    plain, x = norm(), torch.randn(WIDTH, 5, 2).permute(2, 1, 0)
    assert_equal(results(plain, x), results(fast_copy(plain), x))


def test_without_gradients_it_is_the_modules_own_forward():
    plain, x = norm(), torch.randn(2, WIDTH)
    with torch.no_grad():
        assert torch.equal(fast_copy(plain)(x), plain(x))


class HalfRMSNorm(LlamaRMSNorm):
    """Gives half of what a norm does."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return 0.5 * super().forward(hidden_states)


@pytest.mark.parametrize("one", [HalfRMSNorm(WIDTH), Qwen3NextRMSNormGated(WIDTH)])
def test_what_computes_something_else_stays(one):
    assert RMSNorms().why_not(one) == f"{type(one).__name__} computes something else"


def test_it_is_recognised_without_weights():
    with torch.device("meta"):
        one = norm(Gemma2RMSNorm)
        assert RMSNorms().why_not(one) is None
