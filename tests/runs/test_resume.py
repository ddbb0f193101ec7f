from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import torch

from peftlab.checkpoint.tensors import load_state
from peftlab.errors import StoppedError, StorageError
from peftlab.methods import METHODS
from peftlab.recipe.schema import Recipe
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from tests.runs.recipes import short_sections


def recipe(method, folder, run=None, method_fields=None, **training) -> Recipe:
    sections = short_sections(method, folder, **{"gradient_accumulation": 2, "batch_size": 2, "warmup": 4} | training)
    sections["run"] |= {"save_every": 3} | (run or {})
    sections["method"] = sections["method"] | (method_fields or {})
    sections["data"] |= {"train_rows": 14, "evaluation_rows": 4}
    return Recipe.model_validate(sections)


def final_state(folder):
    steps = sorted((folder / "checkpoints").iterdir())
    return load_state(steps[-1], "state")


def assert_same_bytes(one, other):
    assert one["weights"].keys() == other["weights"].keys()
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], tensor, rtol=0, atol=0)
    for key, moments in one["optimizer"]["state"].items():
        for name, value in moments.items():
            torch.testing.assert_close(other["optimizer"]["state"][key][name], value, rtol=0, atol=0)
    for part in ("schedule", "scaler", "progress"):
        assert one[part] == other[part], part


def stop_and_resume(one, folder, **changes):
    with pytest.raises(StoppedError, match="stopped after step"):
        train(one, display=NoDisplay())
    assert RunDirectory.open(folder).read_result().status == "interrupted"
    going_on = one.model_copy(update={"run": one.run.model_copy(update={"stop_after": None} | changes)})
    return train(going_on, resume=True, display=NoDisplay())


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["event"], line["step"], line["loss"]) for line in lines]


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_and_resumed_run_equals_a_straight_one_byte_for_byte(tmp_path, method):
    """Six steps over 14 rows of 4 a step: the stop after step 4 lies in the second epoch and past the warm-up."""
    fields = {"dropout": 0.1} if method in ("lora", "qlora") else {}
    straight = train(recipe(method, tmp_path / "a", method_fields=fields), display=NoDisplay())
    stopped = recipe(method, tmp_path / "b", {"stop_after": 4}, fields)
    resumed = stop_and_resume(stopped, tmp_path / "b")
    (report,) = resumed.resumes
    assert report.exact and report.step == 4, report.reasons
    assert_same_bytes(final_state(tmp_path / "a"), final_state(tmp_path / "b"))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert straight.metrics == resumed.metrics
    assert straight.progress == resumed.progress


def test_a_run_stopped_in_mid_warmup_and_twice_is_exact(tmp_path):
    train(recipe("lora", tmp_path / "a"), display=NoDisplay())
    stop_at = {"stop_after": 1}
    with pytest.raises(StoppedError):
        stop_and_resume(recipe("lora", tmp_path / "b", stop_at), tmp_path / "b", stop_after=2)
    again = train(recipe("lora", tmp_path / "b"), resume=True, display=NoDisplay())
    assert [report.step for report in again.resumes] == [1, 2]
    assert_same_bytes(final_state(tmp_path / "a"), final_state(tmp_path / "b"))


def test_a_killed_run_resumes_from_its_latest_checkpoint(tmp_path):
    """What a kill between checkpoints leaves: a record that says running, lines past the checkpoint."""
    train(recipe("bitfit", tmp_path / "a"), display=NoDisplay())
    train(recipe("bitfit", tmp_path / "b"), display=NoDisplay())
    directory = RunDirectory.open(tmp_path / "b")
    shutil.rmtree(directory.checkpoints / "step-000006")
    shutil.rmtree(directory.weights)
    directory.write_result(directory.read_result().model_copy(update={"status": "running"}))
    resumed = train(recipe("bitfit", tmp_path / "b"), resume=True, display=NoDisplay())
    assert resumed.resumes[0].step == 3
    assert_same_bytes(final_state(tmp_path / "a"), final_state(tmp_path / "b"))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_stops_with_its_exit_code(tmp_path, number, code):
    class Impatient(NoDisplay):
        def update(self, line, steps):
            if line["event"] == "train":
                os.kill(os.getpid(), number)

    with pytest.raises(StoppedError, match=f"stopped after step 1 of 6 \\(signal {number}\\)") as caught:
        train(recipe("bitfit", tmp_path / "run"), display=Impatient())
    assert caught.value.exit_code == code
    assert train(recipe("bitfit", tmp_path / "run"), resume=True, display=NoDisplay()).resumes[0].exact


def test_the_time_limit_saves_and_stops(tmp_path):
    with pytest.raises(StoppedError, match="run.max_seconds") as caught:
        train(recipe("bitfit", tmp_path / "run", {"max_seconds": 0.001}), display=NoDisplay())
    assert caught.value.exit_code == 11
    assert RunDirectory.open(tmp_path / "run").checkpoints.is_dir()


def test_a_changed_recipe_is_refused_with_the_difference(tmp_path):
    with pytest.raises(StoppedError):
        train(recipe("lora", tmp_path / "run", {"stop_after": 2}), display=NoDisplay())
    with pytest.raises(StorageError, match=r"of another run: training.learning_rate: 0.005 -> 0.5"):
        train(recipe("lora", tmp_path / "run", learning_rate=0.5), resume=True, display=NoDisplay())


def test_more_steps_may_be_asked_for_and_are_told_to_be_inexact(tmp_path):
    train(recipe("bitfit", tmp_path / "run"), display=NoDisplay())
    longer = train(recipe("bitfit", tmp_path / "run", steps=8), resume=True, display=NoDisplay())
    assert longer.progress.step == 8
    assert not longer.resumes[0].exact
    assert longer.resumes[0].reasons == ["training.steps: 6 -> 8"]


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    first = train(recipe("bitfit", tmp_path / "run"), display=NoDisplay())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert train(recipe("bitfit", tmp_path / "run"), resume=True, display=NoDisplay()) == first
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    lock = tmp_path / "run" / ".lock"
    before.pop(lock), after.pop(lock)
    assert before == after


def test_resuming_nothing_is_an_error(tmp_path):
    with pytest.raises(StorageError, match="is not a run directory of peftlab"):
        train(recipe("bitfit", tmp_path / "run"), resume=True, display=NoDisplay())


def test_resuming_without_a_checkpoint_is_an_error(tmp_path):
    train(recipe("bitfit", tmp_path / "run", {"save_every": None}), display=NoDisplay())
    with pytest.raises(StorageError, match="no checkpoint to resume from; checkpoints come with run.save_every"):
        train(recipe("bitfit", tmp_path / "run", steps=8), resume=True, display=NoDisplay())


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path):
    train(recipe("bitfit", tmp_path / "run"), display=NoDisplay())
    damaged = tmp_path / "run" / "checkpoints" / "step-000006" / "state.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    longer = train(recipe("bitfit", tmp_path / "run", steps=7), resume=True, display=NoDisplay())
    assert longer.resumes[0].step == 3


def test_a_second_run_in_the_same_directory_is_refused(tmp_path):
    directory = RunDirectory.claim(tmp_path / "run")
    with directory.lock(), pytest.raises(StorageError, match=f"is in use by .*{os.getpid()}"):
        train(recipe("bitfit", tmp_path / "run"), display=NoDisplay())
