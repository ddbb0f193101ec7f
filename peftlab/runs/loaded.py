"""Loaded models that write: those of runs, and the base that several of them share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from peftlab.errors import UsageError
from peftlab.evaluation.generate import PLAIN, Answer, add_stop_ids, generate_answers
from peftlab.methods import Prompting
from peftlab.methods.storage import read_manifest
from peftlab.models.load import LoadedModel, load_saved_tokenizer
from peftlab.models.reference import resolve
from peftlab.models.share import share_weights
from peftlab.parameters.shape import shape_of
from peftlab.parameters.trainable import named_parameters
from peftlab.recipe.schema import Generation, Recipe
from peftlab.runs.directory import RunDirectory
from peftlab.runs.loading import fill_trained, load_base
from peftlab.runs.requests import Encoded, Request, encode
from peftlab.runs.use import open_run
from peftlab.world.base import World
from peftlab.world.dtypes import resolve_types

BASE = "base"


@dataclass
class LoadedRun:
    """A run's model, or the base, with what its answers depend on; `ends` are its training rows' stop ids and texts."""

    name: str
    recipe: Recipe
    model: nn.Module
    tokenizer: Any
    ends: dict[str, Any]
    world: World
    prompting: Prompting
    is_base: bool = False

    def encode(self, request: Request) -> Encoded:
        """Return what the model reads of a request. Raises UsageError for a token that it has no embedding for."""
        encoded = encode(request, self.recipe, self.tokenizer)
        refuse_unknown_tokens([encoded.ids], self.tokenizer, self.model)
        return encoded

    def answer(
        self,
        asked: Sequence[Encoded],
        settings: Generation,
        *,
        seed: int = 0,
        watch: Callable[[str], None] | None = None,
        likelihoods: bool = False,
    ) -> list[Answer]:
        """Return the answers to encoded requests, in batches of the run's evaluation.

        `seed`, `watch` and `likelihoods` are those of `generate_answers`.
        """
        recipe = self.recipe
        types = resolve_types(recipe.model.dtype, recipe.training.precision, self.world.device)
        return generate_answers(
            self.model,
            self.tokenizer,
            [one.ids for one in asked],
            settings,
            recipe.evaluation.batch_size or recipe.training.batch_size,
            prompting=self.prompting,
            leads=[one.lead for one in asked],
            stop=self.ends.get("stop_texts", ()),
            seed=seed,
            autocast=partial(self.world.autocast, types.computation),
            watch=watch,
            likelihoods=likelihoods,
        )


def open_writing_run(folder: Path, overrides: Sequence[str], verify: bool) -> tuple[RunDirectory, Recipe]:
    """Return a run's directory and recipe. Raises UsageError for a run that generates no text."""
    directory, recipe = open_run(folder, overrides, verify)
    if not recipe.task.generates:
        raise UsageError(f"{folder} is a {recipe.task.name} run, which generates no text; use `peftlab predict`")
    return directory, recipe


class Bases:
    """The bases that were loaded, each once: the runs of one base share its memory."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._loaded: dict[str, LoadedModel] = {}

    def load(self, name: str, directory: RunDirectory, recipe: Recipe) -> LoadedRun:
        """Return a run's trained model."""
        base, method = self._base(recipe), recipe.method
        trained = read_manifest(directory.weights, method, {"base_model": base.source}).trained
        own = trained if method.keeps_base else named_parameters(base.model)
        copied = replace(base, model=share_weights(base.model, set(own)))
        model = fill_trained(recipe, copied, directory.weights, self._world.device)
        return as_loaded(name, directory, recipe, model, self._world, method.prompting)

    def load_base(self, name: str, directory: RunDirectory, recipe: Recipe) -> LoadedRun:
        """Return the base of a run, which reads prompts as the run does."""
        model = share_weights(self._base(recipe).model, ())
        return replace(as_loaded(name, directory, recipe, model, self._world, PLAIN), is_base=True)

    def _base(self, recipe: Recipe) -> LoadedModel:
        key = base_key(recipe)
        if key not in self._loaded:
            self._loaded[key] = load_base(recipe, self._world.device)
        return self._loaded[key]


def as_loaded(
    name: str, directory: RunDirectory, recipe: Recipe, model: nn.Module, world: World, prompting: Prompting
) -> LoadedRun:
    """Return a model with the tokenizer of a run's folder and the ends of its training rows, at which it stops too."""
    ends = directory.read_result().data.get("train", {})
    add_stop_ids(model, ends.get("stop_ids", ()))
    tokenizer = load_saved_tokenizer(directory.weights, recipe.model)
    return LoadedRun(name, recipe, model, tokenizer, ends, world, prompting)


def base_key(recipe: Recipe) -> str:
    """Return what decides a run's base: runs with the same key have the same one."""
    section, reference = recipe.model, resolve(recipe.model.name, recipe.model.revision)
    place = [str(reference.folder and reference.folder.resolve()), reference.hub_id, reference.gguf_file]
    drawn = recipe.run.seed if section.init == "random" else None
    rest = section.model_dump(mode="json", exclude={"name"})
    return json.dumps([place, rest, drawn, recipe.training.precision, recipe.method.base_storage], default=str)


def refuse_unknown_tokens(prompts: Sequence[Sequence[int]], tokenizer: Any, model: Any) -> None:
    """Raise UsageError for a prompt with a token that the model has no embedding for."""
    largest, rows = max((max(ids, default=0) for ids in prompts), default=0), shape_of(model).vocabulary
    if largest >= rows > 0:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise UsageError(f"the prompt contains the token {token!r}, which the model has no embedding for; remove it")
