"""What is trained is saved before it is measured, and an attempt that ends leaves all that it took and noted."""

from __future__ import annotations

import json
import os
import signal
import time
from importlib import import_module
from types import SimpleNamespace

import pytest
from peft import LoraConfig
from torch import nn

from peftlab.cli.app import run as run_command
from peftlab.errors import DivergedError, MethodError, StoppedError, StorageError
from peftlab.methods.peft_folder import write_config
from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.schema import Recipe
from peftlab.reports import AuditReport
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from peftlab.runs.verify import differing, load_final
from peftlab.tasks import TASKS
from tests.apart import call_apart
from tests.runs.recipes import shallow_sections

TIMES = {"seconds", "seconds_left", "tokens_per_second", "memory_bytes"}


def recipe(folder, *, evaluation=None, run=None, method="lora", **training) -> Recipe:
    sections = shallow_sections(method, folder, **{"steps": 5, "batch_size": 2} | training)
    sections["data"] |= {"train_rows": 8, "evaluation_rows": 4, "max_length": 32, "test": "builtin:docstrings[test]"}
    sections["data"] |= {"test_rows": 3, "seed": 3}
    sections["evaluation"]["generation"] |= {"max_new_tokens": 2}
    sections["evaluation"] |= evaluation or {}
    sections["run"] |= {"log_every": 1} | (run or {})
    return Recipe.model_validate(sections)


def lines(folder, event=None):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in found if event in (None, line["event"])]


def assert_same_run(one, other):
    """Every kept file but record and recipe, whose paths differ, has the same bytes; log lines but for times."""
    for path in [one / "scores.json", *(one / "weights").iterdir()]:
        assert path.read_bytes() == (other / path.relative_to(one)).read_bytes(), path
    assert lines(one) == lines(other)
    first, second = (RunDirectory.open(folder).read_result() for folder in (one, other))
    for name in ("status", "metrics", "audit", "examples", "progress", "parameters", "data", "saved_step"):
        assert getattr(first, name) == getattr(second, name), name
    assert (other / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    train(recipe(folder), display=NoDisplay())
    return folder


def signal_in_call(monkeypatch, number, where="peftlab.runs.bench.evaluate", kind=signal.SIGTERM):
    """Send this process a signal in the call of that number, which then lasts for a minute."""
    module, _, name = where.rpartition(".")
    original, calls = getattr(import_module(module), name), []

    def evaluate(*arguments, **options):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), kind)
            time.sleep(60)
        return original(*arguments, **options)

    monkeypatch.setattr(where, evaluate)


# Calls: evaluation, test and general rows before, then after training.
@pytest.mark.parametrize(
    ("call", "kind", "code", "save_every"),
    [(4, signal.SIGTERM, 143, None), (5, signal.SIGINT, 130, 2), (5, signal.SIGUSR1, 138, None)],
)
def test_a_signal_in_the_final_evaluation_loses_nothing(straight, tmp_path, monkeypatch, call, kind, code, save_every):
    one = recipe(tmp_path / "run", run={"save_every": save_every})
    signal_in_call(monkeypatch, call, kind=kind)
    started = time.monotonic()
    with pytest.raises(StoppedError, match="the weights are saved: --resume does the rest") as caught:
        train(one, display=NoDisplay())
    assert time.monotonic() - started < 30 and caught.value.exit_code == code
    record = RunDirectory.open(tmp_path / "run").read_result()
    assert (record.status, record.saved_step, record.progress.step) == ("interrupted", 5, 5)
    monkeypatch.undo()
    monkeypatch.setattr("peftlab.runs.run.train_model", pytest.fail)
    train(one, resume=True, display=NoDisplay())
    assert_same_run(straight, tmp_path / "run")


def test_a_signal_between_the_final_scores_and_the_examples_leaves_the_examples_to_the_resumed_run(
    straight, tmp_path, monkeypatch
):
    signal_in_call(monkeypatch, 2, "peftlab.runs.bench.generate_examples", signal.SIGUSR1)
    with pytest.raises(StoppedError, match="the weights are saved: --resume does the rest"):
        train(recipe(tmp_path / "run"), display=NoDisplay())
    monkeypatch.undo()
    train(recipe(tmp_path / "run"), resume=True, display=NoDisplay())
    assert_same_run(straight, tmp_path / "run")


def test_a_signal_before_training_ends_at_once_and_the_run_begins_again(straight, tmp_path, monkeypatch):
    signal_in_call(monkeypatch, 1)
    with pytest.raises(StoppedError, match="stopped before training .*--resume or the same command starts it again"):
        train(recipe(tmp_path / "run"), display=NoDisplay())
    monkeypatch.undo()
    resumed = train(recipe(tmp_path / "run"), resume=True, display=NoDisplay())
    assert any("training begins at step 0" in note for note in resumed.notes)
    assert_same_run(straight, tmp_path / "run")


def test_a_signal_in_an_evaluation_of_training_saves_and_the_resumed_run_makes_it(tmp_path, monkeypatch):
    every = {"evaluation": {"every": 2}, "run": {"save_every": 4}}
    train(recipe(tmp_path / "a", **every), display=NoDisplay())
    signal_in_call(monkeypatch, 4)
    started = time.monotonic()
    with pytest.raises(StoppedError, match="stopped after step 2 of 5"):
        train(recipe(tmp_path / "b", **every), display=NoDisplay())
    assert time.monotonic() - started < 30
    assert [line["step"] for line in lines(tmp_path / "b", "evaluation")] == [0]
    monkeypatch.undo()
    train(recipe(tmp_path / "b", **every), resume=True, display=NoDisplay())
    assert_same_run(tmp_path / "a", tmp_path / "b")
    same = differing(load_final(tmp_path / "a"), load_final(tmp_path / "b"))
    assert all(same.values()), [name for name, equal in same.items() if not equal]


def test_an_error_of_the_final_evaluation_loses_nothing(straight, tmp_path, monkeypatch):
    def refuse(metrics, part, when):
        if (part, when) == ("test", "after"):
            raise DivergedError("data.test: the loss of its rows is nan")

    monkeypatch.setattr("peftlab.runs.evaluation.refuse_not_finite", refuse)
    with pytest.raises(DivergedError):
        train(recipe(tmp_path / "run"), display=NoDisplay())
    assert (tmp_path / "run" / "weights").is_dir()
    monkeypatch.undo()
    train(recipe(tmp_path / "run"), resume=True, display=NoDisplay())
    assert_same_run(straight, tmp_path / "run")


def vanish_in(module, name, folder, *arguments):
    """Run a recipe in another process, which ends there as a killed one does."""
    (folder / "r.yaml").write_text(dump_recipe(recipe(folder / "run", run={"save_every": 2})))
    command = ["train", str(folder / "r.yaml"), *arguments]
    assert call_apart(run_until, module, name, command, log=folder / "log") == 9, (folder / "log").read_text()


def run_until(module, name, command):
    setattr(import_module(module), name, lambda *_, **__: os._exit(9))
    run_command(command)


@pytest.mark.parametrize("name", ["draw_curve", "try_inference", "save_weights"])
def test_a_kill_after_training_leaves_each_line_once(straight, tmp_path, name):
    vanish_in("peftlab.runs.run", name, tmp_path, "evaluation.latency=true")
    latency = {"evaluation": {"latency": name == "try_inference"}, "run": {"save_every": 2}}
    train(recipe(tmp_path / "run", **latency), resume=True, display=NoDisplay())
    assert_same_run(straight, tmp_path / "run")


def test_a_final_evaluation_whose_line_was_lost_is_logged_again(straight, tmp_path):
    vanish_in("peftlab.runs.run", "draw_curve", tmp_path)
    lines = tmp_path / "run" / "metrics.jsonl"
    kept = lines.read_text().splitlines(keepends=True)
    assert '"evaluation"' in kept[-1]
    lines.write_text("".join(kept[:-1]))  # as a kill between two writes of an attempt before leaves it
    train(recipe(tmp_path / "run", run={"save_every": 2}), resume=True, display=NoDisplay())
    assert_same_run(straight, tmp_path / "run")


@pytest.mark.parametrize("step", [2, 4])
def test_the_audit_of_a_killed_run_is_that_of_one_never_killed(straight, tmp_path, step):
    for number in (1, step):
        with pytest.raises(StoppedError):
            train(recipe(tmp_path / "run", run={"stop_after": number}), resume=number > 1, display=NoDisplay())
    audit = RunDirectory.open(tmp_path / "run").read_result().audit
    assert (audit is None) == (step < 3)
    train(recipe(tmp_path / "run"), resume=True, display=NoDisplay())
    assert_same_run(straight, tmp_path / "run")


def test_a_changed_frozen_tensor_ends_the_run_at_the_audited_step_and_is_recorded(tmp_path, monkeypatch):
    found = AuditReport(steps=3, without_gradient=[], unmoved=[], frozen_changed=["embed.weight"])
    monkeypatch.setattr("peftlab.parameters.audit.Audit.finish", lambda *_: found)
    with pytest.raises(MethodError, match="embed.weight"):
        train(recipe(tmp_path / "run", run={"save_every": 1}), display=NoDisplay())
    record = RunDirectory.open(tmp_path / "run").read_result()
    assert record.audit == found and record.progress.step < 4
    assert [line["step"] for line in lines(tmp_path / "run", "train")] == [1, 2]


def test_seconds_and_notes_of_a_killed_attempt_are_kept(tmp_path):
    vanish_in("peftlab.runs.run", "save_weights", tmp_path)
    killed = RunDirectory.open(tmp_path / "run").read_result()
    assert killed.seconds["training"] > 0 and killed.seconds["load"] > 0
    resumed = train(recipe(tmp_path / "run", run={"save_every": 2}), resume=True, display=NoDisplay())
    assert all(resumed.seconds[phase] >= killed.seconds[phase] for phase in ("load", "training"))
    assert resumed.notes[: len(killed.notes)] == killed.notes
    assert len(set(resumed.notes)) == len(resumed.notes)


def test_a_run_that_ended_in_its_first_checkpoint_starts_again_either_way(straight, tmp_path):
    vanish_in("peftlab.checkpoint.store", "_commit", tmp_path)
    with pytest.raises(StorageError, match="is not a run directory"):
        train(recipe(tmp_path / "absent"), resume=True, display=NoDisplay())
    train(recipe(tmp_path / "run", run={"save_every": 2}), resume=True, display=NoDisplay())
    assert_same_run(straight, tmp_path / "run")


def test_a_run_killed_before_its_first_record_is_resumed_from_the_beginning(straight, tmp_path):
    RunDirectory.claim(tmp_path / "run")
    train(recipe(tmp_path / "run"), resume=True, display=NoDisplay())
    assert_same_run(straight, tmp_path / "run")


def test_equal_runs_write_an_equal_adapter_config_whatever_the_order_of_a_set(tmp_path):
    config = LoraConfig(target_modules=[f"layer_{number}" for number in range(40)])
    write_config(SimpleNamespace(active_peft_config=config, get_base_model=nn.Module), tmp_path, TASKS["causal-lm"], {})
    names = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert names == sorted(names) and len(names) == 40
