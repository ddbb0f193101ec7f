"""Stored bytes from sizes alone, against the tensors of files that were really written."""

from __future__ import annotations

import pytest
from safetensors import safe_open

from peftlab.budgets.solve import apply_budget
from peftlab.methods import METHODS
from peftlab.parameters.shape import shape_of
from peftlab.recipe.budget import parse_budget
from tests.budgets.recipes import recipe_for
from tests.budgets.shapes import published_shape
from tests.methods.tiny import head_names, tiny_model

SETTINGS = {
    "full": {"layers": 1},
    "lora": {"rank": 3, "dora": True},
    "qlora": {"rank": 2},
    "adapters": {"bottleneck": 5, "train_norms": True},
    "prefix": {"length": 3},
    "bitfit": {},
}
CASES = [
    *SETTINGS.items(),
    ("prefix", {"length": 3, "projection": True}),
    ("prefix", {"length": 3, "kind": "prompt"}),
    ("lora", {"rank": 2, "unfreeze": ("LayerNorm",)}),
]


def written_bytes(folder) -> int:
    """Return the bytes of all tensors in a folder's safetensors files."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            total += sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    return total


@pytest.mark.parametrize("head", ["new", "trained before"])
@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_the_formula_is_what_the_files_hold(kind, settings, head, tmp_path):
    method = METHODS[kind](**settings)
    model = tiny_model("bert", "sequence-classification")
    fresh = head_names(model) if head == "new" else frozenset()
    shape = shape_of(model, fresh, "sequence-classification")
    method.save(method.apply(model, fresh), tmp_path, {})
    assert method.count_stored_bytes(shape) == written_bytes(tmp_path)


def test_the_formula_holds_for_a_language_model_with_16_bit_weights(tmp_path):
    model = tiny_model("qwen2").bfloat16()
    method = METHODS["full"](layers=1)
    shape = shape_of(model)
    method.save(method.apply(model), tmp_path, {})
    assert method.count_stored_bytes(shape, frozen_bytes=2) == written_bytes(tmp_path)


@pytest.mark.parametrize("kind", ["lora", "adapters", "prefix"])
def test_stored_bytes_are_met_within_2_percent(kind):
    shape = published_shape("GPT-2 medium")
    solved, report = apply_budget(recipe_for({"type": kind}), parse_budget("stored=100MB"), shape)
    assert report.reached == 4 * solved.method.count_trainable(shape)
    assert report.met and abs(report.error) <= 0.02


def test_a_prefix_with_a_projection_is_solved_for_its_length_as_the_projection_is_not_stored():
    shape = published_shape("GPT-2 medium")
    recipe = recipe_for({"type": "prefix", "projection": True, "projection_dim": 64})
    solved, report = apply_budget(recipe, parse_budget("stored=2MB"), shape)
    assert report.solved == {"method.length": 10} and report.reached == 10 * 2 * 24 * 1024 * 4
    assert solved.method.projection and solved.method.projection_dim == 64


def test_full_fine_tuning_stores_all_regardless_of_what_trains_and_keeps_its_size():
    shape = published_shape("GPT-2 medium")
    solved, report = apply_budget(recipe_for({"type": "full", "layers": 3}), parse_budget("stored=20MB"), shape)
    assert report.solved == {"method.layers": 3} and solved.method.layers == 3
    assert report.reached == 4 * shape.total and not report.met
    assert report.reason == "method.layers does not change it: 1.3 GiB at every size"
