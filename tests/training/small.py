"""A loop's setup around a tiny random model and ragged rows, without recipe files."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from peftlab.data.batches import Padded
from peftlab.data.rows import ShuffledRows
from peftlab.data.token_rows import IGNORED, TextRow
from peftlab.methods import Full
from peftlab.optimization.schedule import build_optimizer, build_schedule
from peftlab.optimization.step import open_scaler
from peftlab.recipe.schema import Recipe
from peftlab.speed.loss import loss_of
from peftlab.training.setup import NoSaver, Setup
from peftlab.training.stop import Stop
from peftlab.world.open import open_world

CPU = torch.device("cpu")
PADDED = Padded(0)


def tiny_llama(**changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, "vocab_size": 64, "pad_token_id": 0, **changes}))


def ragged_rows(count: int = 12, seed: int = 0) -> list[TextRow]:
    """Rows of 4 to 19 tokens, of which the last few are supervised."""
    random = np.random.default_rng(seed)
    rows = []
    for length in random.integers(4, 20, count):
        ids = random.integers(1, 64, length).astype(np.int32)
        labels = np.where(np.arange(length) < random.integers(1, length), IGNORED, ids).astype(np.int32)
        rows.append(TextRow(ids, labels))
    return rows


def small_recipe(**training) -> Recipe:
    settings = {"steps": 4, "learning_rate": 1e-2, "clip": None, "schedule": "constant"} | training
    return Recipe.model_validate(
        {"model": {"name": "-"}, "method": {"type": "full"}, "data": {"train": "-"}, "training": settings}
    )


def small_setup(model=None, rows=None, layout=PADDED, **training) -> Setup:
    recipe = small_recipe(**training)
    model = Full().apply(model or tiny_llama())
    settings = recipe.training
    optimizer = build_optimizer(model, recipe, CPU)
    return Setup(
        world=open_world("cpu"),
        recipe=recipe,
        model=model,
        loss=loss_of(recipe.task, settings.speed, model),
        optimizer=optimizer,
        clip=settings.clip,
        scaler=open_scaler(torch.float32, CPU),
        foreach=None,
        schedule=build_schedule(optimizer, settings, settings.steps),
        rows=ShuffledRows(
            rows or ragged_rows(), layout, settings.batch_size, settings.gradient_accumulation, 0, 1, seed=0
        ),
        precision=torch.float32,
        steps=settings.steps,
        stop=Stop(),
        evaluate=lambda: {},
        saver=NoSaver(),
    )
