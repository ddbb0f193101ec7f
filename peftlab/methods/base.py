"""What every method is: a frozen config that can check, count, apply, save and load itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from peftlab.patterns import matching
from peftlab.shapes import ModelShape, ParameterSite

if TYPE_CHECKING:
    from torch import nn


class Method(BaseModel):
    """A fine-tuning method. `apply` sets `requires_grad`, and nothing else decides what trains."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    title: ClassVar[str]
    mergeable: ClassVar[bool] = False
    supports_gradient_checkpointing: ClassVar[bool] = True

    type: str
    unfreeze: tuple[str, ...] = ()
    """Patterns over parameter names that train as well (`classifier`, `embed_tokens`, `*norm*`)."""
    freeze: tuple[str, ...] = ()
    """Patterns over parameter names that stay frozen, applied last."""

    @property
    def base_format(self) -> str:
        """How the frozen base is stored: `plain`, `nf4`, `fp4` or `int8`."""
        return "plain"

    @property
    def starts_as_base(self) -> bool:
        """Whether the output equals the base model's before the first step."""
        return True

    def check(self, shape: ModelShape) -> list[tuple[str, str]]:
        """Return (field, message) for everything that cannot work on a model of this shape."""
        raise NotImplementedError

    def trained_base(self, shape: ModelShape) -> set[str]:
        """Return the names of the base parameters that this method itself trains."""
        return set()

    def added_parameters(self, shape: ModelShape) -> tuple[ParameterSite, ...]:
        """Return the parameters that this method adds to a model of this shape."""
        return ()

    def trainable_sites(self, shape: ModelShape) -> list[ParameterSite]:
        """Return every parameter that trains, from sizes alone, after `unfreeze` and `freeze`."""
        added = self.added_parameters(shape)
        sites = {site.name: site for site in (*shape.parameters, *added)}
        wanted = self.trained_base(shape) | shape.fresh | {site.name for site in added}
        wanted |= set(matching(self.unfreeze, sites))
        wanted -= set(matching(self.freeze, sites))
        return [site for name, site in sites.items() if name in wanted]

    def count_trainable(self, shape: ModelShape) -> int:
        """Return the number of trainable parameters on a model of this shape, without building it."""
        return sum(site.count for site in self.trainable_sites(shape))

    def apply(self, model: nn.Module, fresh: frozenset[str] = frozenset()) -> nn.Module:
        """Add this method's modules to `model` and set `requires_grad` on exactly what trains.

        `fresh` names parameters that no checkpoint filled (a new head): they train with every method.
        Returns the model to use from now on (PEFT's methods wrap it). Works on the meta device.
        Raises MethodError where the method cannot be applied.
        """
        raise NotImplementedError

    def save(self, model: nn.Module, folder: Path, context: dict[str, Any]) -> None:
        """Write what trained to `folder` as safetensors and JSON; `context` describes the base model."""
        raise NotImplementedError

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        """Return the base `model` with what `save` wrote. Raises StorageError unless all keys match."""
        raise NotImplementedError
