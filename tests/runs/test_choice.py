"""Early stopping ends where the evaluations say, and a run keeps the weights of the step that it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from peftlab.checkpoint.tensors import load_state
from peftlab.errors import StoppedError, StorageError
from peftlab.recipe.schema import Evaluation, Recipe
from peftlab.reports import Progress
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from peftlab.training.loop import note_best
from tests.runs.recipes import shallow_sections

LOSSES = [3.0, 2.0, 2.5, 2.0, None, 1.9]


def walk(values, **settings):
    """Return the progress after each evaluation, ten steps apart."""
    wanted, progress, found = Evaluation(every=10, metrics=("loss", "accuracy"), **settings), Progress(), []
    for number, value in enumerate(values, start=1):
        progress.step = 10 * number
        note_best(progress, {wanted.best: value}, wanted)
        found.append((progress.best_step, progress.waited, progress.ended_early))
    return found


def test_patience_counts_evaluations_that_are_not_better():
    # 2.5 is worse, the second 2.0 is equal, no value is not better: three in a row after step 20.
    best = [(10, 0), (20, 0), (20, 1), (20, 2), (20, 3), (60, 0)]
    assert walk(LOSSES) == [(step, waited, False) for step, waited in best]
    assert [ended for _, _, ended in walk(LOSSES, patience=2)] == [False, False, False, True, True, False]
    assert [ended for _, _, ended in walk(LOSSES, patience=4)] == [False] * 6


def test_the_best_is_the_highest_where_higher_is_better():
    assert [step for step, _, _ in walk([0.2, 0.6, float("nan"), 0.5], best="accuracy")] == [10, 20, 20, 20]


def recipe(folder: Path, keep: str, patience: int | None = None, **run) -> Recipe:
    """Eight steps that overfit eight rows at a high learning rate, evaluated after every second one."""
    sections = shallow_sections("lora", folder, steps=8, batch_size=2, learning_rate=3e-2, schedule="constant")
    sections["data"] |= {"train_rows": 8, "evaluation_rows": 4, "max_length": 32}
    sections["evaluation"] = {"every": 2, "patience": patience, "generation": {"examples": 0}}
    sections["run"] |= {"log_every": 1, "keep": keep} | run
    return Recipe.model_validate(sections)


def start(one: Recipe, resume: bool = False):
    return train(one, resume=resume, display=NoDisplay())


def evaluations(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["event"] == "evaluation"}


def weights(folder: Path) -> dict[str, list]:
    return {name: one.tolist() for name, one in load_file(next(folder.glob("*.safetensors"))).items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Straight runs that keep the last, the best, and both, and one that ends early."""
    root = tmp_path_factory.mktemp("choice")
    wanted = {"last": ("last", None), "best": ("best", None), "both": ("both", None), "early": ("last", 1)}
    return root, {name: start(recipe(root / name, *settings)) for name, settings in wanted.items()}


def test_the_kept_weights_are_those_of_the_best_evaluation(runs):
    root, results = runs
    found, best = evaluations(root / "best"), results["best"]
    measured = {step: loss for step, loss in found.items() if step}
    step = min(measured, key=measured.__getitem__)
    assert 0 < step < 8, "the case is not one: the last step is the best"
    assert (best.saved_step, best.progress.best_step, best.progress.step) == (step, step, 8)
    assert best.metrics["after"]["loss"] == measured[step]
    state = load_state(root / "best" / "checkpoints" / f"step-{step:06}", "state")["weights"]
    stored = {f"base_model.model.{name.replace('.default', '')}": one.tolist() for name, one in state.items()}
    assert weights(root / "best" / "weights") == stored
    assert any(note.startswith(f"the weights of step {step} are kept: the lowest loss") for note in best.notes)


def test_both_also_keeps_the_last_step_s_weights(runs):
    root, results = runs
    assert weights(root / "both" / "last") == weights(root / "last" / "weights")
    assert weights(root / "both" / "weights") == weights(root / "best" / "weights")
    assert results["last"].saved_step == 8
    assert not (root / "best" / "last").exists()


def test_choosing_changes_no_step(runs):
    root, _ = runs
    assert {step: loss for step, loss in evaluations(root / "best").items() if step != 8}.items() <= evaluations(
        root / "last"
    ).items() | evaluations(root / "both").items()


def test_training_ends_early_where_a_hand_calculation_says(runs):
    root, results = runs
    losses = [loss for step, loss in sorted(evaluations(root / "last").items()) if 0 < step < 8]
    ends = next(2 * (i + 1) for i in range(1, len(losses)) if losses[i] >= min(losses[:i]))
    early = results["early"]
    assert (early.status, early.progress.step, early.saved_step) == ("finished", ends, ends)
    assert any(f"training ended at step {ends} of 8: loss was not better in 1 evaluation" in one for one in early.notes)
    again = start(recipe(root / "early", "last", 1), resume=True)
    assert again.progress.step == ends, "a finished run is not trained further"


@pytest.mark.parametrize("at", [1, 3, 4, 7])
def test_a_run_that_stops_and_resumes_keeps_the_same(runs, tmp_path, at):
    root, results = runs
    with pytest.raises(StoppedError):
        start(recipe(tmp_path / "run", "both", stop_after=at))
    result = start(recipe(tmp_path / "run", "both"), resume=True)
    assert evaluations(tmp_path / "run") == evaluations(root / "both")
    assert result.metrics == results["both"].metrics
    assert result.progress == results["both"].progress
    for folder in ("weights", "last"):
        assert weights(tmp_path / "run" / folder) == weights(root / "both" / folder)


def test_a_damaged_best_checkpoint_is_noticed_before_it_is_used(tmp_path, monkeypatch):
    from peftlab.runs import choice

    def damage(record, bench, model, folder):
        for path in record.directory.checkpoints.glob("step-00000[0-7]/*.safetensors"):
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)

    monkeypatch.setattr(choice, "write_weights", damage)
    with pytest.raises(StorageError, match="safetensors"):
        start(recipe(tmp_path / "run", "both", save_every=8))


def test_a_missing_best_checkpoint_is_one_line_and_loses_nothing(runs, tmp_path, monkeypatch):
    from peftlab.runs import choice

    def lose(record, bench, model, folder):
        for path in record.directory.checkpoints.iterdir():
            if path.name != "step-000008":
                shutil.rmtree(path)

    monkeypatch.setattr(choice, "write_weights", lose)
    with pytest.raises(StorageError, match=r"the checkpoint of step \d, whose weights are the best, is missing"):
        start(recipe(tmp_path / "run", "both", save_every=8))
    assert RunDirectory.open(tmp_path / "run").read_result().status == "failed"
