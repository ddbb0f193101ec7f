"""A model from the meta device as fake tensors, which go through a real step's operations without any memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

# bitsandbytes' block sizes: values that share a scale, and scales that share one when those are quantised too.
BLOCK, SCALE_BLOCK = 64, 256
CODES, SCALE_CODES = 16, 256


class FakeModel:
    """A model whose tensors were replaced, in place, by fake ones on the CPU."""

    def __init__(self, model: nn.Module):
        self.model = model
        self._mode = FakeTensorMode()
        with self._mode:
            _fake_all(model)

    @contextmanager
    def running(self, padded: bool) -> Iterator[None]:
        """Make every tensor inside fake. `padded` answers the model's question whether its masks mask anything.

        transformers asks that of real tensors only and takes the more expensive path for fake ones, so its
        check for fake tensors is switched off meanwhile.
        """
        from transformers import masking_utils

        with mock.patch.object(masking_utils, "is_tracing", lambda *_: False), self._mode, _Answers(padded):
            yield


class _Answers(TorchDispatchMode):
    """Answers what a program asks of a tensor's values: `padded` decides all(), numbers are 1, no outliers."""

    def __init__(self, padded: bool):
        super().__init__()
        self.padded = padded

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            return not self.padded if args[0].dtype == torch.bool else 1
        if func.name() in _WITHOUT_OUTLIERS:
            return _WITHOUT_OUTLIERS[func.name()](*args)
        return func(*args, **(kwargs or {}))


def _int8_quant(rows: torch.Tensor, *_) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scales = rows.new_empty(rows.shape[:-1].numel(), dtype=torch.float32)
    return torch.empty_like(rows, dtype=torch.int8), scales, rows.new_empty(0, dtype=torch.int64)


def _int8_mixed_mm(rows: torch.Tensor, _, weight: torch.Tensor, *__) -> tuple[torch.Tensor, torch.Tensor]:
    return rows.new_empty(*rows.shape[:-1], weight.shape[0]), rows.new_empty(*rows.shape[:-1], 0)


# bitsandbytes' operations whose results depend on how many columns hold outliers.
_WITHOUT_OUTLIERS = {
    "bitsandbytes::int8_vectorwise_quant": _int8_quant,
    "bitsandbytes::int8_mixed_scaled_mm": _int8_mixed_mm,
}


def _fake_all(model: nn.Module) -> None:
    fakes: dict[int, torch.Tensor] = {}
    for module in model.modules():
        _fake_values(module._parameters, fakes)
        _fake_values(module._buffers, fakes)
        _fake_values(module.__dict__, fakes)
        # PEFT keeps the ids of its virtual tokens in plain dictionaries.
        for name, value in module.__dict__.items():
            if isinstance(value, dict) and not name.startswith("_"):
                _fake_values(value, fakes)


def _fake_values(values: dict, fakes: dict[int, torch.Tensor]) -> None:
    for name, value in list(values.items()):
        if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor):
            if id(value) not in fakes:
                fakes[id(value)] = _fake_one(value)
            values[name] = fakes[id(value)]


def _fake_one(tensor: torch.Tensor) -> torch.Tensor:
    kind = type(tensor).__name__
    if kind == "Params4bit":
        return _four_bit(tensor)
    if kind == "Int8Params":
        return _int8(tensor)
    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


def _four_bit(weight: nn.Parameter) -> nn.Parameter:
    """Return packed bytes with a state as bitsandbytes would make it; its own class cannot hold fake tensors."""
    from bitsandbytes.functional import QuantState

    count = prod(weight.shape)
    blocks = -(-count // BLOCK)
    packed = nn.Parameter(torch.empty(((count + 1) // 2, 1), dtype=torch.uint8), requires_grad=False)
    shared = {"shape": weight.shape, "code": torch.empty(CODES), "blocksize": BLOCK, "dtype": weight.dtype}
    if weight.compress_statistics:
        scales = torch.empty(-(-blocks // SCALE_BLOCK))
        second = QuantState(scales, code=torch.empty(SCALE_CODES), blocksize=SCALE_BLOCK, dtype=torch.float32)
        shared |= {"offset": torch.empty(()), "state2": second}
    absmax = torch.empty(blocks, dtype=torch.uint8 if weight.compress_statistics else torch.float32)
    packed.quant_state = QuantState(absmax, quant_type=weight.quant_type, **shared)
    return packed


def _int8(weight: nn.Parameter) -> nn.Parameter:
    rows = nn.Parameter(torch.empty(weight.shape, dtype=torch.int8), requires_grad=False)
    rows.CB, rows.SCB = rows.data, torch.empty(weight.shape[0])
    return rows
