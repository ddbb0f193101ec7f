"""The least seconds that a step can take: its operations by the formulas, at the matrix products' measured speed."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from race.job import Job

FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


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

    With N matrix parameters, P trained ones, and a = (2·S + 4·virtual tokens)·width·layers of causal attention for
    each token: full fine-tuning 6N + 3a; LoRA, QLoRA and adapters 4N + 6P + 3a; BitFit and prefix 4N + 3a; but for full
    fine-tuning less 2 for each matrix parameter below the first that trains, whose input needs no gradient. The head
    counts for supervised tokens alone. Nothing is recomputed, and no padding is computed.
    """
    shape = read_shape(job.model)
    trains = names_of_trained(job)
    factor = 6 if job.method == "full" else 4
    own = (
        0
        if job.method in ("full", "bitfit", "prefix")
        else 6 * sum(rows * columns for rows, columns in trains.values())
    )
    below = 0 if job.method == "full" else 2 * sum(shape.matrices[name] for name in frozen_below(list(trains)))
    body = factor * shape.layers * sum(shape.matrices.values()) - below
    total = 0.0
    steps = job.steps_of_rows()[job.warm_up : job.timed]
    for row in (row for rows in steps for row in rows):
        tokens = len(row["input_ids"])
        targets = sum(label != -100 for label in row["labels"][1:])
        keys = 2 * tokens + 4 * (job.fields.get("length", 0) if job.method == "prefix" else 0)
        total += tokens * (body + own + 3 * keys * shape.width * shape.layers) + targets * factor * shape.head
    return total / len(steps)


class Shape(NamedTuple):
    """Layers of a decoder, the width of its queries, its head's parameters, and those of a layer's matrices by name."""

    layers: int
    width: int
    head: int
    matrices: dict[str, int]


def read_shape(model: str) -> Shape:
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(model)
    hidden, inner = config.hidden_size, config.intermediate_size
    width = config.num_attention_heads * (getattr(config, "head_dim", None) or hidden // config.num_attention_heads)
    kv = width * config.num_key_value_heads // config.num_attention_heads
    sizes = {"q_proj": width, "k_proj": kv, "v_proj": kv, "o_proj": width}
    sizes |= {"gate_proj": inner, "up_proj": inner, "down_proj": inner}
    matrices = {name: hidden * size for name, size in sizes.items()}
    return Shape(config.num_hidden_layers, width, hidden * config.vocab_size, matrices)


def names_of_trained(job: Job) -> dict[str, tuple[int, int]]:
    """Return the rows and columns of each trained tensor by its name, one that is not a matrix as none."""
    from safetensors import safe_open

    with safe_open(job.start, "pt") as file:
        sizes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    return {name: (size[0], size[1]) if len(size) == 2 else (0, 0) for name, size in sizes.items()}


def frozen_below(names: list[str]) -> tuple[str, ...]:
    """Return the matrices of the first layer whose input needs no gradient: up to the first that trains, or is changed.

    An adapter after a module changes that module's output.
    """
    first = [name for name in names if ".layers.0." in name]
    inputs, attention = ("q_proj", "k_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj")
    if not first or any(one in name for name in first for one in (*inputs, "input_layernorm")):
        return inputs
    return attention if any(".self_attn." in name for name in first) else (*attention, *FEED_FORWARD)
