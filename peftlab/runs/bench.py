"""One recipe's model, tokenizer and data, checked against each other and ready for a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from peftlab.data.dataset import Dataset, Part, load_examples, tokenise
from peftlab.errors import DataError, MethodError
from peftlab.evaluation.evaluate import evaluate
from peftlab.evaluation.generate import generate_examples
from peftlab.memory.probe import Probe
from peftlab.methods import Method
from peftlab.metrics import RowScores
from peftlab.models.build import build_meta
from peftlab.models.load import fit_tokenizer, load_model, load_tokenizer
from peftlab.optimization.dropout import disable_dropout
from peftlab.parameters.report import parameter_report
from peftlab.parameters.shape import count_positions, shape_of
from peftlab.recipe.schema import Recipe
from peftlab.reports import MemoryReport, ParameterReport
from peftlab.shapes import ModelShape
from peftlab.world.base import World
from peftlab.world.dtypes import resolve_precision


@dataclass
class Bench:
    """What a method is applied to, and what loading it took; no checkpoint filled the parameters in `fresh`."""

    recipe: Recipe
    world: World
    tokenizer: Any
    dataset: Dataset
    model: nn.Module
    fresh: frozenset[str]
    source: dict[str, Any]
    load: MemoryReport

    @property
    def device(self) -> torch.device:
        return self.world.device

    @property
    def precision(self) -> torch.dtype:
        return resolve_precision(self.recipe.training.precision, self.recipe.model.dtype, self.device)

    @property
    def batch_size(self) -> int:
        """Rows of one evaluation batch."""
        return self.recipe.evaluation.batch_size or self.recipe.training.batch_size

    def apply(self) -> tuple[nn.Module, ParameterReport]:
        """Apply the recipe's method to the base: return the model on its device, and what of it trains."""
        recipe = self.recipe
        if recipe.training.frozen_dropout == "off":
            disable_dropout(self.model)
        self.world.seed(recipe.run.seed)
        model, report = apply_method(recipe, self.model, self.fresh)
        if recipe.training.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model.to(self.device), report

    def evaluate(self, model: nn.Module, part: Part = "evaluation") -> tuple[dict[str, float], RowScores | None]:
        """Return the recipe's metrics of `model` on a part of the data, shared out over all processes, row by row too.

        Empty and None where the recipe has no such rows.
        """
        return evaluate(
            model,
            self.dataset,
            self.recipe.evaluation,
            part=part,
            loss=self.recipe.task.loss(model),
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


def read_labels(recipe: Recipe) -> list[str] | None:
    """Return the classes among the recipe's rows, for which a classifier's head is built; None for other tasks.

    A recipe without data (`-`) has none either: the head has then what the model's config says.
    """
    if not recipe.task.has_labels or recipe.data.train == "-":
        return None
    return load_examples(recipe.data, recipe.task, recipe.run.seed).labels


def read_shape(recipe: Recipe, labels: list[str] | None) -> ModelShape:
    """Return the sizes of the recipe's model, built without weights."""
    model, fresh = build_meta(recipe.model, labels)
    return shape_of(model, fresh, recipe.model.task)


def check_method(method: Method, shape: ModelShape) -> None:
    """Raise MethodError with everything that the method cannot do on a model of this shape, a line each."""
    if problems := method.check(shape):
        raise MethodError("\n".join(f"method.{field}: {message}" for field, message in problems))


def apply_method(recipe: Recipe, model: nn.Module, fresh: frozenset[str]) -> tuple[nn.Module, ParameterReport]:
    """Apply the recipe's method and report what trains; the count must equal the method's own formula."""
    method = recipe.method
    expected = method.count_trainable(shape_of(model, fresh, recipe.model.task))
    model = method.apply(model, fresh)
    report = parameter_report(model, stored=method.stores)
    if report.trainable != expected:
        raise AssertionError(f"{report.trainable:,} parameters train, but the method's formula says {expected:,}")
    return model, report


def check_positions(recipe: Recipe, dataset: Dataset, model: nn.Module) -> None:
    """Raise DataError for rows that are longer than the model has positions for."""
    positions = count_positions(model.config)
    longest = max(len(row.input_ids) for row in (*dataset.train, *dataset.all_held_out))
    if positions and recipe.method.virtual_tokens >= positions:
        told = f"{recipe.method.virtual_tokens} virtual tokens leave no room for text"
        raise MethodError(f"method.length: {told} in the model's {positions} positions")
    if positions and longest + recipe.method.virtual_tokens > positions:
        learned = f" and {recipe.method.virtual_tokens} virtual ones" if recipe.method.virtual_tokens else ""
        raise DataError(
            f"data.max_length: the longest row has {longest} tokens{learned}, but the model has {positions} positions; "
            f"set data.max_length={positions - recipe.method.virtual_tokens}"
        )


def prepare(recipe: Recipe, world: World, foresee: Callable[[Dataset], Recipe] | None = None) -> Bench:
    """Read the data, check the method against the model's sizes, and only then load weights.

    `foresee` is called with the data just before that, returns the recipe to go on with, and may refuse to.
    """
    seed = recipe.run.seed if recipe.data.seed is None else recipe.data.seed
    examples = load_examples(recipe.data, recipe.task, seed)
    shape = read_shape(recipe, examples.labels)
    check_method(recipe.method, shape)
    tokenizer = load_tokenizer(recipe.model)
    dataset = tokenise(examples, tokenizer, shape.vocabulary)
    if foresee is not None:
        recipe = foresee(dataset)
    torch.manual_seed(recipe.run.seed)
    probe, storage = Probe(world.device), recipe.method.base_storage
    with probe.alone("load"):
        loaded = load_model(
            recipe.model, device=world.device, labels=examples.labels, seen=probe.ledger.hold, **storage
        )
    check_positions(recipe, dataset, loaded.model)
    fit_tokenizer(loaded.model, tokenizer)
    return Bench(recipe, world, tokenizer, dataset, loaded.model, loaded.fresh, loaded.source, probe.report())
