"""Switches that change layers one by one: each is changed, or why it is not is said."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from types import MethodType
from typing import Any, ClassVar

from torch import nn

from peftlab.recipe.schema import Recipe
from peftlab.speed.base import Decline, SpeedUp


class LayerSpeedUp(SpeedUp):
    """A speed-up of every layer of a kind for which it can be done."""

    layers: ClassVar[str]
    """What the layers are called."""

    @abstractmethod
    def covers(self, module: nn.Module) -> bool:
        """Return whether a module is such a layer."""

    @abstractmethod
    def why_not(self, module: nn.Module) -> str | None:
        """Return why it cannot be done for one of them, in a few words; None if it can. The layer is not changed."""

    @abstractmethod
    def forward_of(self, module: nn.Module) -> Callable[..., Any]:
        """Return the function that computes a layer for which it can be done; it belongs to this speed-up's file."""

    def decline(self, model: nn.Module, recipe: Recipe) -> Decline | None:
        reasons = self._reasons(model)
        if not reasons:
            return Decline(f"the model has no {self.layers}")
        return None if None in reasons.values() else Decline(_describe(reasons, self.layers))

    def apply(self, model: nn.Module, recipe: Recipe) -> str:
        reasons = self._reasons(model)
        for name, reason in reasons.items():
            if reason is None:
                replace_forward(model.get_submodule(name), self.forward_of(model.get_submodule(name)))
        return "" if set(reasons.values()) == {None} else _describe(reasons, self.layers)

    def remove(self, model: nn.Module) -> None:
        for module in model.modules():
            if self.covers(module):
                restore_forward(module, type(self).__module__)

    def _reasons(self, model: nn.Module) -> dict[str, str | None]:
        layers = {name: one for name, one in model.named_modules() if self.covers(one)}
        return {
            name: "its forward is replaced" if "forward" in one.__dict__ else self.why_not(one)
            for name, one in layers.items()
        }


def replace_forward(module: nn.Module, function: Callable[..., Any]) -> None:
    """Compute `module` by `function`, which gets it as its first argument, from now on; a copy by the copy's own."""
    module.forward = MethodType(function, module)  # type: ignore[method-assign]


def restore_forward(module: nn.Module, file: str) -> None:
    """Compute `module` by its class again, where a function of `file` computes it."""
    method = module.__dict__.get("forward")
    if isinstance(method, MethodType) and method.__func__.__module__ == file:
        del module.__dict__["forward"]


def is_replaced(module: nn.Module) -> bool:
    """Return whether somebody else's function computes `module` in place of its class; speed-ups know each other's."""
    method = module.__dict__.get("forward")
    own = isinstance(method, MethodType) and method.__func__.__module__.startswith(f"{__package__}.")
    return method is not None and not own


def _describe(reasons: dict[str, str | None], layers: str) -> str:
    """Return a line such as "210 of 211 LoRA layers, not lm_head: DoRA"."""
    done = sum(reason is None for reason in reasons.values())
    counts = Counter(reason for reason in reasons.values() if reason is not None)
    first = {reason: name for name, reason in reversed(reasons.items())}
    others = (f"{first[why]}{f' and {n - 1} more' if n > 1 else ''}: {why}" for why, n in counts.items())
    return f"{done} of {len(reasons)} {layers}, not {', '.join(others)}"
