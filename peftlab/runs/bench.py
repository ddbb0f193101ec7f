"""One recipe's model, tokenizer and data, checked against each other and ready for a method."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from peftlab.data.dataset import Dataset, load_examples, tokenise
from peftlab.device import autocast, resolve_precision
from peftlab.errors import MethodError
from peftlab.evaluation.evaluate import evaluate
from peftlab.evaluation.generate import generate_examples
from peftlab.models.build import build_meta
from peftlab.models.load import load_model, load_tokenizer
from peftlab.parameters.shape import shape_of
from peftlab.recipe.schema import Recipe
from peftlab.shapes import ModelShape


@dataclass
class Bench:
    """What a method is applied to. `fresh` names the parameters that no checkpoint filled."""

    recipe: Recipe
    accelerator: Accelerator
    tokenizer: Any
    dataset: Dataset
    model: nn.Module
    fresh: frozenset[str]
    source: dict[str, Any]

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def precision(self) -> torch.dtype:
        return resolve_precision(self.recipe.training.precision, self.recipe.model.dtype, self.device)

    @property
    def batch_size(self) -> int:
        """Rows of one evaluation batch."""
        return self.recipe.evaluation.batch_size or self.recipe.training.batch_size

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the recipe's metrics of `model` on the evaluation rows, shared out over all processes."""
        return evaluate(
            model,
            self.dataset,
            self.recipe.evaluation,
            tokenizer=self.tokenizer,
            task=self.recipe.model.task,
            device=self.device,
            batch_size=self.batch_size,
            autocast=partial(autocast, self.precision, self.device),
            gather=gather_object,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )

    def generate_examples(self, model: nn.Module) -> list[dict[str, str]]:
        """Return the recipe's number of examples: prompt, reference, output."""
        return generate_examples(
            model,
            self.dataset,
            self.recipe.evaluation,
            self.tokenizer,
            batch_size=self.batch_size,
            autocast=partial(autocast, self.precision, self.device),
        )


def check_method(recipe: Recipe, labels: list[str] | None) -> ModelShape:
    """Return the sizes of the recipe's model, built without weights.

    Raises MethodError with everything that the method cannot do on a model of this shape, a line each.
    """
    model, fresh = build_meta(recipe.model, labels)
    shape = shape_of(model, fresh, recipe.model.task)
    if problems := recipe.method.check(shape):
        raise MethodError("\n".join(f"method.{field}: {message}" for field, message in problems))
    return shape


def prepare(recipe: Recipe, accelerator: Accelerator) -> Bench:
    """Read the data, check the method against the model's sizes, and only then load weights."""
    examples = load_examples(recipe.data, recipe.model.task, recipe.run.seed)
    shape = check_method(recipe, examples.labels)
    tokenizer = load_tokenizer(recipe.model)
    dataset = tokenise(examples, tokenizer, shape.vocabulary)
    torch.manual_seed(recipe.run.seed)
    loaded = load_model(recipe.model, device=accelerator.device, labels=examples.labels, **recipe.method.base_storage)
    return Bench(recipe, accelerator, tokenizer, dataset, loaded.model, loaded.fresh, loaded.source)
