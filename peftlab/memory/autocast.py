"""CUDA's autocast on the CPU: what it widens to float32 and the CPU's own autocast does not.

Source: "CUDA Ops that can autocast to float32", pytorch.org/docs/stable/amp.html.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch.nn import functional

from peftlab.memory.ledger import Ledger
from peftlab.memory.private import active_mode

_POINTWISE = ("exp", "log", "pow", "rsqrt", "reciprocal", "norm", "sum", "prod", "cumsum", "softmax", "log_softmax")
_LAYERS = ("layer_norm", "group_norm", "softmax", "log_softmax", "softplus", "cross_entropy", "nll_loss")
WIDENED = (
    *((torch, name) for name in _POINTWISE),
    *((torch.Tensor, name) for name in (*_POINTWISE, "__pow__")),
    *((functional, name) for name in _LAYERS),
)


@contextmanager
def cuda_widening() -> Iterator[None]:
    """Make the widened functions cast 16-bit arguments to float32 wherever autocast is on.

    They are replaced, and not watched by a function mode, since that is off while checkpointing recomputes
    inside the backward pass.
    """
    with ExitStack() as stack:
        for owner, name in WIDENED:
            stack.enter_context(mock.patch.object(owner, name, _widening(getattr(owner, name))))
        yield


def _widening(function: Callable) -> Callable:
    @functools.wraps(function)
    def widened(*args, **kwargs):
        # Within an operation (its formula for fake tensors) autocast has done its part already.
        if torch.is_autocast_enabled("cpu") and isinstance(active_mode(), Ledger):
            args = [_widen(value) for value in args]
            kwargs = {name: _widen(value) for name, value in kwargs.items()}
        return function(*args, **kwargs)

    return widened


def _widen(value):
    narrow = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if narrow else value
