"""What every method is: a frozen config that can check, count, apply, save and load itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from peftlab.errors import MethodError, listed
from peftlab.methods.counting import CountedMethod, Problems
from peftlab.methods.new_tokens import ROWS, copy_with_rows, has_rows, insert_rows
from peftlab.methods.traits import Prompting, Sizes
from peftlab.shapes import ModelShape
from peftlab.tasks import task_of

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Method", "Problems", "Prompting", "Sizes", "note_idle"]


class Method(CountedMethod):
    """A fine-tuning method. `apply` sets `requires_grad`, and nothing else decides what trains.

    A subclass is one file: the fields of its recipe section, each with a default (`type` a literal), a `title`,
    and what differs from a method that does nothing. What it cannot do is in `check_settings` (whatever the
    model) and `check_own` (on one model), what trains in `trained_base` (of the base) and `added_parameters`,
    how those are built in `insert`, and how large it can be in `sizes`. The traits say what others need to know:
    whether it merges, saves memory or stores rows of new tokens (class variables), `decays`, `multiplies`,
    `prompting`, `variants`.
    """

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
        from peftlab.methods.storage import read_manifest

        saved = self.without_training_parts()
        trained = read_manifest(folder, self, context).trained
        model = saved.apply(model, self.fresh_among(trained, model))
        saved.fill(model, folder)
        return model

    def fill(self, model: nn.Module, folder: Path) -> None:
        """Copy a saved copy's tensors into `model`, to which this method is applied. Raises StorageError.

        Names and shapes must match exactly; what the tensors are of is not looked at.
        """
        from peftlab.methods.storage import fill_tensors

        fill_tensors(folder / self.weights_file, self.stored_tensors(model))

    def as_stored(self, shape: ModelShape, names: Iterable[str], modules: Iterable[str]) -> Self:
        """Return this method as it trained the tensors of a PEFT folder: canonical `names`; `modules` trained whole.

        Raises MethodError for tensors that this method has no place for.
        """
        return self

    def outputs_depend_on(self) -> dict[str, Any]:
        """Return the settings that, beside the tensors of a saved copy, decide what its model computes."""
        free = {"type", "from_", "unfreeze", "freeze"}
        return self.without_training_parts().model_dump(mode="json", exclude=free)

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


def note_idle(shape: ModelShape) -> list[str]:
    """Return a line about the parts of a model that a text does not reach, where there are any."""
    if not shape.idle_parameters:
        return []
    parts = listed(shape.passage.towers, 3)
    return [f"method: {len(shape.idle_parameters)} tensors stay frozen, because no text reaches them: {parts}"]


def _cast_trained(model: nn.Module) -> None:
    """Put what trains into float32."""
    import torch

    from peftlab.parameters.divided import cast_

    for module in model.modules():
        own = list(module.parameters(recurse=False))
        # A norm computes with its scale and bias in one type, so that a frozen one follows a trained one.
        together = "Norm" in type(module).__name__ and any(parameter.requires_grad for parameter in own)
        for parameter in own:
            if parameter.requires_grad or together:
                cast_(parameter, torch.float32)
