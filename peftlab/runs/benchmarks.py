"""A finished run on tasks of lm-evaluation-harness: its base, its trained weights, or the two merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from peftlab.data.chat import ChatTemplate
from peftlab.errors import UsageError
from peftlab.evaluation.generate import add_stop_ids
from peftlab.evaluation.harness import find_tasks, quiet_harness, refuse_missing_harness, run_tasks
from peftlab.models.load import load_saved_tokenizer
from peftlab.parameters.shape import count_positions
from peftlab.recipe.schema import Recipe
from peftlab.reports import Metrics
from peftlab.runs.directory import RunDirectory
from peftlab.runs.loading import load_base, load_trained
from peftlab.runs.requests import takes_chats
from peftlab.runs.use import open_run
from peftlab.world.dtypes import resolve_types
from peftlab.world.open import open_world

TRAINED = "trained"
Load = Callable[[Recipe, RunDirectory, torch.device], nn.Module]
LOADERS: dict[str, Load] = {
    TRAINED: lambda recipe, run, device: load_trained(recipe, run.weights, device),
    "base": lambda recipe, run, device: load_base(recipe, device).model,
    "merged": lambda recipe, run, device: recipe.method.merge(load_trained(recipe, run.weights, device)),
}
"""How each kind of weights of a run is loaded."""


def evaluate_tasks(
    folder: Path,
    tasks: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    weights: str = TRAINED,
    limit: int | None = None,
    shots: int | None = None,
) -> dict[str, Metrics]:
    """Return the harness's metrics of a run by task. Prompts of a run on chats are rendered as chats.

    `weights` is a name in LOADERS; `limit` and `shots` are those of `run_tasks`.
    Raises UsageError for a run whose model generates no text.
    """
    refuse_missing_harness()
    quiet_harness()
    directory, recipe = open_run(folder, overrides)
    if not recipe.task.generates:
        raise UsageError(f"--tasks: {folder} is a {recipe.task.name} run; the harness's tasks need a language model")
    wanted = find_tasks(tasks)
    world = open_world(recipe.run.device)
    if world.processes > 1:
        raise UsageError("--tasks runs in one process; start it without a launcher")
    prompting = recipe.method.prompting
    if weights != TRAINED:  # without what the method adds
        prompting = prompting._replace(padded=True, reserved=0)
    batch_size = recipe.evaluation.batch_size or recipe.training.batch_size
    model = LOADERS[weights](recipe, directory, world.device)
    add_stop_ids(model, directory.read_result().data.get("train", {}).get("stop_ids", ()))
    positions = count_positions(model)
    tokenizer, data = load_saved_tokenizer(directory.weights, recipe.model), recipe.data
    return run_tasks(
        model,
        tokenizer,
        wanted,
        batch_size=batch_size if prompting.padded and prompting.batched else 1,
        max_length=positions - prompting.reserved if positions else None,
        precision=resolve_types(recipe.model.dtype, recipe.training.precision, world.device).computation,
        limit=limit,
        shots=shots,
        chat=ChatTemplate(tokenizer, data.template_kwargs, data.date) if takes_chats(recipe) else None,
    )
