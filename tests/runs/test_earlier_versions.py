"""Runs that version 0.1.0 wrote (`version_0_1_0/`: BitFit on builtin:tiny) are resumed, evaluated and recognised."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from peftlab.errors import StorageError
from peftlab.recipe.load import load_recipe
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from peftlab.runs.use import evaluate

WRITTEN = Path(__file__).parent / "version_0_1_0"
# What 0.1.0 itself logged in steps 4 to 6 of the run that was never stopped.
LOSSES = [5.107449561050258, 5.031716654619832, 4.2263694701156]
HELD_OUT = 4.889909886131602


@pytest.fixture
def stopped(tmp_path) -> Path:
    return Path(shutil.copytree(WRITTEN / "stopped", tmp_path / "run"))


def resume(folder: Path, *overrides: str):
    recipe = load_recipe(folder / "recipe.yaml", [f"run.output={folder}", "run.stop_after=null", *overrides])
    return train(recipe, resume=True, display=NoDisplay())


def test_a_checkpoint_is_resumed_and_ends_as_the_run_that_was_never_stopped(stopped):
    result = resume(stopped)
    lines = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["event"] == "train" and line["step"] > 3]
    assert losses == pytest.approx(LOSSES, rel=1e-4)
    assert result.status == "finished" and result.metrics["after"]["loss"] == pytest.approx(HELD_OUT, rel=1e-4)


def test_the_resumed_run_notes_that_another_version_started_it(stopped):
    (report,) = resume(stopped).resumes
    assert report.step == 3 and not report.exact
    assert any(reason.startswith("versions.peftlab: 0.1.0 -> ") for reason in report.reasons)


def test_an_optimizer_written_as_a_name_is_the_same_recipe_and_another_one_is_not(stopped):
    assert "optimizer: adamw\n" in (stopped / "recipe.yaml").read_text()
    with pytest.raises(StorageError, match="training.optimizer"):
        resume(stopped, "training.optimizer={type: adamw, betas: [0.8, 0.9]}")


def test_trained_weights_are_evaluated(tmp_path):
    folder = Path(shutil.copytree(WRITTEN / "finished", tmp_path / "run"))
    assert evaluate(folder)["loss"] == pytest.approx(HELD_OUT, rel=1e-4)
