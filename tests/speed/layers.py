"""Single layers of peft's with LoRA, and what a layer gives for an input: its output and every gradient."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftlab.models.quantize import quantize_
from peftlab.speed.layers import LayerSpeedUp, replace_forward
from peftlab.speed.lora_linear import LoraLinears

N_IN, N_OUT, UNALIGNED = 64, 40, 48
FORMATS = ("dense", "no bias", "transposed", "nf4", "fp4", "unaligned nf4")


class Holder(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.config: dict[str, Any] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def n_in(kind: str) -> int:
    return UNALIGNED if kind.startswith("unaligned") else N_IN


def lora_layer(kind: str = "dense", dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """Return a layer of peft's with LoRA on a base of a kind, both of its matrices different from zero."""
    torch.manual_seed(0)
    layer = Conv1D(N_OUT, N_IN) if kind == "transposed" else nn.Linear(n_in(kind), N_OUT, bias=kind != "no bias")
    holder = Holder(layer.to(dtype))
    if kind.endswith(("nf4", "fp4")):
        quantize_(holder, kind.split()[-1], compute_dtype=dtype)
    settings = {"r": 4, "lora_alpha": 6, "fan_in_fan_out": kind == "transposed", **config}
    model = get_peft_model(holder, LoraConfig(target_modules=["layer"], **settings))  # type: ignore[arg-type]
    found: Any = model.base_model.model.layer  # type: ignore[union-attr]
    for name, parameter in found.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return found.train()


def fast_copy(layer: nn.Module) -> Any:
    """Return a copy of a layer that is computed by the own function."""
    found = copy.deepcopy(layer)
    change(LoraLinears(), found)
    return found


def change(speed_up: LayerSpeedUp, layer: nn.Module) -> None:
    """Compute `layer` as the speed-up does."""
    assert speed_up.covers(layer) and speed_up.why_not(layer) is None
    replace_forward(layer, speed_up.forward_of(layer))


def results(layer: nn.Module, *inputs: torch.Tensor, autocast: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Return the layer's outputs for inputs, in one graph, and all gradients; the same dropout at every call."""
    torch.manual_seed(1)
    layer.zero_grad()
    leaves = [one.detach().requires_grad_(one.is_floating_point() and not one.dtype.is_complex) for one in inputs]
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        outputs = [layer(one) for one in leaves]
    total = sum((one.float() * torch.cos(torch.arange(one.numel())).view(one.shape)).sum() for one in outputs)
    total.backward()  # type: ignore[union-attr]
    found = {f"output {i}": one.detach() for i, one in enumerate(outputs)}
    found |= {f"input {i}": one.grad for i, one in enumerate(leaves) if one.grad is not None}
    return found | {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}


def halve(layer: nn.Module, name: str) -> None:
    """Put a function in place of the forward of a part, as other programs do: it gives half of what the part gives."""
    part: Any = layer.get_submodule(name)
    own = type(part).forward
    part.forward = lambda x: 0.5 * own(part, x)


def assert_equal(plain: dict[str, torch.Tensor], fast: dict[str, torch.Tensor], relative: float = 1e-5) -> None:
    """Compare by the norm of the difference, relative to the norm of each tensor of the plain path."""
    assert plain.keys() == fast.keys()
    for name, wanted in plain.items():
        found = fast[name]
        assert found.shape == wanted.shape and found.dtype == wanted.dtype, name
        error = (found.double() - wanted.double()).norm()
        assert error <= relative * wanted.double().norm() + 1e-30, f"{name}: {error / wanted.double().norm():.1e}"


def function_of(output: torch.Tensor) -> Any:
    """Return the function that made an output, before it was given its shape."""
    node = output.grad_fn
    return node.next_functions[0][0] if type(node).__name__ == "ViewBackward0" else node
