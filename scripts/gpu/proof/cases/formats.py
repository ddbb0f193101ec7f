"""Equal weights quantised on the CPU and on the device: bytes, scales, and what they are unpacked to."""

from __future__ import annotations

from typing import Any

from proof.bench import Bench

FORMATS = ("nf4", "fp4", "int8")
# Values at a border between two codes may fall to either side.
DIFFERENT_BYTES = 1e-3


def run(bench: Bench) -> None:
    for base_format in FORMATS:
        for double in (True, False) if base_format != "int8" else (False,):
            with bench.case(f"{base_format}{', double' if double else ''}") as case:
                case |= compare(base_format, double, bench.device)


def compare(base_format: str, double: bool, device: str) -> dict[str, Any]:
    """Return the share of bytes that differ, and the largest and mean difference of scales and unpacked weights."""
    import torch

    from peftlab.memory.private import quantisation_tensors
    from peftlab.models.quantize import dequantize_, quantize_
    from peftlab.parameters.trainable import is_quantized

    models = [toy(), toy()]
    packed, scales = [], []
    for model, where in zip(models, ("cpu", device), strict=True):
        quantize_(model, base_format, double_quantization=double, device=where)
        model.to(where)
        packed.append([p.data.flatten().cpu().view(torch.uint8) for p in model.parameters() if is_quantized(p)])
        scales.append([scale.float().cpu() for scale in quantisation_tensors(model.parameters())])
        dequantize_(model)
    numbers = sum(part.numel() for part in packed[0])
    different = sum(int((ours != theirs).sum()) for theirs, ours in zip(*packed, strict=True)) / numbers
    in_scales = max(float((ours - theirs).abs().max()) for theirs, ours in zip(*scales, strict=True))
    weights = [torch.cat([p.detach().float().cpu().flatten() for p in model.parameters()]) for model in models]
    apart = (weights[0] - weights[1]).abs()
    return {
        "ok": different <= DIFFERENT_BYTES and float(apart.mean() / weights[0].abs().mean()) <= DIFFERENT_BYTES,
        "bytes": numbers,
        "different_bytes": different,
        "largest_scale_difference": in_scales,
        "largest_weight_difference": float(apart.max()),
        "says": f"{different:.2%} of {numbers:,} bytes differ, weights by {float(apart.max()):.1e}",
    }


def toy() -> Any:
    """Return a random GPT-2 of width 256, equal each time."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=256, n_layer=2, n_head=4))
