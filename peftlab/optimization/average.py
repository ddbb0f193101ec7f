"""`training.average.ema`: an exponential moving average of what trains, a ← decay·a + (1 − decay)·w after each step.

It is part of the optimiser's state, so that checkpoints, exact resuming and memory plans contain it as they contain
the moments. As in `torch.optim.swa_utils`, it begins with the weights after the first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

AVERAGE = "average"


def keep_average(optimizer: torch.optim.Optimizer, decay: float) -> torch.optim.Optimizer:
    """Return `optimizer`, whose steps from now on also update the average of its parameters, in float32."""
    update = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def average(stepped: torch.optim.Optimizer, *_: object) -> None:
        pairs = list(averages(stepped))
        if pairs:
            update([average for _, average in pairs], [weight.detach() for weight, _ in pairs], len(pairs))
        known = {id(weight) for weight, _ in pairs}
        for weight in parameters_of(stepped):
            # One without a gradient has no state yet, and optimisers take any entry for a state that is whole.
            if weight.grad is not None and id(weight) not in known:
                stepped.state[weight][AVERAGE] = weight.detach().clone()

    optimizer.register_step_post_hook(average)
    return optimizer


def parameters_of(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    return (weight for group in optimizer.param_groups for weight in group["params"])


def averages(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each parameter that has an average, and the average."""
    for weight in parameters_of(optimizer):
        if AVERAGE in (state := optimizer.state.get(weight, {})):
            yield weight, state[AVERAGE]


@torch.no_grad()
def take_average(optimizer: torch.optim.Optimizer) -> None:
    """Set every parameter to its average, where it has one."""
    for weight, average in averages(optimizer):
        weight.copy_(average)


@contextmanager
def averaged(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """While the context is open, parameters and averages have changed places."""
    _exchange(optimizer)
    try:
        yield
    finally:
        _exchange(optimizer)


@torch.no_grad()
def _exchange(optimizer: torch.optim.Optimizer) -> None:
    for weight, average in averages(optimizer):
        kept = weight.clone()
        weight.copy_(average)
        average.copy_(kept)


def steps_in_mean(step: int, every: int, count: int) -> list[int]:
    """Return the `count` latest steps up to `step`, itself one, whose weights a mean of checkpoints is made of.

    The others are those with a checkpoint in every run: a stop saves one more, which another run does not have.
    """
    return sorted([step, *range((step - 1) // every * every, 0, -every)][:count])


def mean_of(states: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of several states of the same names, of which only two are in memory at a time."""
    mean: dict[str, Tensor] = {}
    for number, state in enumerate(states):
        for name, tensor in state.items():
            mean[name] = tensor.clone() if number == 0 else mean[name] + (tensor - mean[name]) / (number + 1)
    return mean
