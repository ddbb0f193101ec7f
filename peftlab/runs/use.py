"""Using what a run has trained: evaluate it, generate with it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from peftlab.data.chat import render_prompt
from peftlab.data.tokens import encode_chat_prompt
from peftlab.errors import StorageError, UsageError
from peftlab.evaluation.generate import add_stop_ids, generate_text
from peftlab.models.load import load_tokenizer
from peftlab.recipe.load import load_recipe
from peftlab.recipe.schema import Recipe
from peftlab.runs.bench import prepare
from peftlab.runs.directory import RunDirectory
from peftlab.runs.launch import launched
from peftlab.runs.loading import fill_trained, load_trained
from peftlab.tasks.formats import CHAT
from peftlab.world.dtypes import resolve_types
from peftlab.world.open import open_world
from peftlab.world.quiet import quiet_libraries


def evaluate(folder: Path, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Return the metrics of a run's trained weights on its evaluation and test rows, or on others by `overrides`."""
    quiet_libraries()
    directory, recipe = open_run(folder, overrides)
    world = open_world(recipe.run.device)
    with launched(world):
        bench = prepare(recipe, world)
        if not (bench.dataset.evaluation or bench.dataset.test):
            raise UsageError("this recipe has no evaluation rows; name some, as in data.evaluation=FILE")
        model = fill_trained(recipe, bench.base, directory.weights, bench.device)
        metrics, _ = bench.evaluate(model)
        test_metrics, _ = bench.evaluate(model, "test")
    return metrics | {f"test_{name}": value for name, value in test_metrics.items()}


def generate(folder: Path, prompt: str, overrides: Sequence[str] = ()) -> str:
    """Return the text that a run's model generates for `prompt`; needs no data."""
    quiet_libraries()
    refuse_unreadable(prompt)
    directory, recipe = open_run(folder, overrides)
    if not recipe.task.generates:
        raise UsageError(f"{folder} is a {recipe.task.name} run, which generates no text; use `peftlab evaluate`")
    world, tokenizer = open_world(recipe.run.device), load_tokenizer(recipe.model)
    types = resolve_types(recipe.model.dtype, recipe.training.precision, world.device)
    ends = directory.read_result().data.get("train", {})
    with launched(world):
        model = load_trained(recipe, directory.weights, world.device)
        add_stop_ids(model, ends.get("stop_ids", ()))
        (text,) = generate_text(
            model,
            tokenizer,
            [encode_request(recipe, prompt, tokenizer)],
            recipe.evaluation.generation,
            prompting=recipe.method.prompting,
            stop=ends.get("stop_texts", ()),
            autocast=partial(world.autocast, types.computation),
        )
    return text


def encode_request(recipe: Recipe, prompt: str, tokenizer: Any) -> str | list[int]:
    """Return what the model reads for `prompt`: in a chat, the tokens of a user's first message."""
    if recipe.data.format != CHAT.name:
        return prompt
    messages = [{"role": "user", "content": prompt}]
    return encode_chat_prompt(tokenizer, render_prompt(messages, tokenizer, recipe.data.template_kwargs))


def refuse_unreadable(prompt: str) -> None:
    """Raise UsageError for a prompt that is empty or not valid UTF-8."""
    if not prompt.strip():
        raise UsageError("the prompt is empty; write a text that the model should continue or answer")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UsageError("the prompt is not valid UTF-8") from None


def open_run(folder: Path, overrides: Sequence[str]) -> tuple[RunDirectory, Recipe]:
    """Return a run's directory and its recipe. Raises StorageError unless it has trained weights."""
    directory = RunDirectory.open(folder)
    if not directory.weights.is_dir():
        status = directory.read_result().status
        raise StorageError(f"{folder} has no trained weights (the run's status is {status!r})")
    recipe = load_recipe(directory.recipe, overrides)
    if recipe.model.trust_remote_code and "model.trust_remote_code=true" not in overrides:
        raise UsageError(
            f"{folder}: its recipe runs the code that {recipe.model.name} ships; if you trust the run and that model, "
            "add model.trust_remote_code=true"
        )
    return directory, recipe
