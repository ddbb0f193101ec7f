"""What CUDA takes beside tensors, measured: see scripts/calibrate_cuda_memory."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable

import torch
from results_file import require_cuda, write_result
from torch.nn import functional

from peftlab.memory.constants import (
    ALLOCATION_ROUNDING,
    LARGE_SEGMENT,
    MIB,
    OWN_SEGMENT_ROUNDING,
    SMALL_SEGMENT,
    cuda_constants,
)
from peftlab.memory.probe import Probe

OWN_TENSOR = 33 * MIB
# Computes what loads the kernels of a training step (cuBLAS, attention, bitsandbytes; they are loaded at first use),
# prints what the allocator has reserved, and waits for a line of input before it ends.
CHILD = """
import contextlib, torch
from torch.nn import functional
x = torch.ones(2, 16, 128, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True)
attended = functional.scaled_dot_product_attention(x, x, x, is_causal=True)
functional.layer_norm(functional.silu(attended @ x.transpose(2, 3)).float(), (128,)).square().mean().backward()
torch.optim.AdamW([x], fused=True).step()
with contextlib.suppress(ImportError):
    from bitsandbytes import functional as quantised, matmul_4bit
    packed, state = quantised.quantize_4bit(torch.ones(64, 64, dtype=torch.bfloat16, device="cuda"), quant_type="nf4")
    matmul_4bit(x, packed.t(), quant_state=state).sum().backward()
torch.cuda.synchronize()
print(torch.cuda.memory_reserved(), flush=True)
input()
"""


def measure_context(device: torch.device) -> int:
    """Return what a process takes of the device beside its allocator: another one is started and looked at."""
    before = torch.cuda.mem_get_info(device)[0]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", CHILD], text=True, **pipes) as child:
        reserved = int(child.stdout.readline())
        taken = before - torch.cuda.mem_get_info(device)[0]
        child.communicate("\n")
    return taken - reserved


def measure_workspaces(device: torch.device) -> int:
    """Return what the first matrix product, forward and backward, leaves allocated beside its gradients."""
    factors = [torch.ones(256, 256, dtype=torch.bfloat16, device=device, requires_grad=True) for _ in range(2)]
    before = torch.cuda.memory_allocated(device)
    (factors[0] @ factors[1]).sum().backward()
    torch.cuda.synchronize(device)
    gradients = sum(factor.grad.numel() * factor.grad.itemsize for factor in factors)
    return torch.cuda.memory_allocated(device) - before - gradients


def measure_segments(device: torch.device) -> dict[str, int]:
    """Return what the allocator hands out and reserves for tensors of one byte, of 1.5 MiB and of 33 MiB."""
    found = {}
    for name, size in (("small", 1), ("large", 3 * MIB // 2), ("own", OWN_TENSOR)):
        torch.cuda.empty_cache()
        allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        held = torch.empty(size, dtype=torch.uint8, device=device)
        found[f"{name}_allocated"] = torch.cuda.memory_allocated(device) - allocated
        found[f"{name}_segment"] = torch.cuda.memory_reserved(device) - reserved
        del held
    return found


def attention(device: torch.device) -> torch.Tensor:
    inputs = [torch.ones(2, 16, 1024, 64, dtype=torch.bfloat16, device=device, requires_grad=True) for _ in range(3)]
    return functional.scaled_dot_product_attention(*inputs, is_causal=True).float().sum()


def cross_entropy(device: torch.device) -> torch.Tensor:
    logits = torch.ones(2048, 32000, device=device, requires_grad=True)
    return functional.cross_entropy(logits, torch.ones(2048, dtype=torch.int64, device=device))


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


def measure_kernel(kernel: Callable[[torch.device], torch.Tensor], device: torch.device) -> dict[str, int]:
    """Return the tensors' peak of a kernel forward and backward, and the scratch space that the tracker cannot see."""
    kernel(device).backward()  # its library's own start-up is not its scratch space
    held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    probe = Probe(device)
    with probe.ledger, probe.phase("kernel"):
        kernel(device).backward()
    tensors, report = probe.ledger.report().peak_bytes, probe.report()
    return {"tensor_bytes": tensors, "scratch_bytes": max(report.peak_bytes - held - tensors, 0)}


def show(name: str, measured: int, assumed: int) -> str:
    return f"{name:<28} {measured:>14,} {assumed:>14,}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/calibrate_cuda_memory")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    if options.device == "cuda":
        require_cuda(parser.prog)
    device = torch.device(options.device)
    found: dict[str, object] = {}
    if options.device == "cuda":
        constants = cuda_constants(torch.cuda.get_device_capability(device))
        # In this order: the workspace must not exist yet when the first product is measured.
        found |= {"cublas_workspaces": measure_workspaces(device), "context": measure_context(device)}
        found["segments"] = segments = measure_segments(device)
        print(f"{'bytes':<28} {'measured':>14} {'in constants':>14}")
        print(show("context", found["context"], constants.context))
        print(show("cuBLAS workspaces", found["cublas_workspaces"], constants.cublas_workspaces))
        print(show("smallest allocation", segments["small_allocated"], ALLOCATION_ROUNDING))
        print(show("segment of small ones", segments["small_segment"], SMALL_SEGMENT))
        print(show("segment of large ones", segments["large_segment"], LARGE_SEGMENT))
        own = -(-OWN_TENSOR // OWN_SEGMENT_ROUNDING) * OWN_SEGMENT_ROUNDING
        print(show("segment of a 33 MiB tensor", segments["own_segment"], own))
    found["kernels"] = kernels = {kernel.__name__: measure_kernel(kernel, device) for kernel in KERNELS}
    print(f"{'kernel, forward and backward':<28} {'tensors':>14} {'scratch space':>14}")
    for name, sizes in kernels.items():
        print(show(name.replace("_", " "), sizes["tensor_bytes"], sizes["scratch_bytes"]))
    if options.device == "cpu":
        print("tried on the CPU: nothing was calibrated and nothing is written")
        return
    name = f"cuda_constants-{torch.cuda.get_device_name(device).replace(' ', '-')}"
    print(f"written: {write_result(name, device, found)}")


if __name__ == "__main__":
    main()
