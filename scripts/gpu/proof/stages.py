"""A process that loads one library of CUDA after another and waits after each: `python -m proof.stages DEVICE`.

After each stage it prints a line of JSON (the stage, what its allocator has allocated and reserved) and waits for a
line of input, so that the process that started it can read the device's free memory meanwhile.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch
from torch.nn import functional

SIZE = 256


def context(device: torch.device) -> None:
    """Only the context, and the allocator's first small segment."""
    torch.zeros(1, device=device)


def forward_product(device: torch.device) -> None:
    """cuBLAS, with the workspace of this thread."""
    left, right = (torch.ones(SIZE, SIZE, dtype=torch.bfloat16, device=device) for _ in range(2))
    left @ right


def backward_product(device: torch.device) -> None:
    """cuBLAS in autograd's own thread, which has a workspace of its own."""
    left, right = (torch.ones(SIZE, SIZE, dtype=torch.bfloat16, device=device, requires_grad=True) for _ in range(2))
    (left @ right).sum().backward()


def attention(device: torch.device) -> None:
    inputs = [torch.ones(1, 4, 64, 64, dtype=torch.bfloat16, device=device, requires_grad=True) for _ in range(3)]
    functional.scaled_dot_product_attention(*inputs, is_causal=True).float().sum().backward()


def quantised_product(device: torch.device) -> None:
    """bitsandbytes' 4-bit layer, forward and backward."""
    from peftlab.models.quantize import quantize_
    from peftlab.runs.doctor import build_toy

    model = quantize_(build_toy(), "nf4", compute_dtype=torch.bfloat16, device=device).to(device)
    tokens = torch.arange(8, device=device).reshape(1, 8)
    with torch.autocast(device.type, torch.bfloat16):
        model(input_ids=tokens, labels=tokens).loss.backward()


def optimizer_step(device: torch.device) -> None:
    weight = torch.nn.Parameter(torch.ones(SIZE, SIZE, device=device))
    weight.grad = torch.ones_like(weight)
    torch.nn.utils.clip_grad_norm_([weight], 1.0)
    torch.optim.AdamW([weight], fused=device.type == "cuda").step()


STAGES: tuple[Callable[[torch.device], None], ...] = (
    context,
    forward_product,
    backward_product,
    attention,
    quantised_product,
    optimizer_step,
)


def main() -> None:
    device = torch.device(sys.argv[1])
    cuda = device.type == "cuda"
    for stage in STAGES:
        stage(device)
        if cuda:
            torch.cuda.synchronize(device)
        found = {
            "stage": stage.__name__,
            "allocated": torch.cuda.memory_allocated(device) if cuda else 0,
            "reserved": torch.cuda.memory_reserved(device) if cuda else 0,
        }
        print(json.dumps(found), flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
