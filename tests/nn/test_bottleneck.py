"""The bottleneck and the modules that place it, against hand-computed values."""

import copy

import pytest
import torch
from torch import nn

from peftlab.errors import MethodError
from peftlab.nn.bottleneck import Adapted, Bottleneck, insert_bottleneck

FORMULAS = {
    "relu": lambda z: z.clamp(min=0),
    "gelu": lambda z: 0.5 * z * (1 + torch.erf(z / 2**0.5)),
    "silu": lambda z: z / (1 + torch.exp(-z)),
    "tanh": lambda z: (z.exp() - (-z).exp()) / (z.exp() + (-z).exp()),
}


def filled(bottleneck: Bottleneck) -> Bottleneck:
    with torch.no_grad():
        for parameter in bottleneck.parameters():
            parameter.normal_(std=0.5)
    return bottleneck


@pytest.mark.parametrize("activation", FORMULAS)
def test_output_is_the_formula(activation):
    b = filled(Bottleneck(6, 3, activation))
    x = torch.randn(2, 5, 6)
    inner = FORMULAS[activation](x @ b.down.weight.T + b.down.bias)
    torch.testing.assert_close(b(x), inner @ b.up.weight.T + b.up.bias)


def test_zero_start_adds_exactly_nothing():
    assert torch.equal(Bottleneck(6, 3)(torch.randn(4, 6)), torch.zeros(4, 6))


def test_near_identity_start_is_small_but_not_zero():
    torch.manual_seed(0)
    bottleneck = Bottleneck(64, 16, init="near-identity")
    assert bottleneck.up.weight.std().item() == pytest.approx(1e-3, rel=0.1)
    assert 0 < bottleneck(torch.randn(8, 64)).abs().max() < 0.05


def test_half_precision_inputs_keep_their_type_and_float32_weights_compute():
    b = filled(Bottleneck(6, 3))
    x = torch.randn(4, 6, dtype=torch.bfloat16)
    assert b(x).dtype == torch.bfloat16
    assert torch.equal(b(x), b(x.float()).bfloat16())


def test_autocast_decides_the_type_of_computation():
    b = filled(Bottleneck(6, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert b(torch.randn(4, 6)).dtype == torch.bfloat16


def test_parameter_count_is_the_papers():
    d, r = 96, 7
    assert sum(p.numel() for p in Bottleneck(d, r).parameters()) == 2 * d * r + r + d


def test_first_element_of_a_tuple_is_adapted():
    class Pair(nn.Module):
        def forward(self, x):
            return x, "kept"

    b = filled(Bottleneck(6, 3))
    x = torch.randn(4, 6)
    output, kept = Adapted(Pair(), b)(x)
    torch.testing.assert_close(output, x + b(x))
    assert kept == "kept"


@pytest.fixture
def feed_forward():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))


def test_parallel_reads_the_input_of_its_entry(feed_forward):
    x, plain, b = torch.randn(4, 6), copy.deepcopy(feed_forward), filled(Bottleneck(6, 3))
    insert_bottleneck(feed_forward, "2", "0", lambda: b)
    torch.testing.assert_close(feed_forward(x), plain(x) + b(x))


def test_copied_parallel_adapter_uses_its_own_weights(feed_forward):
    insert_bottleneck(feed_forward, "2", "0", lambda: filled(Bottleneck(6, 3)))
    x, copied = torch.randn(4, 6), copy.deepcopy(feed_forward)
    before = feed_forward(x)
    with torch.no_grad():
        copied.get_submodule("2").adapter.up.bias.add_(1.0)
    torch.testing.assert_close(copied(x), before + 1.0)
    assert torch.equal(feed_forward(x), before)


def test_a_list_of_modules_cannot_be_adapted():
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(6, 6)])
    with pytest.raises(MethodError, match="layers is a list of modules"):
        insert_bottleneck(model, "layers", None, lambda: Bottleneck(6, 3))
