"""The bottleneck adapter, U·f(D·x + d) + u, and the modules that apply one to a layer's output."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from peftlab.errors import MethodError

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
NEAR_IDENTITY_STD = 1e-3


class Bottleneck(nn.Module):
    """U·f(D·x + d) + u in float32: (..., width_in) → (..., width_out), without the residual.

    `init` sets the initial U: `zero`, or `near-identity` (normal, standard deviation 1e-3). D is
    initialised as in nn.Linear, both biases are zero. The result has the input's dtype, unless autocast sets another.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        activation: str = "gelu",
        init: str = "zero",
        width_out: int | None = None,
        device: torch.device | None = None,
    ):
        super().__init__()
        linear = partial(nn.Linear, device=device, dtype=torch.float32)
        self.down = linear(width_in, width)
        self.up = linear(width, width_in if width_out is None else width_out)
        self.activation = activation
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)
        nn.init.normal_(self.up.weight, std=NEAR_IDENTITY_STD if init == "near-identity" else 0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
        inputs = x if autocast else x.to(self.down.weight.dtype)
        update = self.up(ACTIVATIONS[self.activation](self.down(inputs)))
        return update if autocast else update.to(x.dtype)

    def extra_repr(self) -> str:
        return f"activation={self.activation}"


class Adapted(nn.Module):
    """`base_layer` with a bottleneck on its output: y + adapter(y); of a tuple, y is the first element."""

    def __init__(self, base_layer: nn.Module, adapter: Bottleneck):
        super().__init__()
        self.base_layer = base_layer
        self.adapter = adapter

    def forward(self, *args, **kwargs):
        output = self.base_layer(*args, **kwargs)
        if isinstance(output, tuple):
            return (output[0] + self.adapter(output[0]), *output[1:])
        return output + self.adapter(output)


class ParallelAdapted(nn.Module):
    """The last module of a feed-forward, with a bottleneck of the feed-forward's input added to its output.

    Not every family has one feed-forward module (OPT and BERT have none), so a hook on the first module stores the
    bottleneck's output here and this module adds it: both within one call of the layer, also when gradient
    checkpointing recomputes it.
    """

    def __init__(self, base_layer: nn.Module, adapter: Bottleneck):
        super().__init__()
        self.base_layer = base_layer
        self.adapter = adapter
        self.update: torch.Tensor | None = None

    def forward(self, *args, **kwargs):
        output = self.base_layer(*args, **kwargs)
        update, self.update = self.update, None
        if isinstance(output, tuple):
            return (output[0] + update, *output[1:])
        return output + update


class _Reader:
    """Forward pre-hook that applies an adapter to a module's input; a class, so that deepcopy of a model copies it."""

    def __init__(self, target: ParallelAdapted):
        self.target = target

    def __call__(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.target.update = self.target.adapter(args[0])


def insert_bottleneck(model: nn.Module, module: str, entry: str | None, build: Callable[[], Bottleneck]) -> None:
    """Add a bottleneck to the output of `module`; with `entry`, one that reads the input of `entry`.

    Raises MethodError if `module` is a container, which has no output.
    """
    base_layer = model.get_submodule(module)
    if isinstance(base_layer, (nn.ModuleList, nn.ModuleDict)):
        raise MethodError(f"method.modules: {module} is a list of modules and has no output to adapt")
    parent, _, leaf = module.rpartition(".")
    setattr(model.get_submodule(parent), leaf, _adapted(model, base_layer, entry, build()))


def _adapted(model: nn.Module, base_layer: nn.Module, entry: str | None, adapter: Bottleneck) -> nn.Module:
    if entry is None:
        return Adapted(base_layer, adapter)
    adapted = ParallelAdapted(base_layer, adapter)
    model.get_submodule(entry).register_forward_pre_hook(_Reader(adapted))
    return adapted
