"""A recipe's model with its method, as in the run, built from its configuration on fake tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from peftlab.data.batches import EndToEnd
from peftlab.data.token_rows import WholeRow
from peftlab.family_traits import READS_FIRST_GLOBALLY
from peftlab.memory.fakes import FakeModel, UnpredictableError, nowhere
from peftlab.memory.generation import Answers
from peftlab.memory.loading import LoadBytes, find_load_bytes
from peftlab.memory.strategies import OwnPart, Weight
from peftlab.memory.trace import Workload
from peftlab.metrics import names_that_need
from peftlab.models.build import build_meta
from peftlab.models.quantizer import BLOCK
from peftlab.models.recompute import are_separate, recompute_activations
from peftlab.optimization.dropout import disable_dropout
from peftlab.parameters.layers import all_layers, reached_layers
from peftlab.parameters.shape import shape_of
from peftlab.parameters.trainable import named_parameters
from peftlab.recipe.schema import Model, Recipe
from peftlab.reports import CheckpointingReport
from peftlab.shapes import ModelShape
from peftlab.speed.apply import speed_up
from peftlab.speed.packing import training_layout
from peftlab.tasks import possible_formats
from peftlab.world.dtypes import Types, resolve_types

# Planned in place of an attention that this machine may not be able to run; neither stores scores.
SUBSTITUTES = {"flash_attention_2": "sdpa"}


class LayersToRecompute(NamedTuple):
    """How many layers can be recomputed, and whether some of them can be without the others."""

    number: int
    separate: bool


@dataclass(frozen=True)
class Blueprint:
    recipe: Recipe
    device: torch.device
    shape: ModelShape
    fake: FakeModel
    load: LoadBytes
    weights: tuple[Weight, ...]
    outputs: int = 1
    """Outputs of the head, where the task has one."""
    summed: tuple[int, int] | None = None
    """The numbers of each token that devices sum in a forward and in a backward pass."""

    @property
    def precision(self) -> torch.dtype:
        return types_of(self.recipe, self.device).computation

    @property
    def positions(self) -> int:
        """The longest row that fits next to the method's virtual tokens; sys.maxsize without a limit."""
        limit = self.shape.positions if self.shape.positions > 0 else sys.maxsize  # a config may say -1 or null
        return limit - self.recipe.method.virtual_tokens

    @property
    def answers(self) -> Answers | None:
        """The largest batch of answers that the run may write; None if it writes none."""
        recipe, settings = self.recipe, self.recipe.evaluation.generation
        rows = min(count_answers(recipe), recipe.evaluation.batch_size or recipe.training.batch_size)
        written = 0 if recipe.task.encodes_prompt else settings.max_new_tokens
        length = min(recipe.data.max_length, self.positions - written)
        return Answers(rows, length, settings.max_new_tokens, settings.beams) if rows and length > 0 else None

    def summed_bytes(self, work: Workload) -> int | None:
        """Return the bytes that devices sum in the passes of a micro-batch, recomputed layers included."""
        if self.summed is None:
            return None
        forward, backward = self.summed
        found = self.recompute()
        again = forward * found.layers // max(self.layers.number, 1) if found else 0
        groups = work.groups if work.packed else ()
        tokens = sum(one.length * one.rows for one in groups) or work.rows * work.length
        return tokens * self.precision.itemsize * (forward + again + backward)

    def for_recipe(self, recipe: Recipe) -> Blueprint:
        """Return the same model for a recipe that differs in its batches only."""
        return replace(self, recipe=recipe)

    @property
    def layers(self) -> LayersToRecompute:
        """The layers that can be recomputed in the backward pass."""
        reached = reached_layers(self.fake.model)
        return LayersToRecompute(len(reached), are_separate(reached))

    def recompute(self) -> CheckpointingReport | None:
        """Let the model recompute as many layers as the recipe says; None if none. Raises MethodError for too many."""
        wanted = self.recipe.training.gradient_checkpointing
        found = recompute_activations(self.fake.model, wanted, keep=nowhere)
        return found if found.layers else None

    def workload(self) -> Workload:
        """Return the largest batches that the recipe allows: every row as long as `data.max_length`."""
        recipe = self.recipe
        data, training, evaluation = recipe.data, recipe.training, recipe.evaluation
        length = min(data.max_length, self.positions)
        answer_length = min(data.target_limit, self.positions) if recipe.task.encodes_prompt else 0
        evaluation_rows = evaluation.batch_size or training.batch_size
        return Workload(
            rows=training.batch_size,
            length=length,
            evaluation_rows=evaluation_rows if any((data.evaluation, data.test, data.general)) else 0,
            evaluation_length=length,
            task=recipe.task,
            outputs=self.outputs,
            answer_length=answer_length,
            evaluation_answer_length=answer_length,
            padded=training.batch_size > 1 and recipe.model.attention not in SUBSTITUTES,
            micro_batches=min(training.gradient_accumulation, 2),
            precision=self.precision,
            optimizer=training.optimizer,
            average=training.average.ema,
            cuda=self.device.type == "cuda",
            answers=self.answers,
            speed=training.speed,
            in_backward=training.optimizer_in_backward,
            packed=isinstance(training_layout(self.fake.model, recipe, pad_id=0), EndToEnd),
        )


def count_answers(recipe: Recipe) -> int:
    """Return the most prompts that a run answers: for examples, and for metrics that compare texts."""
    settings, compared = recipe.evaluation.generation, set(names_that_need("texts"))
    asked = recipe.data.evaluation is not None or recipe.data.test is not None
    prompts = any(one.prompts for one in possible_formats(recipe.task, recipe.data.format))
    if not recipe.task.generates or not prompts or not asked:
        return 0
    return max(settings.examples, settings.rows if compared & set(recipe.evaluation.metrics) else 0)


def build_blueprint(
    recipe: Recipe,
    device: torch.device,
    labels: list[str] | None = None,
    keep_own_part: Callable[[nn.Module], OwnPart] = lambda model: OwnPart(),
) -> Blueprint:
    """Return the recipe's model, built for `device` without weights and without the device.

    `keep_own_part` leaves of the model with its method what one of several devices computes.
    Raises ModelError and MethodError as a run would, UnpredictableError where memory depends on values.
    """
    plain, fresh = build_meta(_for_device(recipe.model, types_of(recipe, device)), labels)
    model: nn.Module = plain
    shape = shape_of(model, fresh, recipe.model.task)
    if shape.model_type in READS_FIRST_GLOBALLY and issubclass(recipe.task.row_class, WholeRow):
        raise UnpredictableError(f"which tokens of {shape.model_type} read all others depends on values")
    load = find_load_bytes(plain, shape, recipe.model, recipe.method)
    if recipe.method.base_format != "plain":
        _quantize_meta(model, recipe, device)
    if recipe.training.frozen_dropout == "off":
        disable_dropout(model)
    model = recipe.method.apply(model, fresh)
    speed_up(model, recipe)
    own = keep_own_part(model)
    fake = FakeModel(model)
    return Blueprint(
        recipe, device, shape, fake, load, _weights(model, own.names), plain.config.num_labels or 1, own.summed
    )


def types_of(recipe: Recipe, device: torch.device) -> Types:
    """Return the types that a recipe's run on `device` keeps weights in and computes in."""
    return resolve_types(recipe.model.dtype, recipe.training.precision, device)


def _for_device(section: Model, types: Types) -> Model:
    attention = SUBSTITUTES.get(section.attention, section.attention)
    return section.model_copy(update={"dtype": types.describe()["weights"], "attention": attention})


def _quantize_meta(model: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Quantise as the loader would for `device`; the meta device itself would not ask for its special layers."""
    from peftlab.models.quantize import quantize_
    from peftlab.models.quantized_layers import FourBitLinear, UnalignedFourBitLinear

    storage = recipe.method.base_storage
    quantize_(
        model,
        storage["base_format"],
        double_quantization=storage["double_quantization"],
        compute_dtype=types_of(recipe, device).unpacked(storage["compute_dtype"]),
        device="meta",
    )
    for module in model.modules():
        if device.type == "cpu" and isinstance(module, FourBitLinear) and module.in_features % BLOCK:
            module.__class__ = UnalignedFourBitLinear


def _weights(model: nn.Module, parts: frozenset[str]) -> tuple[Weight, ...]:
    layers = all_layers(model)
    layer_of = {id(p): number for number, layer in enumerate(layers) for p in layer.parameters()}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    own = {id(parameter) for name, parameter in named_parameters(model).items() if name in parts}
    return tuple(
        Weight(
            len(p),
            p.nbytes // max(len(p), 1),
            p.requires_grad,
            layer_of.get(id(p)),
            id(p) in embeddings,
            id(p) in own,
            p.dim() >= 2,
        )
        for p in model.parameters()
    )
