"""Dense layers with a packed weight, made of plain ones: from a whole weight, or from this process's rows of one.

Blocks of the 4-bit formats are independent, so that rows which are whole blocks give the bytes that they have in the
whole weight. Scales that are quantised again depend on all of them, and are made when the processes have joined
theirs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from peftlab.parameters.divided import divide_, own_part, replace_, rows_as_divided, whole

Dense = nn.Linear | Conv1D  # bitsandbytes' layers are nn.Linear too

# LLM.int8()'s default: input columns with larger values are computed in 16 bits.
OUTLIER_THRESHOLD = 6.0
# Weights that share one scale in the 4-bit formats, and scales that share one where they are quantised too.
BLOCK = 64
SCALE_BLOCK = 256
# What a weight without memory has that was packed when it was read: its new layer.
PACKED = "_peftlab_packed"
# What it has once that layer is in a place.
TAKEN = "_peftlab_taken"


@dataclass(frozen=True)
class Quantizer:
    """How dense layers are quantised: the format, whether its scales are too, the type computed in, and the device.

    Where processes of a `mesh` have parts of the weights, a packed one is divided by its bytes.
    """

    base_format: str
    double: bool
    compute_dtype: torch.dtype
    device: torch.device
    mesh: DeviceMesh | None = None

    def describe(self) -> str:
        """Return the settings as a saved run names them."""
        double = ", double" if self.double and self.base_format != "int8" else ""
        return f"{self.base_format}{double}, computes in {self.compute_dtype}"

    def takes_rows(self, layer: nn.Module) -> bool:
        """Return whether a process can pack its rows of a layer's weight alone: they are whole blocks, equally many."""
        if self.mesh is None or self.base_format == "int8" or isinstance(layer, Conv1D):
            return False
        n_out, n_in = layer.get_parameter("weight").shape
        return n_out % self.mesh.size() == 0 and n_out // self.mesh.size() * n_in % BLOCK == 0

    def pack_read(self, layer: Dense) -> None:
        """Pack the weight that a layer was given, whole or by this process's rows, and keep it until `quantized`."""
        weight = layer.weight.detach()
        if isinstance(weight, DTensor) and self.takes_rows(layer):
            new = self._packed(own_part(weight), double=False)
        else:
            new = self._of_whole(layer)
        empty = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype, device="meta"), layer.weight.requires_grad)
        vars(empty).update(vars(layer.weight) | {PACKED: new})
        layer.weight = empty

    def quantized(self, layer: Dense) -> nn.Module:
        """Return the layer that replaces a plain one. All processes of a mesh must call this together."""
        new = _take_packed(layer.weight) or self._of_whole(layer)
        if not isinstance(new.weight, DTensor) and self.mesh is not None:
            self._join(new, layer.weight.shape)
        if layer.bias is not None:
            new.bias = nn.Parameter(layer.bias.data.to(self.device), layer.bias.requires_grad)
            if self.mesh is not None:
                divide_(new, self.mesh)
        return new.train(layer.training)

    def _of_whole(self, layer: Dense) -> Any:
        weight = whole(layer.weight.detach())
        new = self._packed(weight.T.contiguous() if isinstance(layer, Conv1D) else weight, self.double)
        if self.mesh is not None:
            divide_(new, self.mesh)
        return new

    def _packed(self, weight: torch.Tensor, double: bool) -> nn.Module:
        if self.base_format == "int8":
            return _int8(weight, self.device)
        return _four_bit(weight, self.base_format, double, self.compute_dtype, self.device)

    def _join(self, layer: Any, shape: torch.Size) -> None:
        """Make the packed rows of a layer this process's part of a weight of `shape`, with the scales of all."""
        assert self.mesh is not None
        state, rows = layer.weight.quant_state, layer.weight
        parts = [torch.empty_like(state.absmax) for _ in range(self.mesh.size())]
        distributed.all_gather(parts, state.absmax, self.mesh.get_group())
        rows.compress_statistics, layer.out_features = self.double, shape[0]
        divided = rows_as_divided(rows.data, torch.Size((self.mesh.size() * len(rows), *rows.shape[1:])), self.mesh)
        new: Any = replace_(rows, divided, [(layer, "weight")])
        new.quant_state = layer.quant_state = _with_scales(state, torch.cat(parts), shape, self.double)


def _take_packed(weight: torch.Tensor) -> Any:
    """Return the layer that was made of a weight when it was read, None if none was.

    Each place of a tied weight gets a layer of its own.
    """
    packed = getattr(weight, PACKED, None)
    if packed is None:
        return None
    if not hasattr(weight, TAKEN):
        vars(weight)[TAKEN] = True
        return packed
    copied = copy.deepcopy(packed)
    for own, former in zip(copied.parameters(), packed.parameters(), strict=True):
        vars(own).update({name: value for name, value in vars(former).items() if name not in vars(own)})
    return copied


def _with_scales(state: Any, scales: torch.Tensor, shape: torch.Size, double: bool) -> Any:
    """Return how a weight of `shape` is packed that has these scales, as bitsandbytes 0.50's `quantize_4bit` does."""
    from bitsandbytes.functional import QuantState, quantize_blockwise

    more: dict[str, Any] = {}
    if double:
        more["offset"] = scales.mean()
        scales, more["state2"] = quantize_blockwise(scales - more["offset"], blocksize=SCALE_BLOCK)
    return QuantState(
        absmax=scales,
        shape=shape,
        dtype=state.dtype,
        blocksize=state.blocksize,
        code=state.code,
        quant_type=state.quant_type,
        **more,
    )


def _four_bit(
    weight: torch.Tensor, base_format: str, double: bool, compute_dtype: torch.dtype, device: torch.device
) -> nn.Module:
    from bitsandbytes.nn import Params4bit

    from peftlab.models.quantized_layers import FourBitLinear, UnalignedFourBitLinear

    n_out, n_in = weight.shape
    layer = UnalignedFourBitLinear if device.type == "cpu" and n_in % BLOCK else FourBitLinear
    new = layer(n_in, n_out, bias=False, compute_dtype=compute_dtype, device="meta")
    packed = Params4bit(
        weight.to(device), requires_grad=False, compress_statistics=double, quant_type=base_format, module=new
    )
    new.weight = packed.to(device)  # type: ignore[misc]  # bitsandbytes declares `self` as a plain tensor
    return new


def _int8(weight: torch.Tensor, device: torch.device) -> nn.Module:
    from bitsandbytes.nn import Int8Params

    from peftlab.models.quantized_layers import EightBitLinear

    n_out, n_in = weight.shape
    new = EightBitLinear(n_in, n_out, bias=False, has_fp16_weights=False, threshold=OUTLIER_THRESHOLD, device="meta")
    # Int8Params quantises when its weight is moved from the CPU.
    plain = Int8Params(weight if weight.is_meta else weight.cpu(), requires_grad=False, has_fp16_weights=False)
    new.weight = plain.to(device)  # type: ignore[misc]  # as in `_four_bit`
    return new
