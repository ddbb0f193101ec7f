"""Which errors mean that memory ran out."""

from __future__ import annotations

import torch

# Messages of CUDA's libraries and of the CPU's allocator, in errors without a class of their own.
SIGNS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_shortage(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, on a device or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
