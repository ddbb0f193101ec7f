"""Quantising the frozen base to 4 or 8 bits: its dense layers are replaced by bitsandbytes', one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftlab.errors import MethodError, MissingRequirementError
from peftlab.models.build import head_names
from peftlab.models.dividing import divide_
from peftlab.parameters.divided import whole
from peftlab.parameters.passage import pass_text
from peftlab.parameters.shape import computes_otherwise
from peftlab.parameters.trainable import is_quantized

if TYPE_CHECKING:
    from bitsandbytes.nn import Params4bit

Dense = nn.Linear | Conv1D  # bitsandbytes' layers are nn.Linear too

# LLM.int8()'s default: input columns with larger values are computed in 16 bits.
OUTLIER_THRESHOLD = 6.0
# Weights that share one scale in the 4-bit formats.
BLOCK = 64
FORMATS = ("nf4", "fp4", "int8")


def quantize_(
    model: nn.Module,
    base_format: str,
    *,
    double_quantization: bool = True,
    compute_dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    mesh: DeviceMesh | None = None,
) -> nn.Module:
    """Replace every dense layer but the head by one with a quantised weight on `device`; return `model`.

    `base_format` is `nf4`, `fp4` or `int8`. GPT-2's transposed Conv1D layers become dense layers. Biases keep their
    type. Layers are replaced one at a time, so the peak is the plain model plus one layer.
    Where processes of a `mesh` have parts of the weights, each gathers one layer, quantises it and keeps its part.
    """
    if base_format not in FORMATS:
        raise MethodError(f"unknown quantised format {base_format!r}; known: {', '.join(FORMATS)}")
    _require_bitsandbytes()
    for name in dense_names(model):
        parent, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        plain = getattr(parent, leaf)
        quantized = _quantized(plain, base_format, double_quantization, compute_dtype, torch.device(device))
        setattr(parent, leaf, quantized)
        if mesh is not None:
            divide_(quantized, mesh)
    _mark_loaded(model, eight_bit=base_format == "int8", four_bit=base_format != "int8")
    return model


def dequantize_(model: PreTrainedModel) -> PreTrainedModel:
    """Replace every quantised layer by its plain original, with the dequantised weight; return `model`.

    The weights get the type of the embeddings. GPT-2's layers are transposed again.
    """
    with torch.device("meta"):
        originals = type(model)(model.config)
    dtype = model.get_input_embeddings().get_parameter("weight").dtype
    names = [name for name, module in model.named_modules() if is_quantized(getattr(module, "weight", None))]
    for name in names:
        parent, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        original = originals.get_submodule(name)
        assert isinstance(original, Dense), "only dense layers are quantised"
        setattr(parent, leaf, _plain(getattr(parent, leaf), original, dtype))
    _mark_loaded(model, eight_bit=False, four_bit=False)
    return model


def _mark_loaded(model: Any, *, eight_bit: bool, four_bit: bool) -> None:
    """Set the two attributes by which PEFT selects its quantised layers; no class declares them, hence `Any`."""
    model.is_loaded_in_8bit, model.is_loaded_in_4bit = eight_bit, four_bit


def _plain(quantized: nn.Linear, original: Dense, dtype: torch.dtype) -> nn.Module:
    from peft.utils.integrations import dequantize_module_weight

    from peftlab.models.quantized_layers import unpack

    packed = quantized.weight
    is_four_bit = type(packed).__name__ == "Params4bit"
    weight = unpack(cast("Params4bit", packed)) if is_four_bit else dequantize_module_weight(quantized)
    weight = weight.detach().to(dtype)
    original.weight = nn.Parameter(weight.T.contiguous() if isinstance(original, Conv1D) else weight, False)
    if quantized.bias is not None:
        # A trained bias stays in float32, a frozen one gets the weight's type.
        bias = quantized.bias
        original.bias = nn.Parameter(bias.data if bias.requires_grad else bias.data.to(dtype), bias.requires_grad)
    return original.train(quantized.training)


def _require_bitsandbytes() -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingRequirementError(f"a quantised base needs bitsandbytes: {error}") from error


def dense_names(model: nn.Module) -> list[str]:
    """Return the names of the dense layers that are quantised; names, because references would keep replaced layers.

    The head stays plain, what transformers too keeps so (T5's `wo`, whose input T5 casts to the weight's type), and
    layers whose packed weight a model would read without calling the layer: a table of positions (LayoutLMv3), the
    steps of Mamba, a type that an input is cast to (DeepSeek's indexer).
    """
    heads = {name.rpartition(".")[0] for name in head_names(model)}
    # An output head that is tied to the embedding has no parameter of its own: recognise it by its weight.
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    read = pass_text(model).read
    return [
        name
        for name, module in model.named_modules()
        if (isinstance(module, Conv1D) or isinstance(module, nn.Linear) and not computes_otherwise(module))
        and name not in heads
        and id(module.weight) not in embedded
        and name not in read
        and not kept.intersection(name.split("."))
    ]


def _quantized(
    layer: Dense, base_format: str, double: bool, compute_dtype: torch.dtype, device: torch.device
) -> nn.Module:
    weight = whole(layer.weight.detach())
    weight = weight.T.contiguous() if isinstance(layer, Conv1D) else weight
    if base_format == "int8":
        new = _int8(weight, device)
    else:
        new = _four_bit(weight, base_format, double, compute_dtype, device)
    if layer.bias is not None:
        new.bias = nn.Parameter(layer.bias.data.to(device), layer.bias.requires_grad)
    return new.train(layer.training)


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
