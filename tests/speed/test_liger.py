"""Liger's kernel for the loss: where it is used, what it is asked, and the real one under Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import types

import pytest
import torch
from torch import nn

from peftlab.losses import chunked, liger
from peftlab.losses.after_head import AfterHead, Operation
from peftlab.losses.liger import liger_total, prove, why_no_liger
from peftlab.losses.without_logits import without_logits
from peftlab.recipe.speed import Speed
from peftlab.speed.apply import speed_up
from peftlab.speed.loss import loss_of
from tests.speed.test_layers import make_recipe
from tests.speed.test_loss import CAUSAL, build, make_batch

CPU = torch.device("cpu")


class Kernel(nn.Module):
    """Liger's documented loss: weight, hidden states, targets, bias; the sum over positions."""

    wrong = 0.0

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        assert reduction == "sum"

    def forward(self, weight, hidden, targets, bias=None):
        assert weight.dtype == hidden.dtype and not weight.requires_grad
        logits = nn.functional.linear(hidden, weight, bias).float()
        return nn.functional.cross_entropy(logits, targets, reduction="sum") + self.wrong * hidden.float().sum()


@pytest.fixture
def installed(monkeypatch):
    """Put the documented loss in the library's place, and a CPU in CUDA's."""
    module = types.ModuleType("liger_kernel.transformers")
    module.LigerFusedLinearCrossEntropyLoss = Kernel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    monkeypatch.setattr(liger, "what_is_missing", lambda: None)
    prove.cache_clear()
    yield
    prove.cache_clear()


def frozen(family: str = "llama", **changes) -> nn.Module:
    model = build(family, **changes)
    model.lm_head.weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    return model


def gradients(model: nn.Module, total: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (total / 7).backward()
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def test_the_kernels_loss_and_gradients_are_those_of_all_logits(installed, monkeypatch):
    model, batch = frozen(), make_batch()
    wanted = CAUSAL.loss(model).total(model, batch)
    right = gradients(model, wanted)
    calls: list[torch.Tensor] = []
    monkeypatch.setattr(chunked, "why_no_liger", lambda head, after: None)
    monkeypatch.setattr(chunked, "liger_total", lambda *args: calls.append(args[0]) or liger_total(*args))
    loss = loss_of(CAUSAL, Speed(), model)
    found = loss.total(model, batch)
    slopes = gradients(model, found)
    assert len(calls) == 1
    torch.testing.assert_close(found, wanted)
    assert slopes.keys() == right.keys()
    for name, slope in slopes.items():
        torch.testing.assert_close(slope, right[name], rtol=1e-4, atol=1e-6)
    loss_of(CAUSAL, Speed(liger="off"), model).total(model, batch)
    loss.total(model, make_batch(positions=0))
    assert len(calls) == 1, "off, or no position: the own function"


def test_under_autocast_it_computes_in_that_type(installed):
    hidden, head = torch.randn(6, 8, requires_grad=True), nn.Linear(8, 11).requires_grad_(False)
    targets = torch.arange(6)
    with torch.autocast("cpu", torch.bfloat16):
        total = liger_total(hidden, head, targets)  # the kernel asserts that both types are one
        logits = head(hidden)
    wanted = nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
    assert total.dtype == torch.float32 and total.item() == pytest.approx(wanted.item(), rel=1e-3)
    total.backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.float32


def test_it_is_declined_with_the_reason():
    head, after = nn.Linear(4, 5), AfterHead()
    assert why_no_liger(head, after) == "it needs CUDA"
    (found,) = [one for one in speed_up(frozen(), make_recipe()).switches if one.name == "liger"]
    assert not found.used and found.reason == "it needs CUDA"


class OnCuda(nn.Linear):
    """A head that says that it is on CUDA."""

    @property
    def weight(self):
        weight = self._parameters["weight"]
        return types.SimpleNamespace(is_cuda=True, device=CPU, dtype=weight.dtype)


@pytest.mark.parametrize(
    ("trains", "after", "reason"),
    [
        (True, AfterHead(), "the output head trains"),
        (False, AfterHead((Operation(torch.tanh, (), {}),)), "the model changes its logits after the head"),
        (False, AfterHead((Operation(torch.Tensor.float, (), {}),)), None),
    ],
    ids=["trained", "capped", "cast"],
)
def test_heads_that_it_does_not_suit(installed, trains, after, reason):
    head = nn.Linear(4, 5).requires_grad_(trains)
    head.__class__ = OnCuda
    assert why_no_liger(head, after) == reason


def test_without_the_package_it_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    liger.what_is_missing.cache_clear()
    assert liger.what_is_missing() == "the package liger-kernel is not installed"
    liger.what_is_missing.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_proof_is_passed_by_the_documented_loss_and_not_by_another_gradient(installed, monkeypatch, dtype):
    assert prove(CPU, dtype) is None
    prove.cache_clear()
    monkeypatch.setattr(Kernel, "wrong", 0.3)
    assert "differs from torch's" in str(prove(CPU, dtype))


def test_a_kernel_that_fails_is_declined(installed, monkeypatch):
    monkeypatch.setattr(Kernel, "forward", lambda *inputs: 1 / 0)
    assert "its kernel fails (ZeroDivisionError" in str(prove(CPU, torch.float32))


def test_evaluation_never_asks_it(installed, monkeypatch):
    monkeypatch.setattr(chunked, "liger_total", None)
    model, batch = frozen(), make_batch()
    without_logits(CAUSAL.loss(model), model, liger=True).rows(model, batch, [4, 5])


REAL = """
import torch
from torch import nn
from peftlab.losses.liger import liger_total, prove
print(prove(torch.device("cpu"), torch.float32))
torch.manual_seed(0)
hidden, head, targets = torch.randn(12, 8), nn.Linear(8, 50).requires_grad_(False), torch.randint(50, (12,))
sides = []
for total in (liger_total, lambda h, head, t: nn.functional.cross_entropy(head(h), t, reduction="sum")):
    leaf = hidden.clone().requires_grad_()
    loss = total(leaf, head, targets)
    (loss / 3).backward()
    sides.append((loss.detach(), leaf.grad))
for ours, theirs in zip(*sides):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
print("equal")
"""


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="liger-kernel is not installed")
def test_the_real_kernel_under_tritons_interpreter_computes_torchs_loss():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", REAL], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["None", "equal"], done.stderr[-2000:]
