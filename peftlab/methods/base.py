"""What every method is: a frozen config that can check, count, apply, save and load itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict

from peftlab.errors import MethodError
from peftlab.patterns import matches, matching, unmatched
from peftlab.shapes import ModelShape, ParameterSite
from peftlab.tasks import task_of

if TYPE_CHECKING:
    from torch import Tensor, nn

Problems = list[tuple[str, str]]
TRAINED_BYTES = 4


class Sizes(NamedTuple):
    """The sizes that a method can have on one model: the values of one field, the smallest first.

    `graded` tells steps of one scale (ranks, widths, layers) from a choice among a few.
    """

    field: str
    values: Sequence[Any]
    graded: bool = True


class Method(BaseModel):
    """A fine-tuning method. `apply` sets `requires_grad`, and nothing else decides what trains.

    A subclass says what cannot work (`check_own`), which base parameters it trains (`trained_base`), which it
    adds (`added_parameters`) and how (`insert`), and which tensors it stores (`stored_tensors`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    title: ClassVar[str]
    mergeable: ClassVar[bool] = False
    supports_gradient_checkpointing: ClassVar[bool] = True
    weights_file: ClassVar[str] = "adapter.safetensors"
    stores: ClassVar[Literal["trainable", "all"]] = "trainable"

    type: str
    unfreeze: tuple[str, ...] = ()
    """Patterns over parameter names that train as well (`classifier`, `embed_tokens`, `*norm*`)."""
    freeze: tuple[str, ...] = ()
    """Patterns over parameter names that stay frozen, applied last; a new head trains nevertheless."""

    @property
    def base_format(self) -> str:
        """How the frozen base is stored: `plain`, `nf4`, `fp4` or `int8`."""
        return "plain"

    @property
    def base_storage(self) -> dict[str, Any]:
        """How the base must be stored, as keyword arguments of `models.load.load_model`."""
        return {"base_format": self.base_format}

    @property
    def virtual_tokens(self) -> int:
        """Positions that the method takes beside a row's own tokens."""
        return 0

    @property
    def starts_as_base(self) -> bool:
        """Whether the output equals the base model's before the first step."""
        return True

    def check_own(self, shape: ModelShape) -> Problems:
        """Return (field, message) for what this method cannot do on a model of this shape."""
        return []

    def check(self, shape: ModelShape) -> Problems:
        """Return (field, message) for everything that cannot work on a model of this shape."""
        return self.check_own(shape) or self._check_patterns(shape)

    def _check_patterns(self, shape: ModelShape) -> Problems:
        names = [site.name for site in (*shape.parameters, *self.added_parameters(shape))]
        problems = [
            (field, f"{pattern!r} matches no parameter; {_tied(pattern, shape)}{describe_candidates(pattern, names)}")
            for field, patterns in (("unfreeze", self.unfreeze), ("freeze", self.freeze))
            for pattern in unmatched(patterns, names)
        ]
        old = [name for name in names if name not in shape.fresh]
        for pattern in unmatched(self.freeze, old) if not problems else ():
            problems.append(("freeze", f"{pattern!r} matches only the new head, which always trains"))
        if not problems and not self.trainable_sites(shape):
            problems.append(("freeze" if self.freeze else "type", "nothing would train"))
        return problems

    def trained_base(self, shape: ModelShape) -> set[str]:
        """Return the names of the base parameters that this method itself trains."""
        return set()

    def added_parameters(self, shape: ModelShape) -> tuple[ParameterSite, ...]:
        """Return the parameters that this method adds to a model of this shape."""
        return ()

    def trainable_sites(self, shape: ModelShape) -> list[ParameterSite]:
        """Return every parameter that trains, from sizes alone, after `unfreeze` and `freeze`.

        Fresh parameters always train: frozen, they would stay random.
        """
        added = self.added_parameters(shape)
        sites = {site.name: site for site in (*shape.parameters, *added)}
        wanted = self.trained_base(shape) | shape.fresh | {site.name for site in added}
        wanted |= set(matching(self.unfreeze, sites))
        wanted -= set(matching(self.freeze, sites)) - shape.fresh
        return [site for name, site in sites.items() if name in wanted]

    def count_trainable(self, shape: ModelShape) -> int:
        """Return the number of trainable parameters on a model of this shape, without building it."""
        return sum(site.count for site in self.trainable_sites(shape))

    def decays(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether weight decay applies to a trained parameter: to matrices only, never to biases and norms."""
        return len(shape) >= 2

    def sizes(self, shape: ModelShape) -> Sizes:
        """Return how small and how large this method can be on a model of this shape."""
        raise NotImplementedError

    def resized(self, field: str, value: Any) -> Self:
        """Return this method in one of its `sizes`, everything else that it does unchanged."""
        return self.model_copy(update={field: value})

    def stored_sites(self, shape: ModelShape) -> list[ParameterSite]:
        """Return every parameter that a saved copy holds, from sizes alone."""
        return self.without_training_parts().trainable_sites(shape)

    def count_stored_bytes(self, shape: ModelShape, frozen_bytes: int = 4) -> int:
        """Return what the tensors of a saved copy take: four bytes where one trained, else `frozen_bytes`."""
        trained = {site.name for site in self.without_training_parts().trainable_sites(shape)}
        width = {True: TRAINED_BYTES, False: frozen_bytes}
        return sum(site.count * width[site.name in trained] for site in self.stored_sites(shape))

    def apply(self, model: nn.Module, fresh: frozenset[str] = frozenset()) -> nn.Module:
        """Add this method's modules to `model` and set `requires_grad` on exactly what trains, in float32.

        `fresh` names parameters that no checkpoint filled (a new head): they train with every method.
        Returns the model to use from now on (PEFT's methods wrap it). Works on the meta device.
        Raises MethodError where the method cannot be applied.
        """
        from peftlab.parameters.shape import shape_of
        from peftlab.parameters.trainable import set_trainable

        shape = shape_of(model, fresh, task_of(model).name)
        problems = self.check(shape)
        if problems:
            raise MethodError("; ".join(f"method.{field}: {message}" for field, message in problems))
        model.requires_grad_(False)
        model = self.insert(model, shape)
        set_trainable(model, {site.name for site in self.trainable_sites(shape)})
        for module in model.modules():
            own = list(module.parameters(recurse=False))
            # A norm computes with its scale and bias in one type, so that a frozen one follows a trained one.
            together = "Norm" in type(module).__name__ and any(parameter.requires_grad for parameter in own)
            for parameter in own:
                if parameter.requires_grad or together:
                    parameter.data = parameter.data.float()
        return model

    def insert(self, model: nn.Module, shape: ModelShape) -> nn.Module:
        """Add this method's modules to the frozen `model` and return the model to use from now on."""
        return model

    def stored_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the live tensors that a saved copy holds, by their names in its file."""
        raise NotImplementedError

    def save(self, model: nn.Module, folder: Path, context: dict[str, Any]) -> None:
        """Write what trained to `folder` as safetensors and JSON.

        `context` is kept beside it; its `base_model` (name, revision, fingerprint) identifies the base.
        """
        from peftlab.methods.storage import write_manifest, write_tensors

        tensors = self.stored_tensors(model)
        write_tensors(folder / self.weights_file, tensors)
        write_manifest(folder, self, model, context, tensors)

    def load(self, model: nn.Module, folder: Path, context: dict[str, Any] | None = None) -> nn.Module:
        """Return the base `model` with what `save` wrote, its trainable parameters trainable.

        Where `context` has a `base_model` as in `save`, it must be the one that was trained on.
        Raises StorageError unless method, base model and all names and shapes match.
        """
        from peftlab.methods.storage import fill_tensors, read_manifest

        trained = read_manifest(folder, self, context).trained
        model = self.without_training_parts().apply(model, self.fresh_among(trained, model))
        fill_tensors(folder / self.weights_file, self.stored_tensors(model))
        return model

    def fresh_among(self, trained: Iterable[str], model: nn.Module) -> frozenset[str]:
        """Return the base parameters that trained although this method does not train them: a new head's."""
        from peftlab.parameters.shape import shape_of

        shape = shape_of(model, task=task_of(model).name)
        return frozenset(trained) & shape.by_name.keys() - {site.name for site in self.trainable_sites(shape)}

    def merge(self, model: nn.Module) -> nn.Module:
        """Return a plain transformers model with the outputs of `model`, which keeps its weights.

        Where the method adds no modules, that is `model` itself. Raises MethodError unless `mergeable`.
        """
        if not self.mergeable:
            raise MethodError(f"{self.title} cannot be merged: what it adds is no change of the base's weights")
        return model

    def without_training_parts(self) -> Self:
        """Return this method as a saved copy of it is: without what only training needs."""
        return self


def _tied(pattern: str, shape: ModelShape) -> str:
    """Say that a pattern names a layer whose weight is another's, if it does."""
    layers = matching([pattern], [site.name for site in shape.linears])
    return f"{layers[0]} is tied to the embedding, whose name trains both; " if layers else ""


def describe_candidates(pattern: str, names: Iterable[str]) -> str:
    """Return the parts of dotted names that a pattern could have meant, the nearest first."""
    parts = dict.fromkeys(part for name in names for part in name.split(".") if not part.isdigit())
    near = get_close_matches(pattern.replace("*", "").split(".")[-1], parts, n=3, cutoff=0.5)
    shown = list(dict.fromkeys([*near, *parts]))
    return f"candidates: {', '.join(shown[:16])}{', …' if len(shown) > 16 else ''}"


def outermost(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that a pattern matches, without those inside another of them."""
    found: list[str] = []
    for name in names:
        if matches(pattern, name) and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return found
