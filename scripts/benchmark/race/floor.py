"""The least seconds that a step can take: its operations by the formulas, at the matrix products' measured speed."""

from __future__ import annotations

import time
from typing import Any

from race.job import Job


def peak_flops(device: str, precision: str, threads: int) -> float:
    """Return operations a second of a large matrix product, the best of several."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    size = 8192 if device == "cuda" else 1536
    dtype = getattr(torch, precision)
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(12):
        synchronize(device)
        started = time.perf_counter()
        one @ other
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def step_flops(job: Job) -> float:
    """Return the operations of a mean timed step.

    With N matrix parameters, P trained ones, and a = 2·S·width·layers of causal attention for each token: full
    fine-tuning 6N + 3a; LoRA, QLoRA and adapters 4N + 6P + 3a; BitFit and prefix 4N + 3a. The head counts for
    supervised tokens alone. Nothing is recomputed, and no padding is computed.
    """
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(job.model)
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    kv = width * config.num_key_value_heads // config.num_attention_heads
    hidden, layers = config.hidden_size, config.num_hidden_layers
    body = layers * (2 * hidden * width + 2 * hidden * kv + 3 * hidden * config.intermediate_size)
    head = hidden * config.vocab_size
    trained = trained_matrices(job)
    factor = 6 if job.method == "full" else 4
    total = 0.0
    steps = job.steps_of_rows()[job.warm_up :]
    for row in (row for rows in steps for row in rows):
        tokens = len(row["input_ids"])
        targets = sum(label != -100 for label in row["labels"][1:])
        own = 0 if job.method == "full" else 6 * trained
        total += tokens * (factor * body + own + 3 * 2 * tokens * width * layers) + targets * factor * head
    return total / len(steps)


def trained_matrices(job: Job) -> int:
    from safetensors import safe_open

    if job.method in ("bitfit", "prefix"):
        return 0
    with safe_open(job.start, "pt") as file:
        sizes = [file.get_slice(name).get_shape() for name in file.keys()]
    return sum(size[0] * size[1] for size in sizes if len(size) == 2)
