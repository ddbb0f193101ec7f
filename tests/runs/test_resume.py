"""A run that is stopped or killed resumes exactly; one that cannot resume exactly reports why."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from peftlab.errors import StoppedError, StorageError
from peftlab.methods import METHODS
from peftlab.recipe.schema import Recipe
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from peftlab.runs.start import find_start
from peftlab.runs.use import open_run
from peftlab.runs.verify import differing, load_final
from tests.runs.recipes import shallow_model, shallow_sections
from tests.sampling import sampled


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small model with dropout in its attention, so that every method draws random numbers."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(shallow_model(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.1}))
    return folder


def recipe(method, folder, run=None, model=None, **training) -> Recipe:
    """Six steps of four rows over twelve: an epoch ends with step 3, inside the warm-up."""
    sections = shallow_sections(method, folder, **{"gradient_accumulation": 2, "batch_size": 2, "warmup": 4} | training)
    sections["run"] |= {"save_every": 3} | (run or {})
    sections["data"] |= {"train_rows": 12, "evaluation_rows": 4, "max_length": 32}
    sections["evaluation"] = {"generation": {"examples": 0}}
    if model:
        sections["model"] = {"name": str(model)}
    return Recipe.model_validate(sections)


def start(one: Recipe, resume: bool = False):
    return train(one, resume=resume, display=NoDisplay())


def stop(one: Recipe, resume: bool = False) -> None:
    with pytest.raises(StoppedError, match="stopped after step"):
        start(one, resume)
    assert RunDirectory.open(Path(one.run.output)).read_result().status == "interrupted"


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["event"], line["step"], line["loss"]) for line in lines]


def assert_equal_runs(one: Path, other: Path) -> None:
    """Weights, moments, schedule, scaler, progress and random states to the byte; every logged loss."""
    same = differing(load_final(one), load_final(other))
    assert all(same.values()) and len(same) > 20, [name for name, equal in same.items() if not equal]
    assert losses(one) == losses(other)


@pytest.mark.parametrize("method", sampled(list(METHODS), ["full", "lora", "qlora", "prefix"]))
def test_a_run_that_is_stopped_and_resumed_equals_a_straight_one_byte_for_byte(tmp_path, model, method):
    """Stopped in mid-epoch and mid-warm-up (2), at an epoch's end (3) and past the warm-up in mid-epoch (5)."""
    straight = start(recipe(method, tmp_path / "a", model=model))
    for number, step in enumerate((2, 3, 5)):
        stop(recipe(method, tmp_path / "b", {"stop_after": step}, model), resume=number > 0)
    resumed = start(recipe(method, tmp_path / "b", model=model), resume=True)
    assert [(report.step, report.exact) for report in resumed.resumes] == [(2, True), (3, True), (5, True)]
    assert_equal_runs(tmp_path / "a", tmp_path / "b")
    assert straight.metrics == resumed.metrics and straight.progress == resumed.progress


def test_the_scale_of_half_precision_gradients_is_resumed(tmp_path):
    """65,536 at first: it is halved when a scaled gradient overflows; the count of other steps is resumed."""

    def half(folder, **run):
        short = {"steps": 3, "warmup": 2, "batch_size": 1, "gradient_accumulation": 1}
        one = recipe("bitfit", folder, run, precision="float16", **short)
        rows = {"train": "builtin:docstrings[train]", "train_rows": 2, "max_length": 16}
        return Recipe.model_validate(one.model_dump(mode="json") | {"data": rows, "evaluation": {"metrics": []}})

    start(half(tmp_path / "a"))
    stop(half(tmp_path / "b", stop_after=2))
    start(half(tmp_path / "b"), resume=True)
    assert_equal_runs(tmp_path / "a", tmp_path / "b")
    scaler = load_final(tmp_path / "b")["state"]["scaler"]
    assert scaler["scale"] > 1 and scaler["_growth_tracker"] > 0


def test_a_killed_run_resumes_from_its_latest_checkpoint(tmp_path):
    """The files after a kill between checkpoints: a record that says running, lines past the checkpoint."""
    start(recipe("bitfit", tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    directory = RunDirectory.open(tmp_path / "b")
    shutil.rmtree(directory.checkpoints / "step-000006")
    shutil.rmtree(directory.weights)
    (directory.path / "MANIFEST.json").unlink()
    directory.write_result(directory.read_result().model_copy(update={"status": "running"}))
    resumed = start(recipe("bitfit", tmp_path / "b"), resume=True)
    assert resumed.resumes[0].step == 3
    assert_equal_runs(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_stops_with_its_exit_code(tmp_path, number, code):
    class Impatient(NoDisplay):
        def update(self, line, steps):
            if line["event"] == "train":
                os.kill(os.getpid(), number)

    with pytest.raises(StoppedError, match=f"stopped after step 1 of 6 \\(signal {number}\\)") as caught:
        train(recipe("bitfit", tmp_path / "run"), display=Impatient())
    assert caught.value.exit_code == code
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == [tmp_path / "run" / "checkpoints" / "step-000001"]


def test_the_time_limit_saves_and_stops(tmp_path):
    with pytest.raises(StoppedError, match="run.max_seconds") as caught:
        start(recipe("bitfit", tmp_path / "run", {"max_seconds": 0.001}))
    assert caught.value.exit_code == 11
    assert RunDirectory.open(tmp_path / "run").checkpoints.is_dir()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, to be copied."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return start(recipe("bitfit", folder)), folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    return shutil.copytree(finished[1], tmp_path / "run")


def test_more_steps_may_be_asked_for_and_are_reported_as_inexact(folder):
    longer = start(recipe("bitfit", folder, steps=8), resume=True)
    assert longer.progress.step == 8
    assert not longer.resumes[0].exact
    assert longer.resumes[0].reasons == ["training.steps: 6 -> 8"]


def test_weights_of_an_earlier_end_are_not_used_for_those_of_a_run_that_was_continued(folder):
    weights = {path.name: path.read_bytes() for path in (folder / "weights").iterdir()}
    open_run(folder, ())
    stop(recipe("bitfit", folder, {"stop_after": 7}, steps=8), resume=True)
    assert {path.name: path.read_bytes() for path in (folder / "weights").iterdir()} == weights, "those of step 6"
    for use in (lambda: open_run(folder, ()), lambda: find_start(str(folder))):
        with pytest.raises(StorageError, match="weights are those of an earlier end; training has continued .* step 7"):
            use()
    open_run(folder, (), verify=False)
    start(recipe("bitfit", folder, steps=8), resume=True)
    open_run(folder, ())
    assert {path.name: path.read_bytes() for path in (folder / "weights").iterdir()} != weights


def test_fewer_steps_than_were_done_are_refused(folder):
    with pytest.raises(StorageError, match="has done 6 steps, but the recipe asks for 4; set training.steps"):
        start(recipe("bitfit", folder, steps=4), resume=True)


@pytest.mark.parametrize("steps", [6, 8])
def test_a_changed_recipe_is_refused_with_the_difference(folder, steps):
    """Whether steps remain or not."""
    with pytest.raises(
        StorageError, match=r"another run: run.seed: 0 -> 1\. .* start a new run with another run.output"
    ):
        start(recipe("bitfit", folder, {"seed": 1}, steps=steps), resume=True)


def test_changed_data_and_a_changed_base_are_refused(tmp_path, model):
    data = tmp_path / "rows.jsonl"
    rows = [{"text": f"def f{i}(): return {i}"} for i in range(20)]
    data.write_text("\n".join(map(json.dumps, rows)))

    def of_files(**run):
        one = recipe("bitfit", tmp_path / "run", run, model)
        section = {"train": str(data), "format": "text", "max_length": 32}
        return Recipe.model_validate(one.model_dump(mode="json") | {"data": section, "evaluation": {"metrics": []}})

    stop(of_files(stop_after=1))
    data.write_text("\n".join(map(json.dumps, rows[::-1])))
    with pytest.raises(StorageError, match="another run: tokens of data.train: .* -> "):
        start(of_files(), resume=True)
    data.write_text("\n".join(map(json.dumps, rows)))
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StorageError, match="another run: base fingerprint: 'sha256:"):
        start(of_files(), resume=True)
    weights.write_bytes(whole)
    assert start(of_files(), resume=True).resumes[0].exact


QUESTIONS = [{"prompt": f"What is the number {i} in words?", "completion": f" number {i}"} for i in range(20)]


@pytest.fixture
def asking(tmp_path):
    """A function that makes a recipe of rows in files, with other settings of its evaluation."""
    for name in ("train", "evaluation", "test"):
        write_rows(tmp_path / name, QUESTIONS)
    (tmp_path / "general.txt").write_text("A text of general interest.\n")

    def make(run=None, output="run", **evaluation) -> Recipe:
        one = recipe("bitfit", tmp_path / output, {"save_every": None} | (run or {})).model_dump(mode="json")
        files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "evaluation", "test")}
        data = files | {"general": str(tmp_path / "general.txt"), "format": "completion", "max_length": 32}
        generation = {"max_new_tokens": 3, "examples": 1} | evaluation.pop("generation", {})
        measured = {"metrics": ["loss", "character_error_rate"], "generation": generation, **evaluation}
        return Recipe.model_validate(one | {"data": data, "evaluation": measured})

    return make


def write_rows(path: Path, rows: list[dict]) -> None:
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


class Killed(BaseException):
    """In place of a kill: what has been written stays, and nothing more is."""


def end_in(monkeypatch, stage: str, one: Recipe) -> None:
    """Run a recipe whose process ends where a stage begins."""

    def die(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(f"peftlab.runs.run.{stage}", die)
        patched.setattr("peftlab.runs.run.record_failure", lambda error, record: error)
        start(one)


@pytest.mark.parametrize("stage", ["obtain_trained", "evaluate_trained"])
@pytest.mark.parametrize("part", ["train", "evaluation", "test", "general"])
def test_other_rows_are_refused_where_there_is_no_checkpoint_to_compare(tmp_path, monkeypatch, asking, stage, part):
    """Killed before the first checkpoint, or in the last evaluation: else one half is measured on other rows."""
    end_in(monkeypatch, stage, asking())
    if part == "general":
        (tmp_path / "general.txt").write_text("Another text.\n")
    else:
        write_rows(tmp_path / part, QUESTIONS[::-1])
    for _ in range(2):  # what is refused once is refused again
        with pytest.raises(StorageError, match=f"another run: tokens of data.{part}: .* -> "):
            start(asking(), resume=True)


@pytest.mark.parametrize("stage", ["obtain_trained", "evaluate_trained"])
def test_what_was_measured_with_other_settings_is_measured_anew_on_both_sides(tmp_path, monkeypatch, asking, stage):
    other = {"texts": {"extract": "[a-z]"}, "generation": {"max_new_tokens": 6}}
    end_in(monkeypatch, stage, asking())
    first = RunDirectory.open(tmp_path / "run").read_result()
    resumed, straight = start(asking(**other), resume=True), start(asking(output="straight", **other))
    assert first.metrics["before"] != straight.metrics["before"]
    for name in ("metrics", "undefined", "signatures", "examples"):
        assert getattr(resumed, name) == getattr(straight, name), name
    settings = "evaluation.generation.max_new_tokens, evaluation.texts.extract"
    assert f"measured anew, before training too, with other settings: {settings}" in resumed.notes


def test_resuming_a_finished_run_changes_nothing(finished):
    first, folder = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert start(recipe("bitfit", folder), resume=True) == first
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    before.pop(folder / ".lock"), after.pop(folder / ".lock")
    assert before == after


def test_resuming_nothing_is_an_error(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(StorageError, match="is not a run directory of peftlab"):
            start(recipe("bitfit", folder), resume=True)


def test_resuming_without_a_checkpoint_is_an_error(folder):
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(StorageError, match="no checkpoint to resume from; run.save_every writes checkpoints"):
        start(recipe("bitfit", folder, steps=8), resume=True)


def test_a_damaged_checkpoint_is_named_and_skipped_for_the_one_before(folder):
    class Ear(NoDisplay):
        notes: list[str] = []

        def note(self, text):
            self.notes.append(text)

    damaged = folder / "checkpoints" / "step-000006" / "state.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    longer = train(recipe("bitfit", folder, steps=7), resume=True, display=Ear())
    assert longer.resumes[0].step == 3
    assert any(text.startswith(f"skipped: {damaged}: is damaged") for text in Ear.notes)


def test_a_second_run_in_the_same_directory_is_refused(tmp_path):
    directory = RunDirectory.claim(tmp_path / "run")
    with directory.lock(), pytest.raises(StorageError, match=f"is in use by .*{os.getpid()}"):
        start(recipe("bitfit", tmp_path / "run"))
