"""GELU that a model writes as a formula, computed by torch's own function, which saves its input alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import AccurateGELUActivation, FastGELUActivation, NewGELUActivation

from peftlab.speed.layers import LayerSpeedUp

FORMULAS = (NewGELUActivation, FastGELUActivation, AccurateGELUActivation)
"""transformers' formulas of GELU's approximation by tanh."""


class Activations(LayerSpeedUp):
    name: ClassVar[str] = "activation"
    does: ClassVar[str] = "GELU written as a formula is computed by torch's own function, which saves its input alone"
    layers: ClassVar[str] = "activations written as a formula"

    def covers(self, module: nn.Module) -> bool:
        return type(module) in FORMULAS

    def why_not(self, module: nn.Module) -> str | None:
        return None

    def forward_of(self, module: nn.Module) -> Callable[..., Any]:
        return forward


def forward(self: Any, input: Tensor) -> Tensor:
    """Return GELU by its approximation; by the module's own formula where nothing trains."""
    if torch.is_grad_enabled():
        return functional.gelu(input, approximate="tanh")
    return type(self).forward(self, input)  # type: ignore[no-any-return]
