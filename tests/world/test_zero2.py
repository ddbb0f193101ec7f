"""ZeRO-2: what is its own; `test_divided` compares its runs with those of one process."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from peftlab.errors import MissingRequirementError
from peftlab.memory.ledger import CATEGORIES
from peftlab.memory.strategies import STRATEGIES, Division, Weight
from peftlab.optimizers.base import Optimizer
from peftlab.recipe.schema import Recipe
from peftlab.runs.planner import Planner
from peftlab.world import zero2
from peftlab.world.open import open_world
from peftlab.world.request import variables_of
from peftlab.world.zero2 import Zero2
from tests.runs.recipes import shallow_sections


@pytest.mark.parametrize(("variable", "setting"), zero2.UNREAD.items())
def test_settings_of_a_launcher_that_are_not_read_are_refused(tmp_path, monkeypatch, variable, setting):
    recipe = Recipe.model_validate(shallow_sections("lora", tmp_path, steps=1))
    monkeypatch.setenv(variable, "none")
    assert not Zero2.why_not(recipe, torch.device("cpu"))
    monkeypatch.setenv(variable, "cpu")
    assert Zero2.why_not(recipe, torch.device("cpu")).startswith(f"{setting} is not read")


def test_an_optimizer_that_needs_whole_tensors_is_refused(tmp_path):
    recipe = Recipe.model_validate(shallow_sections("lora", tmp_path, steps=1))
    assert recipe.training.optimizer.elementwise and not Optimizer(type="new").elementwise
    training = SimpleNamespace(
        optimizer=Optimizer(type="new"), precision="auto", average=recipe.training.average, optimizer_in_backward=False
    )
    unknown = SimpleNamespace(model=recipe.model, training=training)
    assert "divides the optimizer's states" in Zero2.why_not(unknown, torch.device("cpu"))


def test_without_deepspeed_one_line_says_what_to_install(monkeypatch):
    for name, value in variables_of("zero2").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingRequirementError, match=r"pip install 'peftlab\[deepspeed\]'"):
        open_world("cpu")


def test_a_plan_of_a_device_has_its_part_of_the_states(tmp_path):
    """By hand: half of Adam's two moments, and a second copy of half of what trains."""
    recipe = Recipe.model_validate(shallow_sections("lora", tmp_path, steps=1))
    alone, pair = (Planner(torch.device("cpu"), processes=count, strategy="zero2")(recipe) for count in (1, 2))
    assert pair.categories["frozen_weights"] == alone.categories["frozen_weights"]
    assert pair.categories["optimiser_state"] == pytest.approx(alone.categories["optimiser_state"] / 2, rel=0.01)
    assert pair.categories["trainable_weights"] == pytest.approx(1.5 * alone.categories["trainable_weights"], rel=0.01)
    trained = alone.categories["trainable_weights"]
    assert pair.communication.sent_bytes == {"weights": trained // 2, "gradients": trained // 2}


def test_a_backward_pass_has_a_bucket_from_the_first_gradient_on():
    """By hand: 40 bytes train, 20 of them here, which are kept from the first pass on."""
    part, row = np.zeros((len(CATEGORIES), 4), dtype=np.int64), CATEGORIES.index("gradients")
    part[row] = [0, 0, 10, 40]
    division = Division((Weight(4, 10, trains=True),), 2)
    found = [STRATEGIES["zero2"].share(part, ("steady_step", number, "backward"), division)[row] for number in (1, 2)]
    assert found[0].tolist() == [0, 0, 40 + 10, 40 + 30]
    assert found[1].tolist() == [20, 20, 20 + 40 + 10, 20 + 40 + 30]
