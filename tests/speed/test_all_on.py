"""Everything on against everything off: the losses of many steps, of a small model of SmolLM2's kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from peftlab.data.token_rows import IGNORED, TextRow
from peftlab.models.recompute import recompute_activations
from peftlab.optimization.step import optimizer_step
from peftlab.recipe.speed import Speed
from peftlab.speed.apply import speed_up
from tests.memory.real import METHODS, prepare, tiny_recipe, write_model

# Llama's layers with fewer keys than queries and tied embeddings; weights that are not small, so that losses move.
SIZES = {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
SMOLLM2 = {**SIZES, "num_hidden_layers": 3, "tie_word_embeddings": True, "initializer_range": 0.15}
# What a step of these models uses, of every switch that is a speed-up of the step.
USED = {"loss", "packing", "feed_forward", "norm", "rotary"}


def ragged_rows(count: int = 48) -> list[TextRow]:
    """Rows of 3 to 30 tokens, the first half of each not supervised."""
    chance, rows = np.random.default_rng(0), []
    for length in chance.integers(3, 31, count):
        ids = chance.integers(1, 131, length).astype(np.int32)
        rows.append(TextRow(ids, np.where(np.arange(length) < length // 2, IGNORED, ids).astype(np.int32)))
    return rows


def losses(folder, name: str, switch: str, steps: int, recomputed: int = 0) -> torch.Tensor:
    """Return the loss of each step, after a check of what the steps use."""
    method = {"type": name, **METHODS[name]} | ({"add_missing": True} if name == "bitfit" else {})
    speed = dict.fromkeys(Speed.model_fields, switch)
    # All weights at the others' rate learn the rows by heart, and then roundings grow from step to step.
    rate = 3e-4 if name == "full" else 3e-3
    model = write_model(folder, "llama", **SMOLLM2)
    recipe = tiny_recipe(model, method, 40, batch_size=3, gradient_accumulation=2, learning_rate=rate, speed=speed)
    setup = replace(prepare(recipe, ragged_rows()), clip=1.0)
    recompute_activations(setup.model, recomputed)
    used = {one.name for one in speed_up(setup.model, recipe).switches if one.used}
    assert used >= USED | ({"linear"} if "lora" in name else set()) if switch == "auto" else not used
    setup.model.train()
    found = [
        optimizer_step(setup, setup.rows.batches(step), setup.rows.count(step).targets).losses.sum()
        for step in range(1, steps + 1)
    ]
    return torch.stack(found)


def assert_on_each_other(folder, name: str, steps: int) -> None:
    plain, fast = (losses(folder, name, switch, steps) for switch in ("off", "auto"))
    assert plain[-8:].mean() < 0.99 * plain[:8].mean(), "nothing was learned, so that nothing would show"
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["lora", "full"])
def test_the_first_losses_are_those_of_everything_off(tmp_path, name):
    plain, fast = (losses(tmp_path, name, switch, 12) for switch in ("off", "auto"))
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_200_losses_lie_on_those_of_everything_off(tmp_path, name):
    assert_on_each_other(tmp_path, name, 200)


def test_recomputed_layers_change_no_bit_of_the_losses(tmp_path):
    kept, recomputed = (losses(tmp_path, "lora", "auto", 6, count) for count in (0, 2))
    assert torch.equal(kept, recomputed)
