"""What only a CUDA device can show; `pytest -m gpu` runs it."""

from __future__ import annotations

import pytest

from peftlab.methods import METHODS
from peftlab.recipe.schema import Recipe
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from peftlab.runs.use import evaluate
from tests.runs.recipes import short_sections

pytestmark = pytest.mark.gpu


def cuda_recipe(method: str, output, **training) -> Recipe:
    sections = short_sections(method, output, **training)
    sections["run"]["device"] = "cuda"
    return Recipe.model_validate(sections)


@pytest.mark.parametrize("precision", ["bfloat16", "float32", "float16"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_reloads_in_every_precision(tmp_path, method, precision):
    recipe = cuda_recipe(method, tmp_path / "run", precision=precision)
    if precision == "float32":
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": "float32"})})
    result = train(recipe, display=NoDisplay())
    assert result.metrics["after"]["loss"] < result.metrics["before"]["loss"]
    assert result.audit.clean, result.audit
    assert result.memory["measured"].device == "cuda"
    # The 16-bit kernels of one shape are deterministic, but a fresh process may pick others.
    assert evaluate(tmp_path / "run")["loss"] == pytest.approx(result.metrics["after"]["loss"], abs=2e-3)


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw", "paged_adamw_8bit"])
def test_bitsandbytes_optimisers_train(tmp_path, optimizer):
    result = train(cuda_recipe("lora", tmp_path / "run", optimizer=optimizer), display=NoDisplay())
    assert result.metrics["after"]["loss"] < result.metrics["before"]["loss"]
    assert result.audit.clean


@pytest.mark.parametrize("method", [name for name in METHODS if name != "prefix"])
def test_gradient_checkpointing_gives_the_same_loss(tmp_path, method):
    losses = []
    for checkpointing in (False, True):
        recipe = cuda_recipe(method, tmp_path / str(checkpointing), gradient_checkpointing=checkpointing)
        losses.append(train(recipe, display=NoDisplay()).metrics["after"]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=5e-3)
