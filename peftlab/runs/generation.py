"""Text that a run's trained model writes: no data is read, only the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from peftlab.errors import UsageError
from peftlab.evaluation.generate import add_stop_ids, generate_answers
from peftlab.models.load import load_saved_tokenizer
from peftlab.parameters.shape import shape_of
from peftlab.recipe.schema import Recipe
from peftlab.runs.launch import launched
from peftlab.runs.loading import load_trained
from peftlab.runs.requests import Request, ask, encode
from peftlab.runs.use import open_run
from peftlab.world.dtypes import resolve_types
from peftlab.world.open import open_world
from peftlab.world.quiet import quiet_libraries

Requests = Callable[[Recipe], Sequence[Request]]


@dataclass(frozen=True)
class Generated:
    """One answer: the prompt as the model read it, what it wrote, and whether it ended by itself.

    `cut` is the number of the prompt's tokens for which the model had no positions.
    """

    prompt: str
    text: str
    ended: bool
    cut: int = 0


def generate(folder: Path, prompt: str, overrides: Sequence[str] = (), system: str | None = None) -> str:
    """Return the text that a run's model generates for `prompt`, in a chat after a system message; needs no data."""
    (answer,) = generate_all(folder, lambda recipe: [ask(recipe, prompt, system)], overrides)
    return answer.text


def generate_all(
    folder: Path, requests: Requests, overrides: Sequence[str] = (), *, verify: bool = True
) -> list[Generated]:
    """Return a run's answers to what `requests` returns for its recipe, in batches of its evaluation.

    What it reads of the run is compared with the run's own digests first, unless `verify` is false.
    """
    quiet_libraries()
    directory, recipe = open_run(folder, overrides, verify)
    if not recipe.task.generates:
        raise UsageError(f"{folder} is a {recipe.task.name} run, which generates no text; use `peftlab evaluate`")
    world, tokenizer = open_world(recipe.run.device), load_saved_tokenizer(directory.weights, recipe.model)
    ends = directory.read_result().data.get("train", {})
    asked = [encode(request, recipe, tokenizer) for request in requests(recipe)]
    types = resolve_types(recipe.model.dtype, recipe.training.precision, world.device)
    with launched(world):
        model = load_trained(recipe, directory.weights, world.device)
        refuse_unknown_tokens([one.ids for one in asked], tokenizer, model)
        add_stop_ids(model, ends.get("stop_ids", ()))
        answers = generate_answers(
            model,
            tokenizer,
            [one.ids for one in asked],
            recipe.evaluation.generation,
            recipe.evaluation.batch_size or recipe.training.batch_size,
            prompting=recipe.method.prompting,
            leads=[one.lead for one in asked],
            stop=ends.get("stop_texts", ()),
            autocast=partial(world.autocast, types.computation),
        )
    return [
        Generated(one.text, answer.text, answer.ended, answer.cut) for one, answer in zip(asked, answers, strict=True)
    ]


def refuse_unknown_tokens(prompts: Sequence[Sequence[int]], tokenizer: Any, model: Any) -> None:
    """Raise UsageError for a prompt with a token that the model has no embedding for."""
    largest, rows = max((max(ids, default=0) for ids in prompts), default=0), shape_of(model).vocabulary
    if largest >= rows > 0:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise UsageError(f"the prompt contains the token {token!r}, which the model has no embedding for; remove it")
