"""`training.fit`: a step in smaller micro-batches is the same step, and is noted and recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from peftlab.data.batches import Padded
from peftlab.data.rows import ShuffledRows
from peftlab.errors import StorageError
from peftlab.recipe.load import load_recipe
from peftlab.recipe.schema import Recipe
from peftlab.runs.display import NoDisplay
from peftlab.runs.identity import recipe_changes, refuse_changed_recipe
from peftlab.runs.run import train
from tests.runs.recipes import shallow_sections

STEPS = 3


def run(folder, **changes):
    """Train with `training.fit` and return result, notes and the clipped gradients of the first step."""
    sections = shallow_sections("bitfit", folder, steps=STEPS, batch_size=6, clip=0.5, fit=True)
    sections["run"]["plan"] = "refuse"
    for section, values in changes.items():
        sections[section] |= values
    notes, display = [], NoDisplay()
    display.note = notes.append
    gradients = []
    watching = register_optimizer_step_pre_hook(lambda optimizer, *_: gradients.append(gradients_in(optimizer)))
    with watching:
        result = train(Recipe.model_validate(sections), display=display)
    # The preflight steps before the training does.
    return result, notes, gradients[-STEPS]


def gradients_in(optimizer) -> list[torch.Tensor]:
    return [p.grad.clone() for group in optimizer.param_groups for p in group["params"]]


def first_gradient_norm(result) -> float:
    lines = (Path(result.recipe["run"]["output"]) / "metrics.jsonl").read_text().splitlines()
    return next(line["gradient_norm"] for line in map(json.loads, lines) if line["event"] == "train")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that fits without a split."""
    return run(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def split(tmp_path_factory, whole):
    """The same run with memory for a little more than half of it."""
    needed = whole[0].memory["predicted"].needed_bytes
    return run(tmp_path_factory.mktemp("split") / "run", run={"memory": f"{needed * 7 // 10}B"})


def test_a_split_step_has_the_same_gradient_step(whole, split):
    """Oracle: gradients. In Adam's weights the rounding of a gradient near zero is as large as a step."""
    norms = [first_gradient_norm(result) for result, *_ in (whole, split)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert torch.cat([g.flatten() for g in whole[2]]).norm().item() == pytest.approx(0.5, rel=1e-5), "clipped"
    torch.testing.assert_close(split[2], whole[2], rtol=1e-5, atol=1e-6)
    assert split[0].progress == whole[0].progress
    assert split[0].metrics["after"]["loss"] == pytest.approx(whole[0].metrics["after"]["loss"], abs=1e-5)


def test_a_split_is_noted_recorded_and_fits(whole, split):
    result, notes, _ = split
    assert result.split.model_dump() == {
        "asked_batch_size": 6,
        "asked_gradient_accumulation": 1,
        "batch_size": 3,
        "gradient_accumulation": 2,
    }
    assert any("training.fit: 2 micro-batches of 3 rows a step instead of 1 micro-batches of 6" in n for n in notes)
    memory = result.memory["predicted"]
    assert memory.fits and memory.peak_bytes == pytest.approx(result.memory["measured"].peak_bytes, rel=0.02)
    kept = load_recipe(Path(result.recipe["run"]["output"]) / "recipe.yaml")
    assert (kept.training.batch_size, kept.training.gradient_accumulation, kept.training.fit) == (3, 2, True)
    assert whole[0].split is None and not any("training.fit" in note for note in whole[1])


def test_a_split_run_resumes_with_another_split_but_not_with_another_step(whole, split):
    asked, used = whole[0].recipe, split[0].recipe
    resumed = {**used, "training": {**used["training"], "batch_size": 1, "gradient_accumulation": 6}}
    assert not {key for key in recipe_changes(used, resumed) if key.startswith("training")}
    larger = {**used, "training": {**used["training"], "batch_size": 4}}
    with pytest.raises(StorageError, match="rows of a step: 6 -> 8"):
        refuse_changed_recipe(used, larger)
    assert asked["training"]["batch_size"] == 6


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_step_of_a_launch_keeps_its_rows_however_each_process_splits_its_own(processes):
    def rows_of_step(batch: int, accumulation: int) -> list[int]:
        found = []
        for process in range(processes):
            rows = ShuffledRows(range(97), Padded(0), batch, accumulation, process, processes, seed=3)
            found += [i for micro in range(accumulation) for i in rows.indices(2, micro, process)]
        return sorted(found)

    assert rows_of_step(6, 2) == rows_of_step(4, 3) == rows_of_step(1, 12)
