"""Text that a run's trained model writes: no data is read, only the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from peftlab.models.load import load_saved_tokenizer
from peftlab.recipe.schema import Recipe
from peftlab.runs.launch import launched
from peftlab.runs.loaded import as_loaded, open_writing_run, refuse_unknown_tokens
from peftlab.runs.loading import load_trained
from peftlab.runs.requests import Request, ask, encode
from peftlab.world.open import open_world
from peftlab.world.quiet import quiet_libraries

Requests = Callable[[Recipe], Sequence[Request]]


@dataclass(frozen=True)
class Generated:
    """One answer: the prompt as the model read it, what it wrote, and whether it ended by itself.

    `cut` is the number of the prompt's tokens for which the model had no positions, `long` whether it has more than
    `data.max_length`, to which training and evaluation shorten rows.
    """

    prompt: str
    text: str
    ended: bool
    cut: int = 0
    long: bool = False


def generate(folder: Path, prompt: str, overrides: Sequence[str] = (), system: str | None = None) -> str:
    """Return the text that a run's model generates for `prompt`, in a chat after a system message; needs no data."""
    (answer,) = generate_all(folder, lambda recipe: [ask(recipe, prompt, system)], overrides)
    return answer.text


def generate_all(
    folder: Path,
    requests: Requests,
    overrides: Sequence[str] = (),
    *,
    verify: bool = True,
    watch: Callable[[str], None] | None = None,
) -> list[Generated]:
    """Return a run's answers to what `requests` returns for its recipe, in batches of its evaluation.

    What it reads of the run is compared with the run's own digests first, unless `verify` is false.
    `watch` is called with each piece of the answer to a single request as it is written.
    """
    quiet_libraries()
    directory, recipe = open_writing_run(folder, overrides, verify)
    world = open_world(recipe.run.device)
    # What the requests lack is refused before the model is loaded.
    tokenizer, wanted = load_saved_tokenizer(directory.weights, recipe.model), requests(recipe)
    asked = [encode(request, recipe, tokenizer) for request in wanted]
    with launched(world):
        model = load_trained(recipe, directory.weights, world.device)
        refuse_unknown_tokens([one.ids for one in asked], tokenizer, model)
        run = as_loaded(folder.name, directory, recipe, model, world, recipe.method.prompting)
        answers = run.answer(asked, recipe.evaluation.generation, watch=watch if world.is_main else None)
    return [
        Generated(one.text, answer.text, answer.ended, answer.cut, len(one.ids) > recipe.data.max_length)
        for one, answer in zip(asked, answers, strict=True)
    ]
