"""The loss without logits against torch's own in float64, where numbers are huge, tiny, infinite or missing."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from peftlab.losses.after_head import AfterHead, Operation
from peftlab.losses.head_cross_entropy import Head, HeadCrossEntropy, Tile, position_losses

OUTPUTS, WIDTH = 16, 8
WHOLE, DIVIDED = Tile(2, OUTPUTS), Tile(2, 5)
NOTHING = AfterHead()
CAP = AfterHead(
    (Operation(torch.div, (4.0,), {}), Operation(torch.tanh, (), {}), Operation(torch.mul, (4.0,), {})),
)


def ours(hidden, weight, bias, targets, tile, after=NOTHING, trained=True):
    """Return the loss and its gradients to the tensors that train."""
    inputs = [one.detach().clone().requires_grad_(bool(at == 0 or trained)) for at, one in enumerate((hidden, weight))]
    inputs += [] if bias is None else [bias.detach().clone().requires_grad_(trained)]
    total = HeadCrossEntropy.apply(*inputs, *([None] if bias is None else []), targets, after, tile)
    return total.detach(), torch.autograd.grad(total, [one for one in inputs if one.requires_grad])


def exact(hidden, weight, bias, targets, after=NOTHING):
    """Return the loss and all gradients, by torch in float64."""
    inputs = [one.detach().double().requires_grad_() for one in (hidden, weight, bias) if one is not None]
    logits = after(functional.linear(*inputs))
    total = functional.cross_entropy(logits, targets, reduction="sum")
    return total.detach(), torch.autograd.grad(total, inputs)


def error(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@pytest.fixture
def parts():
    torch.manual_seed(0)
    return torch.randn(5, WIDTH), torch.randn(OUTPUTS, WIDTH), torch.tensor([0, 7, 15, 3, 3])


def bias_of(value, *places):
    bias = torch.zeros(OUTPUTS)
    bias[list(places)] = value
    return bias


@pytest.mark.parametrize("tile", [WHOLE, DIVIDED], ids=str)
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("after", [AfterHead(), CAP], ids=["plain", "cap"])
def test_outputs_that_are_masked_by_minus_infinity_take_no_part(parts, tile, trained, after):
    hidden, weight, targets = parts
    bias = bias_of(-math.inf, 8, 9, 10, 11, 12, 13, 14)  # also all outputs of one tile
    total, found = ours(hidden, weight, bias, targets, tile, after, trained)
    wanted, gradients = exact(hidden, weight, bias, targets, after)
    assert total.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert all(error(one, other) < 1e-6 for one, other in zip(found, gradients, strict=False))


@pytest.mark.parametrize("tile", [WHOLE, DIVIDED], ids=str)
@pytest.mark.parametrize("trained", [True, False])
def test_a_target_that_is_the_only_output_left_has_neither_loss_nor_gradient(parts, tile, trained):
    hidden, weight, _ = parts
    bias = bias_of(-math.inf, *(one for one in range(OUTPUTS) if one != 3))
    total, found = ours(hidden, weight, bias, torch.full((5,), 3), tile, trained=trained)
    assert total == 0 and all(not one.any() for one in found)  # NaN is any


@pytest.mark.parametrize("tile", [WHOLE, DIVIDED], ids=str)
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(("value", "place"), [(math.inf, 3), (math.nan, 3), (math.inf, 12), (math.nan, 12)])
def test_a_logit_that_overflowed_or_is_no_number_gives_no_number(parts, tile, trained, value, place):
    hidden, weight, _ = parts
    bias, targets = bias_of(value, place), torch.full((5,), 3)
    total, found = ours(hidden, weight, bias, targets, tile, trained=trained)
    assert exact(hidden, weight, bias, targets)[0].isnan() and total.isnan()
    assert all(one.isnan().any() for one in found)
    losses, _ = position_losses(hidden, targets, Head(weight, bias, AfterHead()), tile, predicts=False)
    assert losses.isnan().all()


@pytest.mark.parametrize("tile", [WHOLE, DIVIDED], ids=str)
def test_a_target_that_is_no_output_gets_no_number(parts, tile):
    hidden, weight, _ = parts
    targets = torch.tensor([0, OUTPUTS, 1, -1, -100])
    losses, _ = position_losses(hidden, targets, Head(weight, None, AfterHead()), tile, predicts=False)
    assert losses.isnan().tolist() == [False, True, False, True, True]


@pytest.mark.parametrize("tile", [Tile(64, 512), Tile(64, 100)], ids=str)
def test_large_logits_that_differ_little_keep_their_difference(tile):
    """Of logits near 1000, a float32 number has 4 digits behind the point; their differences here are exact."""
    weight = torch.full((512, 1), 1000.0)
    weight[0], hidden, targets = 1012.0, torch.ones(4, 1), torch.zeros(4, dtype=torch.int64)
    total, _ = ours(hidden, weight, None, targets, tile)
    assert total.item() == pytest.approx(4 * math.log1p(511 * math.exp(-12)), rel=1e-6)


@pytest.mark.parametrize("trained", [True, False])
def test_float16_does_not_overflow_where_many_outputs_are_likely_alike(trained):
    """Σ exp(z − m)·W is 98,304, which float16 has not; divided by s it is 2."""
    torch.manual_seed(0)
    weight = (torch.randn(49152, 4) + 2).half()
    hidden, targets = torch.zeros(2, 4).half(), torch.tensor([0, 1])
    _, found = ours(hidden, weight, None, targets, Tile(512, 49152), trained=trained)
    assert error(found[0], exact(hidden, weight, None, targets)[1][0]) < 0.02


def test_what_weights_have_in_common_does_not_hide_their_differences_in_bfloat16():
    """The gradient has no part along what all weights share, and its rounding should have none."""
    torch.manual_seed(0)
    weight = (torch.randn(4096, 32) * 0.5 + 3).bfloat16()
    hidden, targets = (torch.randn(64, 32) / 16).bfloat16(), torch.randint(4096, (64,))
    _, (found,) = ours(hidden, weight, None, targets, Tile(64, 4096), trained=False)
    assert error(found, exact(hidden, weight, None, targets)[1][0]) < 3e-3


@pytest.mark.parametrize("tile", [Tile(64, 32), Tile(64, 10)], ids=str)
def test_a_scaler_multiplies_small_gradients_before_float16_rounds_them(tile):
    """σ(d) is 3.5e-6 and the weights 1/8: float16 has 4.4e-7 to 7 %, and 1.4e-8 of the other outputs not at all."""
    weight, targets = (torch.eye(32) / 8).half(), torch.arange(32)
    hidden = (128 * torch.eye(32)).half().requires_grad_()
    total = HeadCrossEntropy.apply(hidden, weight, None, targets, AfterHead(), tile)
    (found,) = torch.autograd.grad(total * 65536, hidden)
    assert found.dtype == torch.float16
    assert error(found.double() / 65536, exact(hidden, weight, None, targets)[1][0]) < 1e-3


def test_without_gradients_the_loss_is_the_same(parts):
    hidden, weight, targets = parts
    total = HeadCrossEntropy.apply(hidden, weight, None, targets, AfterHead(), DIVIDED)
    assert total.item() == pytest.approx(exact(hidden, weight, None, targets)[0].item(), rel=1e-6)
