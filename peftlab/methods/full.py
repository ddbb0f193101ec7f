"""Full fine-tuning, of every layer or of the last N: W ← W − η·∇W. Trains the base itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from peftlab.methods.base import Method, Problems, Sizes, note_idle
from peftlab.shapes import ModelShape, ParameterSite

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class Full(Method):
    """Full fine-tuning; with `layers: N` only the last N layers (and a new head) train.

    The final norm and a pretrained head stay frozen then, as in the LoRA paper's count of GPT-2 medium's
    last two layers; `unfreeze` trains them too. A saved copy is a transformers folder.
    """

    title: ClassVar[str] = "full fine-tuning"
    mergeable: ClassVar[bool] = True
    stores: ClassVar[Literal["trainable", "all"]] = "all"
    stores_new_tokens: ClassVar[bool] = False
    why_no_new_tokens: ClassVar[str] = "it stores whole tensors; set layers: all, or unfreeze the embeddings"

    type: Literal["full"] = "full"
    layers: Literal["all"] | Annotated[int, Field(ge=1)] = "all"
    """`all`, or how many of the last layers train (the classic freeze baseline)."""

    @property
    def learning_rate_factor(self) -> float:
        return 1.0

    def check_own(self, shape: ModelShape) -> Problems:
        if self.layers != "all" and self.layers > shape.layers:
            return [("layers", f"{self.layers} layers are asked for, but the model has {shape.layers}")]
        return []

    def trained_base(self, shape: ModelShape) -> set[str]:
        first = 0 if self.layers == "all" else shape.layers - self.layers
        return {
            site.name
            for site in shape.parameters
            if (self.layers == "all" or (site.layer is not None and site.layer >= first))
            and site.name not in shape.idle_parameters
            and site.name not in shape.fixed
        }

    def notes(self, shape: ModelShape) -> list[str]:
        return [*super().notes(shape), *note_idle(shape)]

    def sizes(self, shape: ModelShape) -> Sizes:
        return Sizes("layers", (*range(1, shape.layers + 1), "all"))

    def stored_sites(self, shape: ModelShape) -> list[ParameterSite]:
        return list(shape.parameters)

    def save(self, model: nn.Module, folder: Path, context: dict[str, Any]) -> None:
        from peftlab.methods.storage import write_manifest

        folder.mkdir(parents=True, exist_ok=True)
        cast("PreTrainedModel", model).save_pretrained(folder)
        _name_widest_type(folder, model)
        write_manifest(folder, self, model, context, {})

    def load(self, model: nn.Module, folder: Path, context: dict[str, Any] | None = None) -> nn.Module:
        from peftlab.methods.storage import read_manifest

        trained = read_manifest(folder, self, context).trained
        model = self.apply(model, self.fresh_among(trained, model))
        self.fill(model, folder)
        return model

    def fill(self, model: nn.Module, folder: Path) -> None:
        from peftlab.methods.storage import fill_from_transformers_folder

        fill_from_transformers_folder(cast("PreTrainedModel", model), folder)

    def outputs_depend_on(self) -> dict[str, Any]:
        return {}


def _name_widest_type(folder: Path, model: nn.Module) -> None:
    """Name float32 in a saved configuration where some weights have it: transformers reads all in the type it names.

    What trained is float32; of a base of 16 bits the rest is not, and reading it as float32 changes no value.
    """
    import torch

    from peftlab.methods.storage import write_json

    path = folder / "config.json"
    if any(parameter.dtype == torch.float32 for parameter in model.parameters()):
        write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"})
