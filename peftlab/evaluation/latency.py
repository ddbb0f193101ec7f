"""Seconds of one forward pass of several models, taken in turns so that what else the machine does falls on all."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import ceil, floor, sqrt
from statistics import median

import torch
from torch import nn

from peftlab.evaluation.generate import evaluation_mode
from peftlab.world.hardware import synchronize

WARM_UP_ROUNDS = 3
ROUNDS = 41
# A slow model gets fewer rounds, and so do models whose ratios are known well enough, though never fewer than this.
LEAST_ROUNDS = 11
LONGEST_SECONDS = 30.0
PRECISION = 0.02
"""Half of the interval of a median ratio, as a part of it, at which more rounds tell nothing new."""


def measure_latency(
    models: Mapping[str, nn.Module],
    batch: Mapping[str, torch.Tensor],
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, list[float]]:
    """Return the seconds of forward passes of `batch` through each of `models`, which keep their modes.

    One number a round: in every round each model passes once, another one first each time, after `WARM_UP_ROUNDS`
    that do not count. There are rounds until the ratios to the first model are known within `PRECISION`.
    """
    names = list(models)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with contextlib.ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(autocast())
        for _ in range(WARM_UP_ROUNDS):
            for name in names:
                time_pass(models[name], batch, device)
        started = time.perf_counter()
        for turn in range(ROUNDS):
            late = time.perf_counter() - started > LONGEST_SECONDS
            if turn >= LEAST_ROUNDS and (late or is_settled(seconds[names[0]], [seconds[one] for one in names[1:]])):
                break
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                seconds[name].append(time_pass(models[name], batch, device))
    return seconds


def is_settled(base: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    """Return whether the 95 % interval of each model's median ratio to `base` is within `PRECISION` of it.

    The interval is between two of the ratios themselves, by their order, whatever their distribution. False before
    there are ratios enough for one.
    """
    reach = 0.98 * sqrt(len(base))  # of the ranks around the middle one
    low, high = floor(len(base) / 2 - reach), ceil(len(base) / 2 + reach)
    if low < 0 or high >= len(base):
        return False
    ratios = [sorted(own / other for own, other in zip(seconds, base, strict=True)) for seconds in others]
    return all(one[high] - one[low] <= 2 * PRECISION * median(one) for one in ratios)


def relative_to(base: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the median over rounds of a model's seconds as a part of the base's in the same round.

    What else the machine does slows a whole round, so on a busy one this is steadier than a ratio of medians: two
    equal models came out within 2 % where their medians were up to 7 % apart.
    """
    return median(own / other for own, other in zip(seconds, base, strict=True))


def time_pass(model: nn.Module, batch: Mapping[str, torch.Tensor], device: torch.device) -> float:
    """Return the seconds of one forward pass, waiting for the device before and after."""
    synchronize(device)
    started = time.perf_counter()
    model(**batch)
    synchronize(device)
    return time.perf_counter() - started


def latency_batch(
    rows: int, tokens: int, vocabulary: int, device: torch.device, encodes_prompt: bool = False
) -> dict[str, torch.Tensor]:
    """Return a batch of unpadded rows of tokens drawn at random, always the same; what they are costs nothing.

    A decoder beside an encoder that `encodes_prompt` reads as many.
    """
    ids = torch.randint(0, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(0)).to(device)
    decoder = {"decoder_input_ids": ids} if encodes_prompt else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **decoder}
