"""What every method is: a frozen config that can check, count, apply, save and load itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict

from peftlab.errors import MethodError, listed
from peftlab.methods.candidates import describe_candidates, describe_tied
from peftlab.methods.new_tokens import ROWS, copy_with_rows, has_rows, insert_rows, row_sites
from peftlab.patterns import matching, unmatched
from peftlab.shapes import ModelShape, ParameterSite
from peftlab.tasks import task_of

if TYPE_CHECKING:
    from torch import Tensor, nn

Problems = list[tuple[str, str]]
TRAINED_BYTES = 4


class Sizes(NamedTuple):
    """The sizes that a method can have on one model: the values of one field, the smallest first.

    `graded` is true for steps of one scale (ranks, widths, layers), false for a choice among a few.
    """

    field: str
    values: Sequence[Any]
    graded: bool = True


class Prompting(NamedTuple):
    """How generation must treat prompts: a plain model's may be padded at the left, and lose no positions.

    `reserved` positions of the model are the method's own. Prompts that are not `batched` are answered one by one.
    """

    padded: bool = True
    reserved: int = 0
    batched: bool = True


class Method(BaseModel):
    """A fine-tuning method. `apply` sets `requires_grad`, and nothing else decides what trains.

    A subclass is one file: the fields of its recipe section, each with a default (`type` a literal), a `title`,
    and what differs from a method that does nothing. What it cannot do is in `check_settings` (whatever the
    model) and `check_own` (on one model), what trains in `trained_base` (of the base) and `added_parameters`,
    how those are built in `insert`, and how large it can be in `sizes`. The traits say what others need to know:
    whether it merges, saves memory or stores rows of new tokens (class variables), `decays`, `multiplies`,
    `prompting`, `variants`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    title: ClassVar[str]
    mergeable: ClassVar[bool] = False
    suggested_when_memory_is_short: ClassVar[bool] = False
    stores_new_tokens: ClassVar[bool] = True
    why_no_new_tokens: ClassVar[str] = ""
    weights_file: ClassVar[str] = "adapter.safetensors"
    stores: ClassVar[Literal["trainable", "all"]] = "trainable"
    pattern_fields: ClassVar[tuple[str, ...]] = ("unfreeze", "freeze")
    refused_by_family: ClassVar[bool] = False
    """Whether what this method cannot do follows from a model's type alone, whatever its sizes."""

    type: str
    unfreeze: tuple[str, ...] = ()
    """Patterns over parameter names that train as well (`classifier`, `embed_tokens`, `*norm*`)."""
    freeze: tuple[str, ...] = ()
    """Patterns over parameter names that stay frozen, applied last; a new head trains nevertheless."""

    @classmethod
    def variants(cls) -> dict[str, Self]:
        """Return the method with its defaults, by a label; several where what it needs of a machine differs."""
        return {"default": cls()}  # type: ignore[call-arg]  # `type` has a default in every registered method

    @property
    def form(self) -> str:
        """What the table of families calls this method: its type, and its form where models differ by it."""
        return self.type

    @property
    def base_format(self) -> str:
        """How the frozen base is stored: `plain`, `nf4`, `fp4` or `int8`."""
        return "plain"

    @property
    def base_storage(self) -> dict[str, Any]:
        """How the base must be stored, as keyword arguments of `models.load.load_model`."""
        return {"base_format": self.base_format}

    @property
    def keeps_base(self) -> bool:
        """Whether the frozen weights keep their values when the method is applied, so that runs can share them."""
        return self.stores == "trainable"

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether a layer computed again in the backward pass gives what it gave before."""
        return True

    @property
    def virtual_tokens(self) -> int:
        """Positions that the method takes beside a row's own tokens."""
        return 0

    @property
    def pads_prompts(self) -> bool:
        """Whether prompts may be padded at the left without a change of their answers."""
        return True

    @property
    def batches_prompts(self) -> bool:
        """Whether a prompt's answer is the same beside others in a batch."""
        return True

    @property
    def why_padded(self) -> str:
        """Why rows cannot be laid end to end in one line of the model's input; empty where they can."""
        return ""

    @property
    def prompting(self) -> Prompting:
        """How generation must treat prompts with this method."""
        return Prompting(self.pads_prompts, self.virtual_tokens, self.batches_prompts)

    @property
    def starts_as_base(self) -> bool:
        """Whether the output equals the base model's before the first step."""
        return True

    def decays(self, name: str, shape: tuple[int, ...]) -> bool:
        """Return whether weight decay applies to a trained parameter: to matrices, not to biases and norms."""
        return len(shape) >= 2

    def multiplies(self, site: ParameterSite) -> bool:
        """Return whether each token is multiplied by this parameter, a matrix (a table is only looked up)."""
        return len(site.shape) == 2 and site.kind != "embedding"

    def check_settings(self) -> Problems:
        """Return (field, message) for settings that contradict one another, whatever the model. Needs no torch."""
        empty = [
            (field, "an empty pattern; remove it or name something")
            for field in self.pattern_fields
            if isinstance(patterns := getattr(self, field), tuple) and any(not one.strip() for one in patterns)
        ]
        both = [
            ("freeze", f"{pattern!r} is also in unfreeze; keep it in one of them")
            for pattern in self.unfreeze
            if pattern in self.freeze
        ]
        return empty + both

    def check_own(self, shape: ModelShape) -> Problems:
        """Return (field, message) for what this method cannot do on a model of this shape."""
        return []

    def notes(self, shape: ModelShape) -> list[str]:
        """Return what a user must know of this method on a model of this shape, a line each: what it leaves out."""
        return []

    def check(self, shape: ModelShape) -> Problems:
        """Return (field, message) for everything that cannot work on a model of this shape."""
        own = [*self.check_settings(), *self.check_own(shape), *self._check_new_tokens(shape)]
        return own or self._check_patterns(shape)

    def _check_new_tokens(self, shape: ModelShape) -> Problems:
        rows = self.new_rows(shape)
        if rows and not self.stores_new_tokens:
            return [("type", f"{self.title} cannot train rows of new tokens alone: {self.why_no_new_tokens}")]
        used = {name for table in (shape.new_tokens.tables if shape.new_tokens else ()) for name in table}
        biased = [site.name for site in shape.linears if site.bias and site.name in used]
        if rows and biased:
            return [("type", f"new tokens: {biased[0]} has a bias, which PEFT's rows of new tokens would leave out")]
        return []

    def _check_patterns(self, shape: ModelShape) -> Problems:
        names = [site.name for site in (*shape.parameters, *self.all_added(shape))]
        problems = [
            (field, f"{one!r} matches no parameter; {describe_tied(one, shape)}{describe_candidates(one, names)}")
            for field, patterns in (("unfreeze", self.unfreeze), ("freeze", self.freeze))
            for one in unmatched(patterns, names)
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
        """Return the parameters that this method adds to a model of this shape: canonical name, size, kind, layer."""
        return ()

    def new_rows(self, shape: ModelShape) -> tuple[ParameterSite, ...]:
        """Return the rows of new tokens that train beside frozen embeddings; none of one that trains as a whole."""
        names = shape.by_name
        whole = self.trained_base(shape) | shape.fresh | set(matching(self.unfreeze, names))
        return row_sites(shape, whole - (set(matching(self.freeze, names)) - shape.fresh))

    def all_added(self, shape: ModelShape) -> tuple[ParameterSite, ...]:
        """Return everything that is added to a model of this shape: by the method, and for new tokens."""
        return (*self.added_parameters(shape), *self.new_rows(shape))

    def trainable_sites(self, shape: ModelShape) -> list[ParameterSite]:
        """Return every parameter that trains, from sizes alone, after `unfreeze` and `freeze`.

        Fresh parameters always train: frozen, they would stay random.
        """
        added = self.all_added(shape)
        sites = {site.name: site for site in (*shape.parameters, *added)}
        wanted = self.trained_base(shape) | shape.fresh | {site.name for site in added}
        wanted |= set(matching(self.unfreeze, sites))
        wanted -= set(matching(self.freeze, sites)) - shape.fresh
        return [site for name, site in sites.items() if name in wanted]

    def count_trainable(self, shape: ModelShape) -> int:
        """Return the number of trainable parameters on a model of this shape, without building it."""
        return sum(site.count for site in self.trainable_sites(shape))

    def sizes(self, shape: ModelShape) -> Sizes:
        """Return how small and how large this method can be on a model of this shape."""
        raise NotImplementedError

    def resized(self, field: str, value: Any) -> Self:
        """Return this method in one of its `sizes`, everything else that it does unchanged."""
        return self.model_copy(update={field: value})

    def stored_sites(self, shape: ModelShape) -> list[ParameterSite]:
        """Return every parameter that a saved copy contains, from sizes alone: what trained or was added."""
        saved = self.without_training_parts()
        sites = {site.name: site for site in (*saved.trainable_sites(shape), *saved.all_added(shape))}
        return list(sites.values())

    def count_stored_bytes(self, shape: ModelShape, frozen_bytes: int = 4) -> int:
        """Return the bytes of a saved copy's tensors: four a number that trained or was added, else `frozen_bytes`."""
        saved = self.without_training_parts()
        own = {site.name for site in (*saved.trainable_sites(shape), *saved.all_added(shape))}
        width = {True: TRAINED_BYTES, False: frozen_bytes}
        return sum(site.count * width[site.name in own] for site in self.stored_sites(shape))

    def apply(self, model: nn.Module, fresh: frozenset[str] = frozenset()) -> nn.Module:
        """Add this method's modules to `model` and set `requires_grad` on exactly what trains, in float32.

        `fresh` names parameters that no checkpoint filled (a new head): they train with every method.
        Returns the model to use from now on (PEFT's methods wrap it). Works on the meta device.
        Raises MethodError where the method cannot be applied.
        """
        from peftlab.parameters.kinds import note_added
        from peftlab.parameters.shape import shape_of
        from peftlab.parameters.trainable import set_trainable

        shape = shape_of(model, fresh, task_of(model).name)
        problems = self.check(shape)
        if problems:
            raise MethodError("; ".join(f"method.{field}: {message}" for field, message in problems))
        model.requires_grad_(False)
        model = self.insert(model, shape)
        insert_rows(model, shape, self.new_rows(shape))
        note_added(model, self.all_added(shape))
        set_trainable(model, {site.name for site in self.trainable_sites(shape)})
        _cast_trained(model)
        return model

    def insert(self, model: nn.Module, shape: ModelShape) -> nn.Module:
        """Add this method's modules to the frozen `model` and return the model to use from now on."""
        return model

    def stored_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the live tensors that a saved copy contains, by their names in its file: what trains or was added."""
        from peftlab.parameters.kinds import added_sites
        from peftlab.parameters.trainable import named_parameters

        added = added_sites(model)
        return {name: one for name, one in named_parameters(model).items() if one.requires_grad or name in added}

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

    def merge(self, model: nn.Module, base: nn.Module | None = None) -> nn.Module:
        """Return a plain transformers model with the outputs of `model`, which keeps its weights.

        Where the method adds no modules, that is `model` itself. `base` is for a method that stores its base
        quantised: the plain base, which gets the updates in place of the weights that were trained on.
        Raises MethodError unless `mergeable`.
        """
        self.refuse_merge()
        return copy_with_rows(model) if has_rows(model) else model

    def refuse_merge(self) -> None:
        """Raise MethodError for a method that cannot be merged."""
        if not self.mergeable:
            raise MethodError(
                f"{self.title} cannot be merged: what it adds cannot be written as other weights of the base; use the "
                "run's folder `weights` with peftlab, or train LoRA"
            )

    def updated_weights(self, tensors: Mapping[str, Tensor]) -> set[str]:
        """Return the canonical names of the frozen weights that `merge` must change: those with an update.

        `tensors` are those of the model, or of a saved copy, by canonical name.
        """
        return set()

    @property
    def merges_by_tensor(self) -> bool:
        """Whether `merge_tensor` gives what `merge` gives, so that a large model can be merged in pieces."""
        return self.mergeable

    def read_stored(self, folder: Path) -> dict[str, Tensor]:
        """Return the tensors that `save` wrote, by canonical name. Raises StorageError."""
        from peftlab.methods.storage import read_tensors

        return read_tensors(folder / self.weights_file)

    def merge_tensor(self, name: str, weight: Tensor, stored: dict[str, Tensor], *, transposed: bool) -> Tensor | None:
        """Return a base tensor after merging, from its value in the base and what was `stored`; None if unchanged.

        `transposed` says that the weight is (inputs, outputs), as in GPT-2's Conv1D. The result is in float32.
        """
        return stored.get(name)

    def merges_away(self, name: str) -> bool:
        """Return whether `merge` puts a trained parameter into other weights, so that a merged model has no such."""
        return name.endswith(ROWS)

    def without_training_parts(self) -> Self:
        """Return this method as a saved copy of it is: without what only training needs."""
        return self


def note_idle(shape: ModelShape) -> list[str]:
    """Return a line about the parts of a model that a text does not reach, where there are any."""
    if not shape.idle_parameters:
        return []
    parts = listed(shape.passage.towers, 3)
    return [f"method: {len(shape.idle_parameters)} tensors stay frozen, because no text reaches them: {parts}"]


def _cast_trained(model: nn.Module) -> None:
    """Put what trains into float32."""
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        # A norm computes with its scale and bias in one type, so that a frozen one follows a trained one.
        together = "Norm" in type(module).__name__ and any(parameter.requires_grad for parameter in own)
        for parameter in own:
            if parameter.requires_grad or together:
                parameter.data = parameter.data.float()
