"""Plans of models that ask tensors for their values, which fake ones do not have, against their measured steps."""

from __future__ import annotations

import pytest
import torch

from peftlab.memory.private import split_with_sizes
from peftlab.recipe.schema import Recipe
from peftlab.runs.display import NoDisplay
from peftlab.runs.dry_run import dry_run
from peftlab.tasks import TASKS
from tests.gauntlet.cases import Case, recipe_of, write_rows
from tests.gauntlet.small import build
from tests.sampling import sampled

CLASSIFY, TAG = "sequence-classification", "token-classification"
TYPES = {
    "tokens of each expert": ("jetmoe", "causal-lm"),
    "ends of rows": ("bart", CLASSIFY),
    "chunks, of a number's quotient": ("longformer", TAG),
    "a list of tables, larger than that of layers": ("markuplm", TAG),
    "a layer that returns a list, masks kept as buffers": ("openai-gpt", "causal-lm"),
}
QUICK = ("tokens of each expert",)


def look(model_type: str, task: str, folder) -> tuple[dict, list[str]]:
    """Return the memory of a case with LoRA, planned and measured, and its notes."""
    base = build(model_type, task, folder)
    rows = write_rows(TASKS[task], folder)
    recipe = Recipe.model_validate(recipe_of(Case(model_type, task, "lora"), base, rows, folder / "run", plan="report"))
    display, notes = NoDisplay(), []
    display.note = notes.append
    return dry_run(recipe, display=display).memory, notes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("asked", sampled(list(TYPES), QUICK))
def test_a_plan_does_not_depend_on_values(asked, tmp_path):
    memory, _ = look(*TYPES[asked], tmp_path)
    planned, measured = (memory[source].phases for source in ("predicted", "measured"))
    assert {"load", "first_step", "steady_step", "evaluation"} <= planned.keys() & measured.keys()
    for phase in planned.keys() & measured.keys():
        assert planned[phase] == pytest.approx(measured[phase], rel=0.02), phase


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_plan_that_would_depend_on_values_is_not_made(tmp_path):
    memory, notes = look("longformer", CLASSIFY, tmp_path)
    assert "predicted" not in memory
    assert any("which tokens of longformer read all others depends on values" in note for note in notes)


def test_sizes_that_do_not_fit_were_read_from_values_and_become_equal():
    parts = split_with_sizes(torch.arange(7), [1, 1, 1])
    assert [part.tolist() for part in parts] == [[0, 1, 2], [3, 4], [5, 6]]
    assert [part.tolist() for part in split_with_sizes(torch.arange(3), [1, 2])] == [[0], [1, 2]]
