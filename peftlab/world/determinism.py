"""Algorithms that give the same bytes in every run, and what CUDA's libraries need for that.

Sources: pytorch.org/docs/stable/notes/randomness.html; attention_backward.cu of torch 2.13, where flash and
memory-efficient attention accumulate in a fixed order if deterministic algorithms are asked for; sdp_utils.cpp, which
does not choose cuDNN's attention then.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import torch

from peftlab.errors import UsageError, one_line

# Read when a library first runs: cuBLAS, and the package flash-attn through transformers.
VARIABLES = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1"}
REFUSED = "does not have a deterministic implementation"


def use_deterministic_algorithms() -> Callable[[], None]:
    """Make torch choose deterministic kernels, and refuse operations that have none; return what undoes that.

    Call it before CUDA starts.
    """
    former = torch.are_deterministic_algorithms_enabled()
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(True)
    return partial(torch.use_deterministic_algorithms, former)


def is_repeatable(device: torch.device) -> bool:
    """Return whether the same step gives the same bytes on this device: always on the CPU."""
    return device.type != "cuda" or torch.are_deterministic_algorithms_enabled()


def explain_refusal(error: BaseException) -> UsageError | None:
    """Return what a user should read where torch refused an operation for lack of a deterministic kernel."""
    text = str(error)
    if not isinstance(error, RuntimeError) or REFUSED not in text:
        return None
    operation = one_line(text.partition(REFUSED)[0].strip())
    return UsageError(f"run.deterministic: torch has no deterministic kernel for {operation}; set it to false")
