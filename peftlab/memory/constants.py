"""What CUDA adds to tensors: sizes of context, workspaces and allocations, each with its source.

`scripts/gpu/prove --only constants` measures them on a CUDA machine, and what kernels use as scratch space.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MIB = 1024**2

# PyTorch's caching allocator (c10/core/AllocatorConfig.h, torch 2.13).
ALLOCATION_ROUNDING = 512
SMALL_ALLOCATION = 1 * MIB  # the largest that comes from a shared small segment
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB  # shared by allocations below `OWN_SEGMENT`
OWN_SEGMENT = 10 * MIB
OWN_SEGMENT_ROUNDING = 2 * MIB


# Each thread has its own handle of cuBLAS, and each handle a workspace (CublasHandlePool.cpp, torch 2.13).
CUBLAS_THREADS = 2
# `CUBLAS_WORKSPACE_CONFIG=:4096:8`, which deterministic algorithms need: eight buffers of 4096 KiB.
DETERMINISTIC_WORKSPACE = 8 * 4096 * 1024

# NCCL 2.27's buffers for each channel, of its three protocols (src/include/device.h), for a ring and a tree of 16.
_NCCL_CHANNEL = 4 * MIB + 8 * 512 * 8 * 16 + 8 * 120 * 640 * 8
NCCL_BUFFERS = 2 * 16 * _NCCL_CHANNEL


@dataclass(frozen=True)
class CudaConstants:
    """Bytes of one process on one architecture. `measured` is whether peftlab has checked them on a device.

    `cublas_workspace` is one thread's. A training process has two: its own, and the backward pass's in autograd's.
    """

    context: int
    cublas_workspace: int
    source: str
    measured: bool = False

    @property
    def cublas_workspaces(self) -> int:
        return CUBLAS_THREADS * self.cublas_workspace


_WORKSPACES = "workspace: aten/src/ATen/cuda/CublasHandlePool.cpp (torch 2.13)"
_CONTEXT = "context: common report of nvidia-smi for an idle torch process, not yet measured here"
BEFORE_HOPPER = CudaConstants(450 * MIB, (2 * 4096 + 8 * 16) * 1024, f"{_WORKSPACES}; {_CONTEXT}")
SINCE_HOPPER = CudaConstants(550 * MIB, 32 * MIB, f"{_WORKSPACES}; {_CONTEXT}")


def cuda_constants(capability: tuple[int, int], deterministic: bool = False) -> CudaConstants:
    """Return the constants of a compute capability, of a run with deterministic algorithms or not."""
    found = SINCE_HOPPER if capability >= (9, 0) else BEFORE_HOPPER
    return replace(found, cublas_workspace=DETERMINISTIC_WORKSPACE) if deterministic else found
