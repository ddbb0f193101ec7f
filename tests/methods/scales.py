"""A seventh method in one file, as another package would write it: scales of what dense layers give, h = s · W·x."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from peftlab.methods import Method, Problems, Sizes
from peftlab.shapes import LinearSite, ModelShape, ParameterSite

if TYPE_CHECKING:
    from torch import nn


class Scales(Method):
    """Scales that start at one, for the feed-forward's output in the last layers. Trains s."""

    title: ClassVar[str] = "learned scales"
    suggested_when_memory_is_short: ClassVar[bool] = True

    type: Literal["scales"] = "scales"
    layers: int = Field(2, ge=1)
    """How many of the last layers get scales."""
    groups: int = Field(1, ge=1)
    """How many parts of the output have a scale of their own."""
    whole: bool = False
    """Give every output its own scale, whatever `groups` says."""

    def check_settings(self) -> Problems:
        contradiction = [("groups", "has no effect with `whole: true`")] if self.whole and self.groups > 1 else []
        return super().check_settings() + contradiction

    def check_own(self, shape: ModelShape) -> Problems:
        if self.layers > shape.layers:
            return [("layers", f"the model has {shape.layers} layers, not {self.layers}")]
        return []

    def decays(self, name: str, shape: tuple[int, ...]) -> bool:
        return not name.endswith(".factor") and super().decays(name, shape)

    def multiplies(self, site: ParameterSite) -> bool:
        return not site.name.endswith(".factor") and super().multiplies(site)

    def added_parameters(self, shape: ModelShape) -> tuple[ParameterSite, ...]:
        return tuple(
            ParameterSite(f"{site.name}.factor", (1, self._width(site)), "adapter", site.layer)
            for site in shape.linears
            if site.role == "feed-forward-output" and (site.layer or 0) >= shape.layers - self.layers
        )

    def _width(self, site: LinearSite) -> int:
        return site.n_out if self.whole else self.groups

    def sizes(self, shape: ModelShape) -> Sizes:
        return Sizes("layers", range(1, shape.layers + 1))

    def insert(self, model: nn.Module, shape: ModelShape) -> nn.Module:
        import torch

        for site in self.added_parameters(shape):
            linear = model.get_submodule(site.name.removesuffix(".factor"))
            ones = torch.ones(site.shape, device=next(linear.parameters()).device)
            linear.register_parameter("factor", torch.nn.Parameter(ones))
            linear.register_forward_hook(scale_output)
        return model


def scale_output(module: Any, inputs: Any, output: Any) -> Any:
    """Forward hook: multiply every part of the output by its scale."""
    parts = output.unflatten(-1, (module.factor.shape[1], -1))
    return (parts * module.factor.to(output.dtype).unsqueeze(-1)).flatten(-2)
