"""Checkpoints of a real run: written in a thread, on a full disk, damaged in any file; and what never ends a run."""

from __future__ import annotations

import errno
import hashlib
import shutil
import time
from collections import namedtuple

import pytest
from accelerate import tracking
from transformers import AutoTokenizer

from peftlab.checkpoint.store import find_latest, list_steps
from peftlab.errors import StorageError
from peftlab.models.reference import resolve
from peftlab.recipe.schema import Recipe
from peftlab.runs import checkpoints, record, save
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from peftlab.runs.save import save_tokenizer
from tests.runs.recipes import shallow_sections
from tests.training.test_trackers import Fragile

FULL = OSError(errno.ENOSPC, "No space left on device")


def recipe(folder, **settings) -> Recipe:
    """Four steps of two short rows, each with a checkpoint, and no evaluation."""
    sections = shallow_sections("bitfit", folder, steps=4, batch_size=2)
    sections["data"] = {"train": "builtin:docstrings[train]", "train_rows": 6, "max_length": 32}
    sections["run"] |= {"save_every": 1, "keep_checkpoints": 4, "log_every": 1} | settings
    return Recipe.model_validate(sections)


def start(folder, resume=False, **settings):
    return train(recipe(folder, **settings), resume=resume, display=NoDisplay())


def digests(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "checkpoints").rglob("*"))
        if path.is_file() and path.name != "MANIFEST.json"
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run whose checkpoints were written in the background: (result, folder)."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return start(folder), folder


def test_checkpoints_written_slowly_in_the_background_are_those_that_training_waited_for(whole, tmp_path, monkeypatch):
    """Without memory for a copy training waits; with it, every write ends after the next step has started."""
    monkeypatch.setattr(checkpoints, "free_host_bytes", lambda: 0)
    waited = start(tmp_path / "waited")
    assert waited.seconds["checkpoints_stalled"] >= waited.seconds["checkpoints_written"]
    monkeypatch.undo()

    def write_late(*arguments, **options):
        time.sleep(0.3)
        return write(*arguments, **options)

    write = checkpoints.write_checkpoint
    monkeypatch.setattr(checkpoints, "write_checkpoint", write_late)
    start(tmp_path / "late")
    assert len(digests(whole[1])) == 4 * 4
    assert digests(whole[1]) == digests(tmp_path / "waited") == digests(tmp_path / "late")


def test_a_saved_tokenizer_has_no_limit_of_an_earlier_call(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(resolve("builtin:tiny").folder)
    for name, limits in (("plain", {}), ("cut", {"truncation": True, "max_length": 4, "padding": "max_length"})):
        tokenizer("one two three four five six", **limits)
        save_tokenizer(tokenizer, tmp_path / name)
    plain, cut = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("plain", "cut"))
    assert (tmp_path / "plain" / "tokenizer.json").read_bytes() == (tmp_path / "cut" / "tokenizer.json").read_bytes()
    assert plain.backend_tokenizer.truncation is None and cut.backend_tokenizer.padding is None


def test_the_time_of_saving_is_recorded_and_counted_once(whole):
    seconds = whole[0].seconds
    assert 0 < seconds["checkpoints_stalled"] < seconds["training"] and seconds["checkpoints_written"] > 0
    phases = sum(seconds[phase] for phase in record.PHASES if phase in seconds)
    assert seconds["total"] == pytest.approx(phases)
    assert set(seconds) - set(record.PHASES) == {
        "total", "first_step", "checkpoints_stalled", "checkpoints_written", "processor",
    }  # fmt: skip


def test_a_disk_that_fills_ends_the_run_with_one_line_and_the_earlier_checkpoint(whole, tmp_path, monkeypatch):
    def write_until_full(folder, name, held):
        if list_steps(folder.parent):
            raise FULL
        return write(folder, name, held)

    write = checkpoints.write_state
    monkeypatch.setattr(checkpoints, "write_state", write_until_full)
    with pytest.raises(StorageError) as caught:
        start(tmp_path / "run")
    message = "step-000002: cannot be written: No space left on device; free some space, then use --resume"
    assert message in str(caught.value) and "\n" not in str(caught.value)
    record = RunDirectory.open(tmp_path / "run").read_result()
    assert (record.status, record.error) == ("failed", str(caught.value))
    monkeypatch.undo()
    resumed = start(tmp_path / "run", resume=True)
    assert [report.step for report in resumed.resumes] == [1] and resumed.resumes[0].exact
    assert digests(whole[1]) == digests(tmp_path / "run")


def test_a_disk_without_room_is_refused_before_the_first_step(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(StorageError, match="a checkpoint needs 8 MB, but only 0 MB are free"):
        start(tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def files_of_a_checkpoint():
    return ["MANIFEST.json", "process-00000.json", "process-00000.safetensors", "state.json", "state.safetensors"]


def test_a_checkpoint_of_a_run_has_these_files(whole):
    latest, _ = find_latest(whole[1] / "checkpoints")
    assert sorted(path.name for path in latest.path.iterdir()) == files_of_a_checkpoint()


@pytest.mark.parametrize("name", files_of_a_checkpoint())
def test_flipped_bits_and_truncation_in_any_file_of_it_are_skipped(whole, tmp_path, name):
    root = shutil.copytree(whole[1] / "checkpoints", tmp_path / "checkpoints")
    path = root / "step-000004" / name
    content = path.read_bytes()
    places = sorted({0, len(content) - 1, *range(7, len(content), max(len(content) // 12, 1))})
    flipped = [content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :] for place in places]
    for damaged in (*flipped, *(content[:place] for place in places), content + b"\0"):
        path.write_bytes(damaged)
        latest, (fault,) = find_latest(root)
        assert latest.step == 3 and str(root / "step-000004") in fault and "\n" not in fault
    path.unlink()
    assert find_latest(root)[0].step == 3
    path.write_bytes(content)
    assert find_latest(root)[0].step == 4


def test_a_clock_that_goes_back_changes_nothing(whole, tmp_path, monkeypatch):
    clock = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock) * 10**9)
    result = start(tmp_path / "run")
    assert digests(whole[1]) == digests(tmp_path / "run")
    assert all(seconds >= 0 for seconds in result.seconds.values())


class Ear(NoDisplay):
    def __init__(self):
        self.notes: list[str] = []

    def note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize("failing", ["start", "log", "finish"])
def test_a_failing_tracker_never_ends_a_run(whole, tmp_path, monkeypatch, failing):
    class Registered(Fragile):
        def __init__(self, project):
            super().__init__(failing)

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "fragile", Registered)
    ear = Ear()
    result = train(recipe(tmp_path / "run", trackers=["fragile"]), display=ear)
    assert result.status == "finished"
    assert sum("run.trackers: " in text for text in ear.notes) == 1
    assert digests(whole[1]) == digests(tmp_path / "run")


def test_a_picture_that_cannot_be_drawn_never_ends_a_run(tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("no fonts")

    monkeypatch.setattr(save, "draw_losses", fail)
    ear = Ear()
    assert train(recipe(tmp_path / "run"), display=ear).status == "finished"
    assert RunDirectory.open(tmp_path / "run").read_result().status == "finished"
    assert any("loss.png cannot be drawn: ValueError: no fonts" in text for text in ear.notes)


def test_metrics_that_cannot_be_written_are_one_line(tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def take_place(*_):
        (folder / "metrics.jsonl").mkdir()

    monkeypatch.setattr("peftlab.runs.training.measure", take_place)
    with pytest.raises(StorageError, match="metrics.jsonl: cannot be written: Is a directory; check the path"):
        start(folder)
