"""What a run keeps is compared with its digests before it is used, and what is damaged is named in one line."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
from pathlib import Path

import pytest

from peftlab.runs.digests import find_faults, read_digests

from ..sampling import diagonals, sampled
from .conftest import train_once

SAVING = ("run.save_every=1", "data.evaluation=2", "run.log_every=1")


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory):
    return train_once(tmp_path_factory.mktemp("finished"), *SAVING, method="lora")


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    return train_once(tmp_path_factory.mktemp("stopped"), *SAVING, "run.stop_after=1", method="lora", code=11)


@pytest.fixture
def finished(user, finished_once) -> Path:
    user.source = finished_once.parent / "rows.jsonl"
    return Path(shutil.copytree(finished_once, user.output))


@pytest.fixture
def stopped(user, stopped_once) -> Path:
    user.source = stopped_once.parent / "rows.jsonl"
    return Path(shutil.copytree(stopped_once, user.output))


def resume(user, *more):
    return user.train(*SAVING, "--resume", *more, method="lora", train=user.source)


def flip(path: Path, at: int, bit: int = 6) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def kept(run: Path) -> list[Path]:
    return [run / name for name in read_digests(run).files]


def test_everything_that_a_run_keeps_has_a_digest(finished):
    names = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    others = {name for name in names if name.startswith((".", "checkpoints/"))} | {"MANIFEST.json"}
    assert set(read_digests(finished).files) == names - others


def test_every_flipped_bit_of_any_kept_file_is_noticed(finished):
    """Oracle: no bit of a file may change; 500 bits, spread over all files, one at a time."""
    chance, files = random.Random(0), [*kept(finished), finished / "MANIFEST.json"]
    for number in range(500):
        path = files[number % len(files)]
        whole = path.read_bytes()
        flip(path, chance.randrange(len(whole)), chance.randrange(8))
        try:
            faults = list(find_faults(finished).values())
        except Exception as error:
            faults = [str(error)]
        assert len(faults) == 1 and faults[0].startswith(f"{path}: "), (path, faults)
        path.write_bytes(whole)
    assert find_faults(finished) == {}


@pytest.mark.parametrize("name", ["weights/adapter_model.safetensors", "result.json", "recipe.yaml"])
def test_a_flipped_bit_is_named_before_a_run_is_used(user, finished, name):
    path = finished / name
    flip(path, len(path.read_bytes()) - 9, bit=0)
    for command in (["evaluate", finished], ["generate", finished, "the"], ["verify", finished]):
        answer = user.run(*command)
        text = answer.out if command[0] == "verify" else answer.error
        assert answer.code == 8 and text.startswith(f"{path}: ") and "damaged" in text, (command, text)
    answer = resume(user)
    assert (answer.code, f"{path}: is damaged" in "\n".join(answer.lines)) == (8 if "weights" not in name else 0, True)


def test_no_verify_uses_changed_weights(user, finished):
    flip(finished / "weights" / "adapter_model.safetensors", -2, bit=0)
    assert user.run("evaluate", finished, "--no-verify").code == 0


@pytest.mark.parametrize("content", [None, "", "null\n", "hello\n", "a: [\n", "model: {name: x}\n"])
def test_a_recipe_that_is_no_recipe_is_damage_without_digests_too(user, finished, content):
    (finished / "MANIFEST.json").unlink()
    path = finished / "recipe.yaml"
    path.unlink() if content is None else path.write_text(content)
    for command in (["evaluate", finished], ["verify", finished], ["reproduce", finished]):
        answer = user.run(*command)
        text = answer.out if command[0] == "verify" else answer.error
        assert answer.code == 8 and f"{path}:" in text and "restore it" in text, (command, text)


def test_a_wrong_override_of_a_whole_run_is_an_error_of_the_command_line(user, finished):
    answer = user.run("evaluate", finished, "methd.rank=3")
    assert answer.code == 2 and "command line: methd" in answer.error


@pytest.mark.parametrize("name", ["adapter_model.bin", "model.safetensors", "modeling_tiny.py", "chat_template.jinja"])
def test_a_file_that_was_put_beside_the_weights_is_refused_if_a_loader_reads_such(user, finished, name):
    (finished / "weights" / name).write_text("x")
    for command in (["evaluate", finished], ["verify", finished]):
        answer = user.run(*command)
        text = answer.out if command[0] == "verify" else answer.error
        assert answer.code == 8 and text.startswith(f"{finished / 'weights' / name}: is not a file of the run")
    assert user.run("evaluate", finished, "--no-verify").code == 0 or name == "model.safetensors"


def test_another_file_beside_the_weights_is_noted(user, finished):
    (finished / "weights" / "NOTES.md").write_text("x")
    answer = user.run("verify", finished)
    assert answer.code == 0 and answer.out.startswith(f"note: {finished / 'weights' / 'NOTES.md'}: is not a file")
    assert user.run("evaluate", finished).code == 0


def test_a_run_of_an_earlier_version_has_no_digests_and_loads(user, finished):
    (finished / "MANIFEST.json").unlink()
    assert user.run("evaluate", finished).code == 0
    answer = user.run("verify", finished)
    assert answer.code == 0 and "no digests" in answer.out


def test_verify_lists_every_file_and_checkpoint(user, finished):
    answer = json.loads(user.run("verify", finished, "--json").out)
    (run,) = answer["runs"]
    assert answer["ok"] and set(read_digests(finished).files) < set(run["files"])
    assert {"checkpoints/step-000001", "checkpoints/step-000002"} <= set(run["files"])
    flip(finished / "checkpoints" / "step-000001" / "state.safetensors", -1)
    damaged = user.run("verify", finished)
    assert damaged.code == 8 and "checkpoints/step-000001/state.safetensors: is damaged" in damaged.out


def lose(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(path: Path) -> None:
    for file in [path] if path.is_file() else [one for one in path.iterdir() if one.suffix == ".safetensors"]:
        file.write_bytes(b"")


LOSSES = list(itertools.product(["weights", "scores.json", "loss.png"], [lose, empty], [True, False]))
# Each file with both damages, with digests and without.
LOSSES_SAMPLE = [("weights", lose, False), ("weights", empty, True), ("scores.json", lose, True)]
LOSSES_SAMPLE += [("scores.json", empty, False), ("loss.png", lose, False), ("loss.png", empty, True)]


@pytest.mark.parametrize(("name", "damage", "digests"), sampled(LOSSES, LOSSES_SAMPLE))
def test_a_finished_run_makes_again_what_it_has_lost(user, finished, finished_once, name, damage, digests):
    if not digests:
        (finished / "MANIFEST.json").unlink()
    if (name, damage, digests) == ("loss.png", empty, False):
        pytest.skip("an empty picture of an earlier version is a picture")
    damage(finished / name)
    answer = resume(user)
    assert answer.code == 0, answer.lines
    assert find_faults(finished) == {} and read_digests(finished) is not None
    for path in kept(finished_once):
        if path.name not in ("result.json", "recipe.yaml", "metrics.jsonl", "loss.png"):  # times, paths and a title
            assert (finished / path.relative_to(finished_once)).read_bytes() == path.read_bytes(), path
    assert (finished / "loss.png").read_bytes().startswith(b"\x89PNG")
    events = [
        (line["event"], line["step"]) for line in map(json.loads, (finished / "metrics.jsonl").read_text().splitlines())
    ]
    assert events == [("evaluation", 0), ("train", 1), ("train", 2), ("evaluation", 2)]


@pytest.mark.parametrize("damage", [lose, empty])
def test_weights_that_cannot_be_made_again_are_said_to_be_missing(user, finished, damage):
    shutil.rmtree(finished / "checkpoints")
    damage(finished / "weights")
    answer = resume(user)
    assert answer.code == 8 and "weights" in answer.error and "no checkpoint to resume from" in answer.error


CONTENTS = {
    "empty": b"", "null": b"null\n", "a list": b"[1, 2]\n", "half": b'{"before": {"loss": [1.0,', "a text": b'"x"\n',
    "no recipe": b'{"status": "finished", "name": "x", "recipe": {}, "environment": {}}\n',
    "other bytes": b"\xff\xfe\x00\n", "deep": b"[" * 100_000 + b"\n", "deep objects": b'{"a":' * 100_000 + b"\n",
}  # fmt: skip


RECORDS = [*itertools.product(["result.json", "scores.json", "metrics.jsonl"], [True, False]), ("MANIFEST.json", True)]


@pytest.mark.parametrize(("name", "digests", "what"), diagonals(RECORDS, CONTENTS))
def test_a_damaged_record_of_a_stopped_run_is_named_before_any_step(user, stopped, monkeypatch, name, digests, what):
    content = CONTENTS[what]
    if name == "metrics.jsonl" and not digests and not content.endswith(b"\n"):
        pytest.skip("a killed run ends with half a line")
    if not digests:
        (stopped / "MANIFEST.json").unlink()
    (stopped / name).write_bytes(content)
    started = []
    monkeypatch.setattr("peftlab.runs.run.prepare_bench", lambda record, start: started.append(record) or stop_here())
    answer = resume(user)
    told = "\n".join(answer.lines)
    assert f"{stopped / name}: " in told and "a fault" not in told.replace("a fault of this test", "")
    assert bool(started) == (name == "scores.json")  # scores are made again
    assert answer.code == (4 if started else 8)


def stop_here():
    from peftlab.errors import DataError

    raise DataError("a fault of this test")


def test_a_lost_record_costs_what_it_said_and_no_step(user, stopped):
    (stopped / "result.json").unlink()
    answer = resume(user)
    assert answer.code == 0 and answer.record["resumes"][0]["step"] == 1
    assert any("result.json: is missing; it is made again" in note for note in answer.record["notes"])


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", ["result.json", "scores.json", "metrics.jsonl", "recipe.yaml"])
def test_a_record_that_is_not_a_file_is_named(user, stopped, name, make):
    (stopped / name).unlink()
    make(stopped / name)
    answer = resume(user)
    assert answer.code == 8 and name in answer.error or "is not a run directory" in answer.error


def test_lost_lines_of_the_metrics_are_accepted_only_if_asked_and_never_called_exact(user, stopped):
    (stopped / "MANIFEST.json").unlink()
    lines = (stopped / "metrics.jsonl").read_text().splitlines()
    (stopped / "metrics.jsonl").write_text("\n".join([lines[0][:-3], *lines[1:]]) + "\n")
    assert "metrics.jsonl: cannot be read in line 1; restore it, or --no-verify" in resume(user).error
    answer = resume(user, "--no-verify")
    (report,) = answer.record["resumes"]
    assert answer.code == 0 and not report["exact"] and "line 1" in report["reasons"][0]


def test_scores_that_are_missing_are_made_again_on_resuming(user, stopped, finished_once):
    (stopped / "scores.json").unlink()
    assert resume(user).code == 0
    assert json.loads((stopped / "scores.json").read_text()) == json.loads((finished_once / "scores.json").read_text())


def test_an_unreadable_record_says_permission(user, stopped):
    from .test_directories import unprivileged

    os.chmod(stopped / "result.json", 0o000)
    for folder in [stopped, *stopped.parents]:
        if os.access(folder, os.W_OK) and folder != Path("/tmp") and folder != Path("/"):
            os.chmod(folder, 0o777)
    with unprivileged():
        answer = user.run("evaluate", stopped)
    assert answer.code == 8 and "result.json: cannot be read: Permission denied; check the permissions" in answer.error
