"""The state of every random generator that training draws from: Python, NumPy, torch on the CPU and on CUDA."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from peftlab.errors import StorageError
from peftlab.world.hardware import capture_cuda_randomness, count_cuda_devices, restore_cuda_randomness


def capture_random_state() -> dict[str, Any]:
    """Return the states of this process's generators, in a form that `save_state` writes."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": capture_cuda_randomness(),
    }


def restore_random_state(state: dict[str, Any]) -> list[str]:
    """Restore the generators; return the reasons why that is inexact, empty if it is exact.

    Only the CUDA devices that both the state and this machine have are restored; a different number of devices is
    such a reason. Raises StorageError for a state that a generator refuses.
    """
    try:
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        available = count_cuda_devices()
        restore_cuda_randomness(state["cuda"][:available])
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise StorageError(f"the random state of the checkpoint cannot be restored: {reason}") from None
    saved = len(state["cuda"])
    return (
        []
        if saved == available
        else [f"random states of {saved} CUDA devices were saved, this machine has {available}"]
    )
