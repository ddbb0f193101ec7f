"""Seconds of one forward pass of several models, taken in turns so that what else the machine does falls on all."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from statistics import median

import torch
from torch import nn

from peftlab.evaluation.generate import evaluation_mode
from peftlab.world.hardware import synchronize

WARM_UP_ROUNDS = 3
ROUNDS = 101
# A slow model gets fewer rounds, though never fewer than this.
LEAST_ROUNDS = 11
LONGEST_SECONDS = 30.0


def measure_latency(
    models: Mapping[str, nn.Module],
    batch: Mapping[str, torch.Tensor],
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, list[float]]:
    """Return the seconds of forward passes of `batch` through each of `models`, which keep their modes.

    One number a round: in every round each model passes once, another one first each time, after `WARM_UP_ROUNDS`
    that do not count.
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
            if turn >= LEAST_ROUNDS and time.perf_counter() - started > LONGEST_SECONDS:
                break
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                seconds[name].append(time_pass(models[name], batch, device))
    return seconds


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
