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
from peftlab.models.quantizer import PACKED, Dense, Quantizer
from peftlab.parameters.passage import pass_text
from peftlab.parameters.shape import computes_otherwise
from peftlab.parameters.trainable import is_quantized

if TYPE_CHECKING:
    from bitsandbytes.nn import Params4bit

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
    quantizer = make_quantizer(base_format, double_quantization, compute_dtype, device, mesh)
    return replace_dense_(model, quantizer)


def make_quantizer(
    base_format: str,
    double_quantization: bool,
    compute_dtype: torch.dtype,
    device: torch.device | str,
    mesh: DeviceMesh | None = None,
) -> Quantizer:
    """Return how layers are quantised. Raises MethodError for an unknown format, MissingRequirementError."""
    if base_format not in FORMATS:
        raise MethodError(f"unknown quantised format {base_format!r}; known: {', '.join(FORMATS)}")
    _require_bitsandbytes()
    return Quantizer(base_format, double_quantization, compute_dtype, torch.device(device), mesh)


def replace_dense_(model: nn.Module, quantizer: Quantizer) -> nn.Module:
    """Replace every dense layer but the head, as `quantize_` does; return `model`.

    Those that were packed when they were read are put in their places.
    """
    for name in dense_names(model):
        parent, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        setattr(parent, leaf, quantizer.quantized(getattr(parent, leaf)))
    assert not any(hasattr(one, PACKED) for one in model.parameters()), "a layer was packed that is not quantised"
    _mark_loaded(model, eight_bit=quantizer.base_format == "int8", four_bit=quantizer.base_format != "int8")
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
