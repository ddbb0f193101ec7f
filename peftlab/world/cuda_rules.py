"""CUDA's rules on the CPU, where the libraries ask for the device: autocast's wide functions, 8-bit products.

Sources: "CUDA Ops that can autocast to float32", pytorch.org/docs/stable/amp.html; `matmul` in bitsandbytes 0.50's
autograd/_functions.py; `forward` in peft 0.21's tuners/lora/bnb.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.nn import functional

_POINTWISE = ("exp", "log", "pow", "rsqrt", "reciprocal", "norm", "sum", "prod", "cumsum", "softmax", "log_softmax")
_LAYERS = ("layer_norm", "group_norm", "softmax", "log_softmax", "softplus", "cross_entropy", "nll_loss")
WIDENED = (
    *((torch, name) for name in _POINTWISE),
    *((torch.Tensor, name) for name in (*_POINTWISE, "__pow__")),
    *((functional, name) for name in _LAYERS),
)


@contextmanager
def cuda_rules(applies: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Make the CPU's autocast widen what CUDA's does, PEFT see it, and bitsandbytes multiply as on CUDA.

    `applies` is asked at every call of a widened function. The functions are replaced, and not watched by a function
    mode, since that is off while checkpointing recomputes inside the backward pass.
    """
    with ExitStack() as stack:
        for owner, name in WIDENED:
            stack.enter_context(mock.patch.object(owner, name, _widening(getattr(owner, name), applies)))
        stack.enter_context(mock.patch.object(torch, "is_autocast_enabled", _cpu_as_default(torch.is_autocast_enabled)))
        stack.enter_context(_products_as_on_cuda())
        yield


def _widening(function: Callable, applies: Callable[[], bool]) -> Callable:
    @functools.wraps(function)
    def widened(*args, **kwargs):
        if torch.is_autocast_enabled("cpu") and applies():
            args = [_widen(value) for value in args]
            kwargs = {name: _widen(value) for name, value in kwargs.items()}
        return function(*args, **kwargs)

    return widened


def _widen(value: Any) -> Any:
    narrow = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if narrow else value


def _cpu_as_default(asked: Callable[..., bool]) -> Callable[..., bool]:
    """Return `is_autocast_enabled` with the CPU in place of CUDA where no device is named."""
    return lambda device="cpu": asked(device)


@contextmanager
def _products_as_on_cuda() -> Iterator[None]:
    """Make bitsandbytes train 8-bit layers through the function that it has for CUDA."""
    try:
        from bitsandbytes.autograd import _functions
    except ImportError:
        yield
        return
    with mock.patch.object(_functions, "MatMul8bitFp", _functions.MatMul8bitLt):
        yield
