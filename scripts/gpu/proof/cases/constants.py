"""What CUDA takes beside tensors: context and libraries, cuBLAS workspaces, the allocator's rounding, scratch space."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from proof.bench import Bench

MIB = 2**20
OWN_TENSOR = 33 * MIB


def run(bench: Bench) -> None:
    device = torch.device(bench.device)
    with bench.case("libraries") as case:
        case |= measure_stages(device)
    if device.type == "cuda":
        with bench.case("segments") as case:
            case |= measure_segments(device)
    for kernel in KERNELS:
        with bench.case(f"scratch of {kernel.__name__.replace('_', ' ')}") as case:
            case |= measure_kernel(kernel, device)


def measure_stages(device: torch.device) -> dict[str, Any]:
    """Return what a fresh process takes outside its allocator after each library, and workspaces inside of it."""
    free_before = free_bytes(device)
    command, found = [sys.executable, "-m", "proof.stages", device.type], []
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        for line in child.stdout:
            stage = json.loads(line)
            taken = free_before - free_bytes(device)
            found.append(stage | {"outside_allocator": max(taken - stage["reserved"], 0)})
            child.stdin.write("\n")
            child.stdin.flush()
    if child.returncode:
        raise RuntimeError(f"the process that loads the libraries ended with {child.returncode}")
    by_name = {stage["stage"]: stage for stage in found}
    forward = by_name["forward_product"]["allocated"] - by_name["context"]["allocated"]
    backward = by_name["backward_product"]["allocated"] - by_name["forward_product"]["allocated"]
    bare, loaded = by_name["context"]["outside_allocator"], found[-1]["outside_allocator"]
    return {
        "stages": found,
        "workspace_forward": forward,
        "workspace_backward": backward,
        "context": bare,
        "context_loaded": loaded,
        "assumed": assumed(device),
        "says": f"context {bare / MIB:,.0f} MiB, loaded {loaded / MIB:,.0f}; "
        f"workspaces {forward / MIB:.1f} + {backward / MIB:.1f}",
    }


def assumed(device: torch.device) -> dict[str, Any]:
    """Return the constants that plans use for this device."""
    from dataclasses import asdict

    from peftlab.memory.constants import cuda_constants
    from peftlab.sizes import DEFAULT_CAPABILITY
    from peftlab.world.hardware import cuda_capability

    return asdict(cuda_constants(cuda_capability(device) if device.type == "cuda" else DEFAULT_CAPABILITY))


def free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def measure_segments(device: torch.device) -> dict[str, Any]:
    """Return what the allocator hands out and reserves for tensors of one byte, of 1.5 MiB and of 33 MiB."""
    from peftlab.memory.constants import ALLOCATION_ROUNDING, LARGE_SEGMENT, OWN_SEGMENT_ROUNDING, SMALL_SEGMENT

    found = {}
    for name, size in (("small", 1), ("large", 3 * MIB // 2), ("own", OWN_TENSOR)):
        torch.cuda.empty_cache()
        allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        tensor = torch.empty(size, dtype=torch.uint8, device=device)
        found[f"{name}_allocated"] = torch.cuda.memory_allocated(device) - allocated
        found[f"{name}_segment"] = torch.cuda.memory_reserved(device) - reserved
        del tensor
    expected = {
        "small_allocated": ALLOCATION_ROUNDING,
        "small_segment": SMALL_SEGMENT,
        "large_segment": LARGE_SEGMENT,
        "own_segment": -(-OWN_TENSOR // OWN_SEGMENT_ROUNDING) * OWN_SEGMENT_ROUNDING,
    }
    wrong = [f"{name} {found[name]:,}, not {size:,}" for name, size in expected.items() if found[name] != size]
    return found | {"ok": not wrong, "says": "; ".join(wrong) or "as the simulated allocator has them"}


def attention(device: torch.device) -> torch.Tensor:
    inputs = [torch.ones(2, 16, 1024, 64, dtype=torch.bfloat16, device=device, requires_grad=True) for _ in range(3)]
    return functional.scaled_dot_product_attention(*inputs, is_causal=True).float().sum()


def cross_entropy(device: torch.device) -> torch.Tensor:
    logits = torch.ones(1024, 32000, device=device, requires_grad=True)
    return functional.cross_entropy(logits, torch.ones(1024, dtype=torch.int64, device=device))


def embedding(device: torch.device) -> torch.Tensor:
    table = torch.ones(32000, 512, device=device, requires_grad=True)
    return functional.embedding(torch.ones(4, 1024, dtype=torch.int64, device=device), table).sum()


def layer_norm(device: torch.device) -> torch.Tensor:
    inputs, weight = (torch.ones(*shape, device=device, requires_grad=True) for shape in ((4096, 1024), (1024,)))
    return functional.layer_norm(inputs, (1024,), weight).sum()


def matrix_product(device: torch.device) -> torch.Tensor:
    left, right = (torch.ones(2048, 2048, dtype=torch.bfloat16, device=device, requires_grad=True) for _ in range(2))
    return (left @ right).float().sum()


KERNELS = (attention, cross_entropy, embedding, layer_norm, matrix_product)


def measure_kernel(kernel: Callable[[torch.device], torch.Tensor], device: torch.device) -> dict[str, Any]:
    """Return the tensors' peak of a kernel forward and backward, and the scratch space that the ledger cannot see."""
    from peftlab.memory.probe import Probe

    kernel(device).backward()  # its library's own start-up is not its scratch space
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    probe = Probe(device)
    with probe.ledger, probe.phase("kernel"):
        kernel(device).backward()
    tensors, report = probe.ledger.report().peak_bytes, probe.report()
    scratch = max(report.peak_bytes - before - tensors, 0)
    says = f"tensors {tensors / MIB:,.1f} MiB, scratch {scratch / MIB:,.1f} MiB"
    return {"tensor_bytes": tensors, "scratch_bytes": scratch, "says": says}
