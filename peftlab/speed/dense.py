"""A dense layer with its LoRA part, y = x·Wᵀ + b + s·(d(x)·Aᵀ)·Bᵀ, and all of its gradients, as plain products.

W is dense, transposed (GPT-2's Conv1D) or 4-bit; d is dropout. Inputs and weights are cast where they are multiplied,
to the types in which PEFT multiplies them, so that no cast copy outlives its product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook
from transformers.pytorch_utils import Conv1D

from peftlab.nn.products import add_product, scaled_product
from peftlab.speed.layers import is_replaced

COMPUTED = (torch.float32, torch.bfloat16, torch.float16)


class Weights(NamedTuple):
    """A layer's tensors, each None where the layer has none; `weight` also where it is 4-bit."""

    weight: Tensor | None
    bias: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None


class Product(NamedTuple):
    """A layer's output, (rows, n_out); x·Aᵀ, (rows, rank); which inputs dropout left, as booleans."""

    output: Tensor
    low: Tensor | None
    mask: Tensor | None


class Gradients(NamedTuple):
    """The gradients of a layer's input and `Weights`, each None where it is not needed."""

    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    down: Tensor | None
    up: Tensor | None


class Needs(NamedTuple):
    """Which gradients are needed: of the input and of the `Weights`."""

    x: bool
    weight: bool
    bias: bool
    down: bool
    up: bool

    @property
    def input(self) -> bool:
        """Whether a weight's gradient is computed from the layer's input."""
        return self.weight or self.down


@dataclass(frozen=True)
class DenseLayer:
    """How a layer multiplies. `packed` is the module of a 4-bit weight, `autocast` the type that autocast sets."""

    scale: float = 0.0
    dropout: float = 0.0
    transposed: bool = False
    packed: Any = None
    autocast: torch.dtype | None = None

    def multiply(self, x: Tensor, weights: Weights) -> Product:
        """Return the product of the rows of `x`, (..., n_in)."""
        rows = flat(x)
        output = self._base(rows, weights)
        if weights.down is None or weights.up is None:
            return Product(output, None, None)
        inner = self._type_of(weights.down)
        mask = _draw_mask(x, self.dropout, weights.down.dtype) if self.dropout else None
        low = self._dropped(rows.to(inner), mask) @ weights.down.to(inner).T
        return Product(add_product(output, low, weights.up.to(inner).T, self.scale), low, mask)

    def gradients(
        self,
        needs: Needs,
        gradient: Tensor,
        weights: Weights,
        x: Tensor | None,
        low: Tensor | None,
        mask: Tensor | None,
        into: Tensor | None = None,
    ) -> Gradients:
        """Return the gradients for that of the output, (rows, n_out); the input's is added to `into` in place.

        `x` is needed where `needs.input` is true, `low` where `needs.up` is.
        """
        by_input = self._base_input_gradient(gradient, weights.weight, into) if needs.x else into
        by_weight = by_bias = by_down = by_up = None
        if needs.weight:
            assert x is not None and weights.weight is not None
            by_weight = self._weight_gradient(gradient, x).to(weights.weight.dtype)
        if needs.bias:
            assert weights.bias is not None
            by_bias = gradient.sum(0, dtype=weights.bias.dtype)
        if weights.down is not None and weights.up is not None:
            inner = self._type_of(weights.down)
            outer = gradient.to(inner)
            if needs.up:
                assert low is not None
                # In this order: the faster one on a CPU.
                by_up = scaled_product(low.T, outer, self.scale).T.to(weights.up.dtype)
            if needs.down or needs.x:
                by_low = scaled_product(outer, weights.up.to(inner), self.scale)
                if needs.down:
                    assert x is not None
                    by_down = (by_low.T @ self._dropped(x.to(inner), mask)).to(weights.down.dtype)
                if needs.x:
                    assert by_input is not None
                    by_input = self._add_low(by_input, by_low, weights.down.to(inner), mask)
        return Gradients(by_input, by_weight, by_bias, by_down, by_up)

    def _type_of(self, adapter: Tensor) -> torch.dtype:
        return self.autocast or adapter.dtype

    def _base(self, x: Tensor, weights: Weights) -> Tensor:
        if self.packed is not None:
            return multiply_packed(self.packed, x, weights.bias)
        assert weights.weight is not None
        inner = self.autocast or x.dtype
        weight = weights.weight.to(inner)
        bias = None if weights.bias is None else weights.bias.to(inner)
        if not self.transposed:
            return F.linear(x.to(inner), weight, bias)
        return x.to(inner) @ weight if bias is None else torch.addmm(bias, x.to(inner), weight)

    def _base_input_gradient(self, gradient: Tensor, weight: Tensor | None, into: Tensor | None) -> Tensor:
        if self.packed is not None:
            return add_to(into, packed_input_gradient(self.packed, gradient))
        assert weight is not None
        weight = weight.to(gradient.dtype)
        return add_product(into, gradient, weight.T if self.transposed else weight)

    def _weight_gradient(self, gradient: Tensor, x: Tensor) -> Tensor:
        x = x.to(gradient.dtype)
        return x.T @ gradient if self.transposed else gradient.T @ x

    def _dropped(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x if mask is None else (x * mask).div_(1 - self.dropout)

    def _add_low(self, into: Tensor, by_low: Tensor, down: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return add_product(into, by_low, down)
        return into.add_((by_low @ down).mul_(mask).div_(1 - self.dropout))


def add_to(into: Tensor | None, other: Tensor) -> Tensor:
    """Return `into` plus another tensor, added in place; the other where there is no `into`."""
    return other if into is None else into.add_(other)


def flat(x: Tensor) -> Tensor:
    """Return the rows of `x`, (rows, n)."""
    return x.reshape(-1, x.shape[-1])


def owned(output: Tensor) -> Tensor:
    """Return a function's output with memory of its own: autograd lets nobody change a function's view in place."""
    return output.clone() if output._is_view() else output


def shaped(output: Tensor, x: Tensor) -> Tensor:
    """Return the rows of an output in the shape of `x`'s."""
    return output.view(*x.shape[:-1], output.shape[-1])


def _draw_mask(x: Tensor, probability: float, dtype: torch.dtype) -> Tensor:
    """Return which inputs dropout leaves, (rows, n): those that nn.Dropout would leave now of an input of this type.

    It draws in the order in which the numbers lie in memory, so `x` must lie as the layer got it.
    """
    return flat(F.dropout(torch.ones_like(x, dtype=dtype), probability).bool())


def multiply_packed(layer: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    """Return what a `FourBitLinear` returns."""
    inner = layer.compute_dtype
    return layer.multiply(x.to(inner), None if bias is None else bias.to(inner)).to(x.dtype)


def packed_input_gradient(layer: Any, gradient: Tensor) -> Tensor:
    """Return the gradient of a `FourBitLinear`'s input, its weight unpacked for this product alone."""
    from peftlab.models.quantized_layers import unpack

    inner = layer.compute_dtype
    return (gradient.to(inner) @ unpack(layer.weight).to(inner)).to(gradient.dtype)


class Dense(NamedTuple):
    """A module's layer and tensors as they are now."""

    layer: DenseLayer
    weights: Weights


def read_dense(module: nn.Module, device: str) -> Dense | str:
    """Return what `module`, dense with or without LoRA, multiplies by now; why it cannot be done here, in one line."""
    from peft.tuners.lora import LoraLayer

    active = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    autocast = torch.get_autocast_dtype(device) if active else None
    return _read_lora(module, autocast) if isinstance(module, LoraLayer) else _read_base(module, autocast)


def _read_base(module: nn.Module, autocast: torch.dtype | None) -> Dense | str:
    if is_watched(module):
        return "a hook"
    if type(module) is nn.Linear:
        return _plain(DenseLayer(autocast=autocast), module.weight, module.bias)
    if type(module) is Conv1D:
        return _plain(DenseLayer(autocast=autocast, transposed=True), module.weight, module.bias)
    if _is_four_bit(module):
        return Dense(DenseLayer(autocast=autocast, packed=module), Weights(None, module.bias))  # type: ignore[arg-type]
    return f"a {type(module).__name__}"


def _plain(layer: DenseLayer, weight: Tensor, bias: Tensor | None) -> Dense | str:
    if hasattr(weight, "__tensor_flatten__"):  # a tensor made of others: sharded, or quantised by another library
        return f"a weight of type {type(weight).__name__}"
    return Dense(layer, Weights(weight, bias))


def _is_four_bit(module: nn.Module) -> bool:
    if type(module).__name__ not in ("FourBitLinear", "UnalignedFourBitLinear"):
        return False
    from peftlab.models.quantized_layers import FourBitLinear

    return isinstance(module, FourBitLinear)


def is_watched(module: nn.Module) -> bool:
    """Whether something watches or changes what goes through `module`: a hook, or a forward function put in place."""
    own = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(own or _has_any_global_hook() or is_replaced(module))


def _read_lora(module: Any, autocast: torch.dtype | None) -> Dense | str:
    if type(module).__name__ not in ("Linear", "Linear4bit"):
        return f"peft's {type(module).__name__}"
    base = _read_base(module.base_layer, autocast)
    if isinstance(base, str):
        return f"LoRA on {base}"
    active = [name for name in module.active_adapters if name in module.lora_A]
    if module.disable_adapters or module.merged or not active:
        return base
    if len(active) > 1:
        return "several active adapters"
    name = active[0]
    return _why_not_plain_lora(module, name) or _with_lora(module, name, base)


def _why_not_plain_lora(module: Any, name: str) -> str | None:
    variant = module.lora_variant.get(name)
    if variant is not None:
        return type(variant).__name__.removesuffix("LinearVariant")
    if module.lora_bias.get(name):
        return "a bias of LoRA's own"
    if not getattr(module, "cast_input_dtype_enabled", True):
        return "PEFT's casts are disabled"
    down, up, dropout = module.lora_A[name], module.lora_B[name], module.lora_dropout[name]
    if type(down) is not nn.Linear or type(up) is not nn.Linear or type(dropout) not in (nn.Dropout, nn.Identity):
        return f"LoRA of {type(down).__name__}, {type(up).__name__} and {type(dropout).__name__}"
    return "a hook" if any(is_watched(one) for one in (down, up, dropout)) else None


def _with_lora(module: Any, name: str, base: Dense) -> Dense:
    dropout = module.lora_dropout[name]
    probability = float(dropout.p) if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
    layer = DenseLayer(
        scale=float(module.scaling[name]),
        dropout=probability,
        transposed=base.layer.transposed,
        packed=base.layer.packed,
        autocast=base.layer.autocast,
    )
    return Dense(layer, base.weights._replace(down=module.lora_A[name].weight, up=module.lora_B[name].weight))


def fits(dense: Dense, x: Tensor) -> bool:
    """Whether `x` has a type that this layer can be multiplied by as PEFT would."""
    layer, weights = dense
    if layer.autocast is not None or layer.packed is not None:
        return x.dtype in COMPUTED
    return weights.weight is not None and x.dtype == weights.weight.dtype
