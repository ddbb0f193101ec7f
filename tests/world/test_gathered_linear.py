"""Dense layers whose weights are freed after the forward pass: the results of layers that keep theirs."""

from __future__ import annotations

import bitsandbytes
import pytest
import torch
from torch import nn
from torch.nn import functional

from peftlab.models.quantize import make_quantizer
from peftlab.models.quantized_layers import GatheredFourBit
from peftlab.world.gathered_linear import gathered_linear, gathered_linears, plain_linear


def values(*shape: int, trains: bool = True) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_(trains)


def results(compute, inputs, weight, bias, precision) -> list[torch.Tensor | None]:
    """Return the output and all gradients."""
    tensors = [one for one in (inputs, weight, bias) if one is not None]
    for one in tensors:
        one.grad = None
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        output = compute(inputs, weight, bias)
    output.float().square().sum().backward()
    return [output.detach(), *(one.grad for one in tensors)]


@pytest.mark.parametrize("rows", [(5,), (2, 5)], ids=["rows", "rows of rows"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=["float32", "autocast"])
def test_outputs_and_gradients_are_those_of_torchs_own_layer(rows, biased, trains, precision):
    tensors = values(*rows, 4), values(3, 4, trains=trains), values(3) if biased else None
    ours, theirs = (results(one, *tensors, precision) for one in (gathered_linear, plain_linear))
    assert ours[0].dtype == theirs[0].dtype == (precision or torch.float32)
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-2 if precision else 1e-6, atol=1e-2 if precision else 1e-6)


@pytest.mark.parametrize("trains", [False, True])
def test_between_the_passes_a_weights_memory_is_free_and_its_gathered_values_count(trains):
    """As DeepSpeed frees and gathers: the parameter's data are replaced."""
    inputs, weight = values(5, 4), nn.Parameter(values(3, 4, trains=False).clone(), requires_grad=trains)
    output = gathered_linear(inputs, weight)
    kept = weight.data.clone()
    freed = torch.UntypedStorage._weak_ref(weight.untyped_storage())
    weight.data = torch.empty(0)
    assert torch.UntypedStorage._expired(freed), "nothing else has the memory"
    torch.UntypedStorage._free_weak_ref(freed)
    weight.data = kept * 2
    output.sum().backward()
    assert torch.equal(inputs.grad, torch.ones(5, 3) @ (kept * 2))
    assert (weight.grad is not None) is trains


def test_the_inputs_of_a_frozen_weight_are_not_saved():
    frozen, trained = (gathered_linear(values(5, 4), values(3, 4, trains=trains)) for trains in (False, True))
    assert [one is None for one in frozen.grad_fn.saved_tensors] == [True, False]
    assert [one is None for one in trained.grad_fn.saved_tensors] == [False, False]


def test_torchs_own_layer_is_there_again_after_the_context():
    with gathered_linears():
        assert functional.linear is gathered_linear
    assert functional.linear is plain_linear


@pytest.mark.parametrize("double", [False, True])
def test_a_4_bit_weights_memory_is_free_between_the_passes_and_results_are_bitsandbytes(double):
    layer = make_quantizer("nf4", double, torch.float32, "cpu").quantized(nn.Linear(64, 8))
    inputs, packing = values(5, 64), layer.packing
    wanted = bitsandbytes.matmul_4bit(inputs, layer.weight, bias=layer.bias, quant_state=packing)
    (of_inputs,) = torch.autograd.grad(wanted.square().sum(), inputs)
    weight = nn.Parameter(layer.weight.data.clone(), requires_grad=False)
    output = GatheredFourBit.apply(inputs, weight, layer.bias, packing)
    assert torch.equal(output, wanted)
    kept = weight.data.clone()
    freed = torch.UntypedStorage._weak_ref(weight.untyped_storage())
    weight.data = torch.empty(0, dtype=kept.dtype)
    assert torch.UntypedStorage._expired(freed), "nothing else has the memory"
    torch.UntypedStorage._free_weak_ref(freed)
    weight.data = kept
    torch.testing.assert_close(torch.autograd.grad(output.square().sum(), inputs)[0], of_inputs)


def test_arguments_may_be_named_as_those_of_torch():
    """peft 0.21 names them where new tokens are added to a head."""
    given = {"input": values(2, 3), "weight": values(4, 3), "bias": values(4)}
    assert torch.equal(gathered_linear(**given), plain_linear(**given))
