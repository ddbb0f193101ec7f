"""Tokens a second of LoRA's and QLoRA's training step, with random weights of published shapes."""

from __future__ import annotations

import time
from typing import Any

from proof.bench import Bench
from proof.shapes import Case, median, tried_shape

WARM_UP, TIMED = 2, 6
CASES = (
    Case("llama-3.2-1b", "lora", 2, 4096),
    Case("llama-3.1-8b", "lora", 2, 4096, checkpointing=True),
    Case("llama-3.1-8b", "qlora", 2, 4096, checkpointing=True),
)


def run(bench: Bench) -> None:
    for one in (Case(tried_shape(bench.folder), "lora", 1, 32),) if bench.pretend else CASES:
        with bench.case(one.name) as case:
            case |= time_steps(bench, one)


def time_steps(bench: Bench, one: Case) -> dict[str, Any]:
    """Return the median of a step's seconds, waiting for the device after each, and its tokens a second."""
    from proof.training import build, free_memory

    free_memory()
    built = build(one.recipe(bench.folder, bench.device, f"training.steps={WARM_UP + TIMED}"))
    seconds = []
    for number in range(1, WARM_UP + TIMED + 1):
        started = time.perf_counter()
        built.step(number)
        built.setup.world.synchronize()
        seconds.append(time.perf_counter() - started)
    step, tokens = median(seconds[WARM_UP:]), built.tokens(1)
    peak = peak_bytes(bench)
    says = f"{tokens / step:,.0f} tokens/s, {step:.3f} s a step of {tokens} tokens, {peak / 2**30:.1f} GiB"
    found = {"step_seconds": step, "all_seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / step}
    return one.facts | found | {"peak_bytes": peak, "says": says}


def peak_bytes(bench: Bench) -> int:
    import torch

    return torch.cuda.max_memory_allocated() if bench.device == "cuda" else 0
