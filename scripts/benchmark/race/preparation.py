"""What all runs of a race share on disk: a plain model folder, the rows of every step, the first weights."""

from __future__ import annotations

import json
from pathlib import Path

from race.cases import RECIPES, SHAPES, Case
from race.job import Job

NO_EVALUATION = ["evaluation={generation: {examples: 0}}"]


def write_model(name: str, folder: Path, precision: str, device: str) -> None:
    """Write a model, or a published shape with random weights, with its tokenizer as a plain folder."""
    import torch

    from peftlab.models.load import load_model
    from peftlab.models.tokenizer import load_tokenizer
    from peftlab.recipe.schema import Model

    shape = SHAPES / name
    settings = {"init": "random", "tokenizer": "builtin:tiny"} if shape.is_dir() else {}
    section = Model(name=str(shape) if shape.is_dir() else name, dtype=precision, **settings)
    torch.manual_seed(0)
    model = load_model(section, device=device).model
    model.save_pretrained(folder, max_shard_size="2GB")
    load_tokenizer(section).save_pretrained(folder)


def make_job(
    case: Case,
    method: str,
    model: Path,
    folder: Path,
    data: list[str],
    steps: int,
    warm_up: int,
    device: str,
    precision: str,
    threads: int,
    own: list[str],
) -> Job:
    """Return the job of a case and a method; its rows and first weights are not written yet."""
    from peftlab.recipe.load import load_recipe

    recipe = RECIPES / "memory-savings" / f"{method}.yaml"
    settings = ["model.init=pretrained", "model.tokenizer=null", *data, *NO_EVALUATION, *own]
    loaded = load_recipe(recipe, settings)
    return Job(
        model=str(model),
        method=method,
        recipe=str(recipe),
        settings=settings,
        rows=str(folder / "rows.json"),
        start=str(folder / "start.safetensors"),
        steps=steps,
        warm_up=warm_up,
        device=device,
        precision=precision,
        threads=threads,
        checkpointing=loaded.training.gradient_checkpointing is True,
        learning_rate=loaded.training.learning_rate,
        fields=json.loads(loaded.method.model_dump_json()),
    )
