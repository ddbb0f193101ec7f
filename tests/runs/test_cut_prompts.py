"""Prompts that are too long for the model's positions are counted before anything is generated from them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from peftlab.data.prompts import Prompt
from peftlab.recipe.schema import Recipe
from peftlab.runs.longest import note_cut_prompts


@pytest.mark.parametrize(("lengths", "cut"), [((5, 40), None), ((5, 41), "1 of 2"), ((41, 50), "2 of 2")])
def test_prompts_beyond_the_positions_are_noted(lengths, cut):
    recipe = Recipe.model_validate(
        {
            "model": {"name": "x"},
            "method": {"type": "lora"},
            "data": {"train": "x", "evaluation": "y"},
            "training": {"steps": 1, "learning_rate": 1},
            "evaluation": {"metrics": ["exact_match"], "generation": {"max_new_tokens": 24}},
        }
    )
    prompts = [Prompt("", [1] * length, ("a",)) for length in lengths]
    dataset = SimpleNamespace(prompts=prompts, test_prompts=[])
    model = nn.Module()
    model.config = SimpleNamespace(max_position_embeddings=64)
    notes = note_cut_prompts(recipe, dataset, model)
    assert [note.partition(": ")[2].partition(" prompts")[0] for note in notes] == ([cut] if cut else [])
