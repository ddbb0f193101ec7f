"""The parameters of a model by canonical name, and which of them train: the only predicate is `requires_grad`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod

from torch import Tensor, nn

from peftlab.errors import MethodError, nearest
from peftlab.parameters.divided import whole_shape
from peftlab.patterns import canonical_name


def find_base(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the dotted path and the module of the plain model inside any wrapper ("" if it is `model` itself).

    The plain model is the outermost transformers model, or what PEFT wraps, or `model`.
    """
    from transformers import PreTrainedModel

    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            return path, module
    return "", model


def find_body(model: nn.Module) -> nn.Module | None:
    """Return the part of a transformers model below its head, or None where there is none."""
    plain = find_base(model)[1]
    body = getattr(plain, getattr(plain, "base_model_prefix", None) or "", None)
    if not isinstance(body, nn.Module) and getattr(getattr(plain, "config", None), "is_encoder_decoder", False):
        body = getattr(plain, "decoder", None)  # T5 has its encoder and decoder beside the head
    return body if isinstance(body, nn.Module) and body is not plain else None


def canonical_in(model: nn.Module) -> Callable[[str], str]:
    """Return a function from names inside `model` to canonical names: those of the plain model.

    The path of the plain model is found in `model`, not guessed from names: PEFT wraps a model in
    `base_model.model.` for LoRA but in `base_model.` for prefixes, and names in plain models begin with `model.` too.
    """
    path, _ = find_base(model)
    prefix = path + "." if path else ""

    def canonical(name: str) -> str:
        if prefix and name.startswith(prefix):
            # The plain model's own first component may be `base_model` or `module`: do not strip it.
            return canonical_name("." + name.removeprefix(prefix))[1:]
        return canonical_name(name)

    return canonical


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return every parameter by canonical name, a tied one once, without the originals that PEFT keeps as copies."""
    canonical = canonical_in(model)
    return {
        canonical(name): parameter
        for name, parameter in model.named_parameters()
        if ".original_module." not in f".{name}"
    }


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by canonical name, a tied one once."""
    return {name: parameter for name, parameter in named_parameters(model).items() if parameter.requires_grad}


def kept_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that a saved model contains, by canonical name: what a forward pass in training may move.

    Few language models have one (I-BERT's ranges of activations); a batch norm's statistics are the usual case.
    """
    canonical = canonical_in(model)
    return {
        canonical(f"{path}.{name}" if path else name): buffer
        for path, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    }


def set_buffers(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Set the buffers of a model that have a value, in place."""
    for name, buffer in kept_buffers(model).items():
        if name in values:
            buffer.copy_(values[name])


def is_quantized(parameter: nn.Parameter | None) -> bool:
    """Whether the parameter is one of bitsandbytes' 4- or 8-bit ones, quantised or about to be, or a part of one."""
    return type(parameter).__name__ in ("Params4bit", "Int8Params") or hasattr(parameter, "quant_state")


def logical_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Return a parameter's unpacked shape; a packed 4-bit weight stores two values per byte."""
    state = getattr(parameter, "quant_state", None)
    return tuple(state.shape) if state is not None else whole_shape(parameter)


def logical_count(parameter: nn.Parameter) -> int:
    """Return the number of values in a parameter's unpacked shape."""
    return prod(logical_shape(parameter))


def freeze_all(model: nn.Module) -> None:
    """Freeze all parameters, the originals that PEFT keeps as copies included."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def set_trainable(model: nn.Module, names: Iterable[str]) -> None:
    """Set `requires_grad` for exactly the parameters of these canonical names.

    Raises MethodError for a name that the model does not have and for a quantised weight.
    """
    parameters, names = named_parameters(model), set(names)
    for name in sorted(names):
        if name not in parameters:
            raise MethodError(f"the model has no parameter {name!r}{nearest(name, parameters)}")
        if is_quantized(parameters[name]):
            raise MethodError(
                f"{name} is quantised and cannot train; freeze it, or use a method whose base is not quantised"
            )
    freeze_all(model)
    for name in names:
        parameters[name].requires_grad_(True)
