"""Bottleneck adapters (https://arxiv.org/abs/1902.00751): h ← h + U·f(D·h + d) + u. Trains D, d, U, u."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from peftlab.architectures import ARCHITECTURES, Architecture, find_architecture
from peftlab.methods.base import Method, Problems, Sizes
from peftlab.methods.candidates import describe_candidates, outermost
from peftlab.shapes import ModelShape, ParameterSite

if TYPE_CHECKING:
    from torch import nn

DEFAULT_REDUCTION = 16.0
LARGEST_BOTTLENECK = 1_000_000_000


@dataclass(frozen=True)
class Place:
    """One adapter: the module whose output it changes, its widths, and for a parallel one what it reads."""

    module: str
    width_in: int
    width_out: int
    layer: int | None
    entry: str | None = None


class Adapters(Method):
    """Small bottlenecks inside every layer, near the identity at the start.

    Each sits before the residual addition, and where the base has dropout on a sub-layer's output, after it.
    A bottleneck is `adapter` beside the module that it changes: `….mlp.adapter.down.weight`.
    """

    title: ClassVar[str] = "bottleneck adapters"
    pattern_fields: ClassVar[tuple[str, ...]] = (*Method.pattern_fields, "modules")

    type: Literal["adapters"] = "adapters"
    bottleneck: int | None = Field(None, ge=1)
    """Width r of the bottleneck: each adapter has 2·d·r + r + d parameters."""
    reduction_factor: float | None = Field(None, gt=0)
    """The width as hidden size divided by this; not both are given (16 if neither is)."""
    placement: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    """After attention and feed-forward, after feed-forward only (https://arxiv.org/abs/2005.00247), or beside
    the feed-forward (https://arxiv.org/abs/2110.04366)."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu"
    """The non-linearity f."""
    init: Literal["zero", "near-identity"] = "zero"
    """Start of U: zero (exactly the base model) or normal with a standard deviation of 1e-3, as Houlsby's."""
    train_norms: bool = False
    """Train the normalisation layers as well, as Houlsby et al. do."""
    modules: tuple[str, ...] = ()
    """Patterns over module names whose output is adapted instead, for architectures that peftlab does not know."""

    @model_validator(mode="after")
    def _one_width(self) -> Adapters:
        if self.bottleneck is not None and self.reduction_factor is not None:
            raise ValueError("give bottleneck or reduction_factor, not both")
        return self

    @property
    def starts_as_base(self) -> bool:
        return self.init == "zero"

    def width(self, shape: ModelShape) -> int:
        """Return the bottleneck's width on a model of this shape."""
        factor = self.reduction_factor or DEFAULT_REDUCTION
        return self.bottleneck or max(1, round(shape.hidden_size / factor))

    def check_own(self, shape: ModelShape) -> Problems:
        if self.width(shape) > LARGEST_BOTTLENECK:
            return [("reduction_factor", f"makes the bottleneck wider than {LARGEST_BOTTLENECK:,}; 2 to 64 are usual")]
        if self.modules:
            names = _module_names(shape)
            return [
                ("modules", f"{pattern!r} matches no module; {describe_candidates(pattern, names)}")
                for pattern in self.modules
                if not outermost(pattern, names)
            ]
        if find_architecture(shape) is None:
            return [("type", _unknown(shape))]
        if not self._places(shape):
            return [("type", f"no layer of this {shape.model_type} model was recognised; name `modules` to adapt")]
        return []

    def trained_base(self, shape: ModelShape) -> set[str]:
        norms = {site.name for site in shape.parameters if self.train_norms and site.kind == "norm"}
        return norms - shape.idle_parameters

    def added_parameters(self, shape: ModelShape) -> tuple[ParameterSite, ...]:
        width = self.width(shape)
        return tuple(
            ParameterSite(f"{place.module}.adapter.{name}", size, "adapter", place.layer)
            for place in self._places(shape)
            for name, size in (
                ("down.weight", (width, place.width_in)),
                ("down.bias", (width,)),
                ("up.weight", (place.width_out, width)),
                ("up.bias", (place.width_out,)),
            )
        )

    def sizes(self, shape: ModelShape) -> Sizes:
        """Return widths up to that of what they narrow; a wider one would not narrow it."""
        widest = max((min(place.width_in, place.width_out) for place in self._places(shape)), default=0)
        return Sizes("bottleneck", range(1, widest + 1))

    def resized(self, field: str, value: Any) -> Self:
        return self.model_copy(update={field: value, "reduction_factor": None})

    def _places(self, shape: ModelShape) -> list[Place]:
        if self.modules:
            return self._named_places(shape)
        family = find_architecture(shape)
        if family is None:
            return []
        return [
            place
            for layer, (prefix, architecture) in _layer_prefixes(shape, family).items()
            for place in self._places_in(layer, prefix, architecture, shape.hidden_size)
        ]

    def _places_in(self, layer: int, prefix: str, architecture: Architecture, size: int) -> list[Place]:
        """Return the places in one layer: after each attention (also that to an encoder) and the feed-forward."""
        exits = [architecture.feed_forward_exit]
        if self.placement == "houlsby":
            attentions = (architecture.attention_exit, architecture.cross_attention_exit)
            exits = [*(one for one in attentions if one is not None), *exits]
        entry = f"{prefix}.{architecture.feed_forward_entry}" if self.placement == "parallel" else None
        return [Place(f"{prefix}.{name}", size, size, layer, entry) for name in exits]

    def _named_places(self, shape: ModelShape) -> list[Place]:
        names, linears = _module_names(shape), {site.name: site for site in shape.linears}
        layers = {name: site.layer for site in shape.parameters for name in _prefixes(site.name)}
        found = dict.fromkeys(name for pattern in self.modules for name in outermost(pattern, names))
        return [self._named_place(name, layers[name], linears, shape) for name in found]

    def _named_place(self, name: str, layer: int | None, linears: dict, shape: ModelShape) -> Place:
        linear = linears.get(name)
        output = linear.n_out if linear else shape.hidden_size
        parallel = self.placement == "parallel"
        width_in = linear.n_in if linear and parallel else shape.hidden_size if parallel else output
        return Place(name, width_in, output, layer, name if parallel else None)

    def insert(self, model: nn.Module, shape: ModelShape) -> nn.Module:
        from functools import partial

        from peftlab.nn.bottleneck import Bottleneck, insert_bottleneck

        device = next(model.parameters()).device
        for place in self._places(shape):
            build = partial(
                Bottleneck,
                place.width_in,
                self.width(shape),
                self.activation,
                self.init,
                width_out=place.width_out,
                device=device,
            )
            insert_bottleneck(model, place.module, place.entry, build)
        return model


def _layer_prefixes(shape: ModelShape, family: Architecture) -> dict[int, tuple[str, Architecture]]:
    """Return each layer's own name and its modules.

    The name is what a known projection's name has before its name in the layer; a decoder's layer is one with a
    projection that only they have.
    """
    found: dict[int, tuple[str, Architecture]] = {}
    for architecture in filter(None, (family, family.decoder)):
        own = [name for name in architecture.roles if architecture is family or name not in family.roles]
        found |= {
            site.layer: (site.name.removesuffix(f".{inside}"), architecture)
            for site in shape.linears
            if site.layer is not None and site.name not in shape.passage.idle
            for inside in own
            if site.name.endswith(f".{inside}")
        }
    return found


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _module_names(shape: ModelShape) -> list[str]:
    """Return the modules that have parameters, parents first."""
    return list(dict.fromkeys(prefix for site in shape.parameters for prefix in _prefixes(site.name)))


def _unknown(shape: ModelShape) -> str:
    return (
        f"the layers of {shape.model_type or 'this model'!r} are of a build that peftlab does not know (it knows those "
        f"of {len(ARCHITECTURES)} families and all that are built like Llama's); name the modules whose output is "
        "adapted, `modules: [...]`, or use lora"
    )
