"""Paged optimisers on the CPU, with stand-ins for the pages that only CUDA has: each state is paged once, for good."""

from __future__ import annotations

from pathlib import Path

import bitsandbytes
import pytest
import torch
from bitsandbytes.optim.optimizer import Optimizer8bit
from torch import nn

from peftlab.checkpoint.tensors import load_state, save_state
from peftlab.optimizers import AdamW
from peftlab.optimizers.adamw import SMALLEST_PAGED

LARGE, SMALL = 2 * SMALLEST_PAGED, 1000


@pytest.fixture
def pages(monkeypatch) -> list[torch.Tensor]:
    """The pages that bitsandbytes asked for, in their order; none is ever freed."""
    made: list[torch.Tensor] = []
    plain = Optimizer8bit.get_state_buffer

    def get_state_buffer(self, parameter, dtype=torch.float32):
        buffer = plain(self, parameter, dtype)
        if self.is_paged and parameter.numel() >= SMALLEST_PAGED:
            made.append(buffer)
        return buffer

    monkeypatch.setattr(Optimizer8bit, "get_state_buffer", get_state_buffer)
    return made


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(size)) for size in (LARGE, SMALL)]


def build(trained: list[nn.Parameter], bits: int = 32) -> torch.optim.Optimizer:
    settings = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}
    return AdamW(bits=bits, paged=True).build_quantised([{"params": trained}], settings)


def step(optimizer: torch.optim.Optimizer, gradient: float) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()


def is_among(tensor: torch.Tensor, pages: list[torch.Tensor]) -> bool:
    return any(tensor is page for page in pages)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("bits", [32, 8])
def test_a_trial_steps_pages_are_the_runs(pages, bits):
    """Oracle: an optimiser that never had a trial moves the weights equally."""
    trained, others = parameters(), parameters()
    trial = build(trained, bits)
    step(trial, 0.0)
    assert len(pages) == 2
    optimizer = build(trained, bits)
    AdamW(bits=bits, paged=True).reuse(optimizer, trial)
    assert not trial.state and optimizer.state[trained[0]]["step"] == 0
    alone = build(others, bits)
    for gradient in (0.5, -0.25):
        step(optimizer, gradient)
        step(alone, gradient)
    assert all(torch.equal(one, other) for one, other in zip(trained, others, strict=True))
    assert len(pages) == 4, "two for each of the two optimisers that trained"
    assert is_among(optimizer.state[trained[0]]["state1"], pages[:2])


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("tried", [True, False], ids=["after a trial", "at once"])
def test_loaded_states_are_in_pages_and_train_on_equally(tmp_path: Path, pages, bits, tried):
    trained = parameters()
    straight = build(trained, bits)
    step(straight, 0.5)
    save_state(tmp_path, "state", straight.state_dict())
    weights = [one.detach().clone() for one in trained]
    pages.clear()
    resumed_parameters = [nn.Parameter(weight) for weight in weights]
    resumed = build(resumed_parameters, bits)
    if tried:
        step(resumed, 0.0)
        for one, weight in zip(resumed_parameters, [w.detach() for w in trained], strict=True):
            one.data.copy_(weight)
    resumed.load_state_dict(load_state(tmp_path, "state"))
    assert len(pages) == 2
    for name in ("state1", "state2"):
        assert is_among(resumed.state[resumed_parameters[0]][name], pages)
        assert torch.equal(resumed.state[resumed_parameters[0]][name], straight.state[trained[0]][name])
    step(straight, -0.25)
    step(resumed, -0.25)
    assert all(torch.equal(one, other) for one, other in zip(trained, resumed_parameters, strict=True))


def test_bitsandbytes_own_loading_would_not_page(pages):
    """The library's behaviour that makes this necessary; where it changes, `paging.py` may go."""
    trained = parameters()
    optimizer = bitsandbytes.optim.AdamW([{"params": trained}], lr=0.1)
    optimizer.is_paged = True
    state = {"state1": torch.ones(LARGE), "state2": torch.ones(LARGE), "step": 1}
    optimizer.load_state_dict({"state": {0: state}, "param_groups": optimizer.state_dict()["param_groups"]})
    assert not pages
