"""One recipe's model, tokenizer and data, checked against each other and ready for a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from peftlab.data.cached import TRAIN_EXAMPLES, TokenOrigin, read_data
from peftlab.data.dataset import Dataset, Part, tokenise
from peftlab.data.splits import Examples
from peftlab.data.token_arrays import sizes_of
from peftlab.errors import DataError, MethodError, MissingRequirementError, ModelError, Problem, RecipeError
from peftlab.evaluation.evaluate import Evaluated, evaluate
from peftlab.evaluation.generate import add_stop_ids, generate_examples
from peftlab.family_traits import MIXES_LAST, MIXES_ROWS
from peftlab.memory.probe import Probe
from peftlab.models.build import build_meta
from peftlab.models.load import LoadedModel, fit_tokenizer, load_tokenizer
from peftlab.models.recompute import recompute_activations
from peftlab.optimization.dropout import disable_dropout
from peftlab.parameters.divided import move_
from peftlab.parameters.shape import count_positions
from peftlab.recipe.checkpointing import OFFLOAD
from peftlab.recipe.checks import find_contradictions
from peftlab.recipe.schema import Recipe
from peftlab.reports import CheckpointingReport, MemoryReport, ParameterReport, SpeedReport
from peftlab.runs.classes import known_classes
from peftlab.runs.loading import apply_method, check_method, load_base, read_shape
from peftlab.shapes import ModelShape
from peftlab.speed.apply import speed_up
from peftlab.speed.loss import loss_of
from peftlab.speed.token_cache import report_tokens, token_store
from peftlab.tasks import TASKS
from peftlab.tasks.base import Task
from peftlab.tasks.formats import Example
from peftlab.world.base import World
from peftlab.world.dtypes import Types, resolve_types


class Applied(NamedTuple):
    """A model with its method, what trains, which speed-ups its steps use, and which layers are recomputed."""

    model: nn.Module
    parameters: ParameterReport
    speed: SpeedReport
    checkpointing: CheckpointingReport | None


@dataclass
class Bench:
    """A recipe's data and its base, to which the method is applied; `load` is the measured memory of loading it.

    `held_out` are the evaluation and test rows, and the first training rows, before any tokenizer. `tokens` says where
    the tokens of a run that trains are from.
    """

    recipe: Recipe
    world: World
    tokenizer: Any
    dataset: Dataset
    base: LoadedModel
    load: MemoryReport
    held_out: dict[str, Sequence[Example]] = field(default_factory=dict)
    tokens: TokenOrigin | None = None

    @property
    def device(self) -> torch.device:
        return self.world.device

    @property
    def types(self) -> Types:
        return resolve_types(self.recipe.model.dtype, self.recipe.training.precision, self.device)

    @property
    def precision(self) -> torch.dtype:
        return self.types.computation

    @property
    def batch_size(self) -> int:
        """Rows of one evaluation batch."""
        return self.recipe.evaluation.batch_size or self.recipe.training.batch_size

    def apply(self) -> Applied:
        """Return the base with the recipe's method and its speed-ups, on its device, and what trains."""
        recipe = self.recipe
        if recipe.training.frozen_dropout == "off":
            disable_dropout(self.base.model)
        self.world.seed(recipe.run.seed)
        model, report = apply_method(recipe.method, self.base.model, recipe.task.name, self.base.fresh)
        recomputed = self.recompute(model)
        move_(model, self.device)
        speed = speed_up(model, recipe, self.world.divided, whole_head=self.world.whole_head)
        if self.tokens is not None:
            speed = speed.with_switch(report_tokens(self.tokens, recipe.training.speed))
        return Applied(model, report, speed, recomputed if recomputed.layers else None)

    def recompute(self, model: nn.Module) -> CheckpointingReport:
        """Let a model with its method recompute as many layers as the recipe says.

        Raises MissingRequirementError for inputs in the host's memory where the device is the host.
        """
        wanted = self.recipe.training.gradient_checkpointing
        if wanted == OFFLOAD and self.device.type != "cuda":
            fault = f"offload needs CUDA, and the device is {self.device.type}"
            raise MissingRequirementError(f"training.gradient_checkpointing: {fault}; set it to true")
        return recompute_activations(model, wanted)

    def evaluate(self, model: nn.Module, part: Part = "evaluation") -> Evaluated:
        """Return the recipe's metrics of `model` on a part of the data, divided among all processes, and by row.

        Empty where the recipe has no such rows.
        """
        return evaluate(
            model,
            self.dataset,
            self.recipe.evaluation,
            part=part,
            loss=loss_of(self.recipe.task, self.recipe.training.speed, model, self.device.type),
            tokenizer=self.tokenizer,
            world=self.world,
            precision=self.precision,
            batch_size=self.batch_size,
            prompting=self.recipe.method.prompting,
        )

    def generate_examples(self, model: nn.Module) -> list[dict[str, str]]:
        """Return the recipe's number of examples: prompt, reference, output."""
        return generate_examples(
            model,
            self.dataset,
            self.recipe.evaluation,
            self.tokenizer,
            batch_size=self.batch_size,
            prompting=self.recipe.method.prompting,
            autocast=partial(self.world.autocast, self.precision),
        )


def check_positions(recipe: Recipe, dataset: Dataset, model: nn.Module) -> None:
    """Raise DataError for rows that are longer than the model has positions for."""
    positions = count_positions(model)
    every = (dataset.longest_train, dataset.all_held_out)
    longest = max(int(sizes_of(rows).longest.max(initial=0)) for rows in every)
    if positions and recipe.method.virtual_tokens >= positions:
        raise MethodError(
            f"method.length: {recipe.method.virtual_tokens} virtual tokens leave no room for text in the model's "
            f"{positions} positions"
        )
    if positions and longest + recipe.method.virtual_tokens > positions:
        learned = f" and {recipe.method.virtual_tokens} virtual ones" if recipe.method.virtual_tokens else ""
        raise DataError(
            f"data.max_length: the longest row has {longest} tokens{learned}, but the model has {positions} positions; "
            f"set data.max_length={positions - recipe.method.virtual_tokens}"
        )


def check_ends(dataset: Dataset, model: PreTrainedModel) -> None:
    """Raise DataError for texts with an end token of their own, where a classifier reads that token (BART, T5).

    Such a class of transformers refuses a batch whose rows have different numbers of them.
    """
    if (end := find_read_end(dataset.task, model)) is None:
        return
    parts = {"train": dataset.train, "evaluation": dataset.evaluation, "test": dataset.test}
    counts = {name: [int((row.input_ids == end).sum()) for row in rows] for name, rows in parts.items()}
    usual = min((count for found in counts.values() for count in found), default=0)
    for name, found in counts.items():
        if others := sum(count != usual for count in found):
            raise DataError(
                f"data.{name}: {others} of {len(found)} rows contain the model's end token in their own text, which a "
                f"{model.config.model_type} classifier takes for the end; remove it from these texts"
            )


def find_read_end(task: Task, model: PreTrainedModel) -> int | None:
    """Return the end token at which a classifier reads a row's class (BART, T5); None where it reads another place."""
    end = getattr(model.config.get_text_config(), "eos_token_id", None)  # RoCBert's configuration has none
    return end if task.reads_last_token and model.config.is_encoder_decoder and isinstance(end, int) else None


def with_format(recipe: Recipe, name: str | None) -> Recipe:
    """Return the recipe with the format that its rows were recognised as.

    Raises RecipeError where another field does not suit it, as `peftlab check` does where the recipe names it.
    """
    if name == recipe.data.format:
        return recipe
    known = recipe.model_copy(update={"data": recipe.data.model_copy(update={"format": name})})
    before = find_contradictions(recipe, ())
    if problems := [problem for problem in find_contradictions(known, ()) if problem not in before]:
        found = f"(rows of data.train were recognised as {name})"
        raise RecipeError([Problem(".".join(map(str, path)), f"{message} {found}") for path, message in problems])
    return known


def check_batches(recipe: Recipe, shape: ModelShape) -> None:
    """Raise ModelError where a model's results depend on the other rows of a batch, and batches have several."""
    sizes = {"training.batch_size": recipe.training.batch_size, "evaluation.batch_size": recipe.evaluation.batch_size}
    mixes = MIXES_ROWS | (MIXES_LAST if TASKS[shape.task].reads_last_token else frozenset())
    if shape.model_type not in mixes or set(sizes.values()) <= {1, None} and sizes["training.batch_size"] == 1:
        return
    raise ModelError(
        f"a {shape.model_type} model reads the padding behind a row, so a row's result depends on the other rows of "
        "its batch; set training.batch_size=1 and evaluation.batch_size=1 (gradient_accumulation makes larger steps)"
    )


def prepare(
    recipe: Recipe,
    world: World,
    before_load: Callable[[Dataset], Recipe] | None = None,
    known_labels: Sequence[str] | None = None,
) -> Bench:
    """Read the data, check the strategy and the method against the model's sizes, and only then load weights.

    Labels have the order of `known_labels`, by default those that the head knows already.
    `before_load` is called with the data just before the weights are loaded. It returns the recipe to use, and may
    raise to refuse the run.
    """
    world.refuse_model(lambda: build_meta(recipe.model)[0])
    tokenizer = load_tokenizer(recipe.model)
    store = token_store(recipe.training.speed)
    known = known_classes(recipe) if known_labels is None else known_labels
    data = read_data(recipe.data, recipe.task, recipe.data_seed, tokenizer, store, partial(check_rows, recipe), known)
    bench = load_bench(recipe, world, data.examples, data.dataset, tokenizer, before_load)
    bench.tokens = data.origin
    return bench


def build_bench(
    recipe: Recipe,
    world: World,
    examples: Examples,
    tokenizer: Any,
    trained: dict[str, Any],
) -> Bench:
    """Return the bench of rows that are read already, of a run that is only used.

    `trained` is what its report says of its training rows: there are none here.
    """
    dataset = tokenise(examples, tokenizer, check_rows(recipe, examples), trained)
    return load_bench(recipe, world, examples, dataset, tokenizer)


def check_rows(recipe: Recipe, examples: Examples) -> int | None:
    """Return the size of the model's vocabulary, before rows are tokenised and weights are loaded.

    Raises what a format, a method or a batch size cannot do on this model.
    """
    recipe = with_format(recipe, examples.section.format)
    shape = read_shape(recipe, examples.labels)
    check_method(recipe.method, shape)
    check_batches(recipe, shape)
    return shape.vocabulary


def load_bench(
    recipe: Recipe,
    world: World,
    examples: Examples,
    dataset: Dataset,
    tokenizer: Any,
    before_load: Callable[[Dataset], Recipe] | None = None,
) -> Bench:
    """Return the bench of tokenised rows, the base with its weights."""
    recipe = with_format(recipe, examples.section.format)
    if before_load is not None:
        recipe = before_load(dataset)
    probe = Probe(world.device)
    with probe.alone("load"):
        base = load_base(recipe, world.device, examples.labels, seen=probe.ledger.adopt_base, mesh=world.mesh)
    check_positions(recipe, dataset, base.model)
    check_ends(dataset, base.model)
    fit_tokenizer(base.model, tokenizer)
    add_stop_ids(base.model, dataset.stop_ids)
    held_out = {"evaluation": examples.evaluation, "test": examples.test, "train": examples.train[:TRAIN_EXAMPLES]}
    return Bench(recipe, world, tokenizer, dataset, base, probe.report(), held_out)
