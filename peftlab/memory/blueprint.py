"""A recipe's model as the run would hold it, method applied, built from its configuration on fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from peftlab.device import resolve_dtype, resolve_precision
from peftlab.errors import MethodError
from peftlab.memory.depth import find_layers
from peftlab.memory.fakes import FakeModel
from peftlab.memory.trace import Workload
from peftlab.models.build import build_meta
from peftlab.parameters.shape import shape_of
from peftlab.parameters.trainable import find_base
from peftlab.recipe.schema import Model, Recipe
from peftlab.shapes import ModelShape

# What stands for the real attention on a machine that cannot run it: likewise without stored scores.
STAND_INS = {"flash_attention_2": "sdpa"}


@dataclass(frozen=True)
class LoadBytes:
    """The plain model as it comes from its file, and the largest weight that would be quantised."""

    plain: int
    largest: int


@dataclass(frozen=True)
class Blueprint:
    recipe: Recipe
    device: torch.device
    shape: ModelShape
    fake: FakeModel
    load: LoadBytes
    unit_bytes: tuple[int, int, int]
    """Weights of the largest layer, what trains of it, and weights outside the layers."""

    @property
    def precision(self) -> torch.dtype:
        return resolve_precision(self.recipe.training.precision, self.recipe.model.dtype, self.device)

    @property
    def positions(self) -> int:
        """The longest row that the model takes beside the method's virtual tokens."""
        config = getattr(find_base(self.fake.model)[1], "config", None)
        positions = getattr(config, "max_position_embeddings", None) or self.recipe.data.max_length
        return positions - self.recipe.method.virtual_tokens

    @property
    def generates(self) -> bool:
        """Whether the run writes text: examples, or for a metric that compares texts."""
        evaluation = self.recipe.evaluation
        compares = set(evaluation.metrics) & {"exact_match", "bleu", "rouge"}
        causal = self.recipe.model.task == "causal-lm"
        return causal and self.recipe.data.evaluation is not None and bool(compares or evaluation.generation.examples)

    def generation_bytes(self) -> int:
        """Return what generation holds besides the state: keys, values and the logits of one token a row.

        The longest layer's cache is copied when it grows by a token, and logits are widened to float32.
        """
        evaluation = self.recipe.evaluation
        settings = evaluation.generation
        rows = (evaluation.batch_size or self.recipe.training.batch_size) * settings.beams
        length = self.recipe.data.max_length + settings.max_new_tokens
        itemsize = self.precision.itemsize
        cache = 2 * self.shape.layers * self.shape.kv_width * length * rows * itemsize
        return cache + cache // max(self.shape.layers, 1) + rows * self.shape.vocabulary * (itemsize + 4)

    def for_recipe(self, recipe: Recipe) -> Blueprint:
        """Return the same model for a recipe that differs in its batches only."""
        return replace(self, recipe=recipe)

    def workload(self) -> Workload:
        """Return the largest batches that the recipe allows: every row as long as `data.max_length`."""
        recipe = self.recipe
        training, evaluation = recipe.training, recipe.evaluation
        length = min(recipe.data.max_length, self.positions)
        return Workload(
            rows=training.batch_size,
            length=length,
            evaluation_rows=evaluation.batch_size or training.batch_size,
            evaluation_length=length,
            classes=recipe.model.task == "sequence-classification",
            padded=training.batch_size > 1 and recipe.model.attention not in STAND_INS,
            micro_batches=min(training.gradient_accumulation, 2),
            precision=self.precision,
            optimizer=training.optimizer,
            cuda=self.device.type == "cuda",
        )


def build_blueprint(
    recipe: Recipe,
    device: torch.device,
    labels: list[str] | None = None,
    silence_dropout: Callable[[nn.Module], None] | None = None,
) -> Blueprint:
    """Build the recipe's model for `device` without weights and without the device.

    `silence_dropout` is what the run calls for `training.frozen_dropout: off`. Raises ModelError and
    MethodError as a run would.
    """
    model, fresh = build_meta(_for_device(recipe.model, device), labels)
    shape = shape_of(model, fresh, recipe.model.task)
    load = _load_bytes(model, shape)
    if recipe.method.base_format != "plain":
        _quantize_meta(model, recipe, device)
    if recipe.training.frozen_dropout == "off" and silence_dropout is not None:
        silence_dropout(model)
    model = recipe.method.apply(model, fresh)
    if recipe.training.gradient_checkpointing:
        _checkpoint(model)
    fake = FakeModel(model)
    return Blueprint(recipe, device, shape, fake, load, _unit_bytes(model))


def _checkpoint(model: nn.Module) -> None:
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise MethodError(f"training.gradient_checkpointing: {error}") from error


def _for_device(section: Model, device: torch.device) -> Model:
    dtype = str(resolve_dtype(section.dtype, device)).removeprefix("torch.")
    attention = STAND_INS.get(section.attention, section.attention)
    return section.model_copy(update={"dtype": dtype, "attention": attention})


def _quantize_meta(model: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Quantise as the loader would for `device`; the meta device itself would not ask for its special layers."""
    from bitsandbytes.nn import Linear4bit

    from peftlab.models.four_bit import UnalignedLinear4bit
    from peftlab.models.quantize import BLOCK, quantize_

    storage = recipe.method.base_storage
    quantize_(
        model,
        storage["base_format"],
        double_quantization=storage["double_quantization"],
        compute_dtype=resolve_dtype(storage["compute_dtype"], device),
        device="meta",
    )
    for module in model.modules():
        if device.type == "cpu" and isinstance(module, Linear4bit) and module.in_features % BLOCK:
            module.__class__ = UnalignedLinear4bit


def _load_bytes(model: nn.Module, shape: ModelShape) -> LoadBytes:
    dense = [site.n_in * site.n_out * model.dtype.itemsize for site in shape.linears if site.role != "head"]
    return LoadBytes(sum(p.numel() * p.itemsize for p in model.parameters()), max(dense, default=0))


def _unit_bytes(model: nn.Module) -> tuple[int, int, int]:
    layers = list(find_layers(model)[2])
    weights = [sum(p.numel() * p.itemsize for p in layer.parameters()) for layer in layers]
    trained = [sum(p.numel() * p.itemsize for p in layer.parameters() if p.requires_grad) for layer in layers]
    whole = sum(p.numel() * p.itemsize for p in model.parameters())
    return max(weights, default=0), max(trained, default=0), whole - sum(weights)
