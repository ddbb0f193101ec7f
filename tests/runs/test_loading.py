"""A base of random weights is one and the same wherever a recipe's model is loaded."""

from __future__ import annotations

import torch

from peftlab.parameters.trainable import named_parameters
from peftlab.recipe.schema import Recipe
from peftlab.runs.display import NoDisplay
from peftlab.runs.generation import generate
from peftlab.runs.loading import load_base
from peftlab.runs.run import train
from tests.runs.recipes import shallow_sections


def random_sections(folder, seed: int = 3) -> dict:
    sections = shallow_sections("lora", folder, steps=1)
    sections["model"]["init"] = "random"
    sections["run"]["seed"] = seed
    return sections


def test_a_random_base_is_drawn_with_the_recipes_seed_whatever_was_drawn_before(tmp_path):
    recipe, other = (Recipe.model_validate(random_sections(tmp_path, seed)) for seed in (3, 4))
    device = torch.device("cpu")
    first = named_parameters(load_base(recipe, device).model)
    torch.rand(7)
    second, third = (named_parameters(load_base(one, device).model) for one in (recipe, other))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    assert not all(torch.equal(weight, third[name]) for name, weight in first.items())


def test_generate_has_the_random_base_that_was_trained_on(tmp_path):
    result = train(Recipe.model_validate(random_sections(tmp_path / "run")), display=NoDisplay())
    example = result.examples[-1]
    torch.manual_seed(99)
    assert generate(tmp_path / "run", example["prompt"]) == example["after"]
