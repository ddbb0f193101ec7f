"""Signals to the processes of a run while the trained weights are scored, and while they write examples."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.load import load_recipe
from peftlab.recipe.schema import Recipe
from peftlab.runs import jobs
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.jobs import Job
from peftlab.runs.run import train
from tests.runs.pairs import Pair, free_port
from tests.runs.recipes import shallow_sections

pytestmark = pytest.mark.slow


def recipe(folder: Path) -> Recipe:
    sections = shallow_sections("lora", folder, steps=2, batch_size=2)
    sections["data"] |= {"train_rows": 8, "evaluation_rows": 24, "max_length": 48}
    sections["evaluation"]["generation"] |= {"examples": 3, "max_new_tokens": 60}
    return Recipe.model_validate(sections)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    train(recipe(folder), display=NoDisplay())
    return folder


def assert_same_end(one: Path, other: Path) -> None:
    for path in [one / "scores.json", *(one / "weights").iterdir()]:
        assert path.read_bytes() == (other / path.relative_to(one)).read_bytes(), path
    first, second = (RunDirectory.open(folder).read_result() for folder in (one, other))
    for name in ("status", "metrics", "examples", "progress", "saved_step"):
        assert getattr(first, name) == getattr(second, name), name


def is_saved(run: Path) -> bool:
    """Return whether the weights are saved: the final evaluation has begun."""
    return (run / "result.json").exists() and json.loads((run / "result.json").read_text())["saved_step"] == 2


def is_scored(run: Path) -> bool:
    """Return whether the rows are scored after training: examples are being written."""
    return (run / "scores.json").exists() and "after" in json.loads((run / "scores.json").read_text())


def wait_until(due: Callable[[Path], bool], run: Path, process) -> None:
    ends = time.monotonic() + 120
    while not due(run):
        assert process.is_alive() and time.monotonic() < ends
        time.sleep(0.002)


@pytest.mark.parametrize("due", [is_saved, is_scored])
@pytest.mark.parametrize(("kind", "code"), [(signal.SIGUSR1, 138), (signal.SIGTERM, 143)])
def test_a_signal_after_training_ends_the_run_at_once_and_the_resumed_one_does_the_rest(
    straight, tmp_path, due, kind, code
):
    path, run = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(dump_recipe(recipe(run)))
    running = jobs.start(Job(path, (), run, tmp_path / "log"), warm=True)
    wait_until(due, run, running.process)
    sent = time.monotonic()
    os.kill(running.process.pid, kind)
    running.process.join(60)
    assert running.exit_code == code and time.monotonic() - sent < 30
    record = RunDirectory.open(run).read_result()
    assert record.status == "interrupted" and "the weights are saved: --resume does the rest" in record.error
    train(recipe(run), resume=True, display=NoDisplay())
    assert_same_end(straight, run)


def be_signalled(number: int, environment: dict[str, str], path: Path, log: Path, evaluations: int) -> None:
    """Be one of two processes; the second gets a signal when it has evaluated so often, before scores are joined."""
    from peftlab.runs import bench

    evaluate, made = bench.evaluate, []

    def counting(*arguments, **options):
        made.append(1)
        if number == 1 and len(made) == evaluations:
            os.kill(os.getpid(), signal.SIGUSR1)
        return evaluate(*arguments, **options)

    bench.evaluate = counting
    place = {"RANK": str(number), "LOCAL_RANK": str(number)}
    jobs._train(Job(path, (), Path(load_recipe(path, ()).run.output), log, environment | place), False)


def test_a_signal_to_one_of_two_processes_in_the_final_evaluation_ends_both_and_loses_nothing(tmp_path):
    path, logs = tmp_path / "recipe.yaml", [tmp_path / f"{number}.log" for number in range(2)]
    path.write_text(dump_recipe(recipe(tmp_path / "run")))
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    context = multiprocessing.get_context("forkserver")
    # Three parts of the data are evaluated, if only for nothing: the fourth call is the first one after training.
    pair = [
        context.Process(target=be_signalled, args=(number, environment, path, logs[number], 4)) for number in range(2)
    ]
    for one in pair:
        one.start()
    for one in pair:
        one.join(120)
    assert [one.exitcode for one in pair] == [12, 138], [log.read_text() for log in logs]
    assert sum(log.read_text().count("peftlab: error: ") for log in logs) == 1
    record = RunDirectory.open(tmp_path / "run").read_result()
    assert record.status == "interrupted" and record.saved_step == 2
    resumed = Pair(recipe(tmp_path / "run"), tmp_path, resume=True)
    assert resumed.wait() == [0, 0], resumed.outputs()
    whole = Pair(recipe(tmp_path / "whole"), tmp_path)
    assert whole.wait() == [0, 0], whole.outputs()
    assert_same_end(tmp_path / "whole", tmp_path / "run")
