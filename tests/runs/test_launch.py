"""Two processes of one run on the CPU: their arithmetic, their end, and the end of one of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from peftlab.checkpoint.tensors import encode_state, load_state
from peftlab.errors import LaunchError
from peftlab.optimization.step import optimizer_step
from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.load import load_recipe
from peftlab.recipe.schema import Recipe
from peftlab.runs import jobs
from peftlab.runs import launch as launch_module
from peftlab.runs.checkpoints import CheckpointSaver
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.jobs import Job
from peftlab.runs.run import train
from peftlab.runs.verify import differing, load_final
from peftlab.training import loop
from peftlab.world.meeting import meeting
from tests.conftest import REPOSITORY
from tests.runs.pairs import Pair, free_port, wait_for_step
from tests.runs.recipes import shallow_sections

LONG = 5000


def small_recipe(folder, run=None, **training) -> Recipe:
    """Without evaluation, dropout on, a checkpoint every other step."""
    sections = shallow_sections("lora", folder, **{"steps": 4, "batch_size": 1} | training)
    sections["method"] = sections["method"] | {"dropout": 0.1}
    sections["data"] = {"train": "builtin:docstrings[train]", "train_rows": 14, "max_length": 48}
    sections["run"] |= {"save_every": 2, "log_every": 1} | (run or {})
    return Recipe.model_validate(sections)


def first_gradients(run: Path) -> list[torch.Tensor]:
    """Return each parameter's gradient in the first step of a run, times a tenth."""
    state = load_state(run / "checkpoints" / "step-000001", "state")["optimizer"]["state"]
    return [moments["exp_avg"] for moments in state.values()]


def test_two_processes_equal_one(tmp_path):
    """Oracle: one process whose accumulation is twice as long takes the same rows in every step.

    Gradients are compared, as Adam's first average of them keeps them; in its weights the rounding of a gradient near
    zero is as large as a step.
    """

    def recipe(name, accumulation):
        sections = shallow_sections("lora", tmp_path / name, steps=3, batch_size=2, gradient_accumulation=accumulation)
        # Orthogonal: both factors start off zero, so that each has a gradient in the first step.
        sections["method"] = sections["method"] | {"init": "orthogonal"}
        sections["data"] |= {"max_length": 48, "train_rows": 12, "evaluation_rows": 5}
        sections["evaluation"] = {"generation": {"examples": 0}}
        sections["run"] |= {"save_every": 1, "keep_checkpoints": 3}
        return Recipe.model_validate(sections)

    pair = Pair(recipe("two", 1), tmp_path)
    assert pair.wait() == [0, 0], pair.outputs()
    two = RunDirectory.open(tmp_path / "two").read_result()
    one = train(recipe("one", 2), display=NoDisplay())
    assert two.environment["processes"] == 2
    assert two.progress == one.progress
    for when in ("before", "after"):
        assert abs(two.metrics[when]["loss"] - one.metrics[when]["loss"]) < 1e-5
    ours, theirs = (first_gradients(tmp_path / name) for name in ("one", "two"))
    assert len(ours) == 2 * 7 * 2 and all(gradient.abs().max() > 1e-6 for gradient in ours)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-7)


def test_both_processes_stop_at_a_divergence(tmp_path):
    pair = Pair(small_recipe(tmp_path / "run", learning_rate=1e30, schedule="constant"), tmp_path)
    assert pair.wait() == [6, 6]
    assert pair.result()["status"] == "diverged"
    assert all("step 2" in output for output in pair.outputs()), "each names the rows that it had"


@pytest.mark.slow
def test_a_launcher_that_is_terminated_saves_and_resumes_to_the_same_bytes(tmp_path):
    path, folder = tmp_path / "recipe.yaml", tmp_path / "stopped"
    path.write_text(dump_recipe(small_recipe(folder, steps=LONG, schedule="constant")))
    config = REPOSITORY / "configs" / "cpu_two_processes.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(REPOSITORY)}
    with (tmp_path / "log").open("w") as log:
        arguments = [*command, "-m", "peftlab", "train", str(path)]
        launcher = subprocess.Popen(arguments, env=environment, stdout=log, stderr=log)
    wait_for_step(folder, 1, alive=lambda: launcher.poll() is None)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(120) != 0
    record = RunDirectory.open(folder).read_result()
    assert record.status == "interrupted" and "(signal 15); its checkpoint is complete" in record.error
    steps = record.progress.step + 2
    resumed = Pair(small_recipe(folder, steps=steps, schedule="constant"), tmp_path, resume=True)
    assert resumed.wait() == [0, 0], resumed.outputs()
    assert resumed.result()["resumes"] == [
        {"step": steps - 2, "exact": False, "reasons": [f"training.steps: {LONG} -> {steps}"]}
    ], "a constant rate does not depend on the steps, yet nobody but the user knows that it does not matter"
    straight = Pair(small_recipe(tmp_path / "straight", steps=steps, schedule="constant"), tmp_path)
    assert straight.wait() == [0, 0]
    assert all(differing(load_final(folder), load_final(tmp_path / "straight")).values())


def test_two_processes_resume_to_the_same_bytes(tmp_path):
    assert Pair(small_recipe(tmp_path / "a"), tmp_path).wait() == [0, 0]
    stopped = Pair(small_recipe(tmp_path / "b", {"stop_after": 3}), tmp_path)
    assert stopped.wait() == [11, 11]
    resumed = Pair(small_recipe(tmp_path / "b"), tmp_path, resume=True)
    assert resumed.wait() == [0, 0], resumed.outputs()
    assert resumed.result()["resumes"] == [{"step": 3, "exact": True, "reasons": []}]
    assert all(differing(load_final(tmp_path / "a"), load_final(tmp_path / "b")).values())


def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path):
    pair = Pair(small_recipe(tmp_path / "run", steps=LONG), tmp_path)
    pair.wait_for_step(1)
    pair.processes[1].terminate()
    assert pair.wait() == [143, 143]
    first, second = pair.outputs()
    assert "(signal 15)" in first.splitlines()[-1] and not second
    assert pair.result()["status"] == "interrupted"


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_is_killed_the_other_ends_with_one_line_and_a_record(tmp_path, victim):
    pair = Pair(small_recipe(tmp_path / "run", steps=LONG), tmp_path)
    pair.wait_for_step(3)
    pair.processes[victim].kill()
    killed = time.monotonic()
    codes = pair.wait()
    assert time.monotonic() - killed < 20
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 12
    line = pair.outputs()[1 - victim].splitlines()[-1]
    assert f"error: process {victim} of 2 (they count from 0) ended while this one waited for it" in line
    record = pair.result()
    assert record["status"] == "failed" and record["error"] in line
    assert "Traceback" not in "".join(pair.outputs())


def test_a_run_directory_in_use_ends_both_processes(tmp_path):
    with RunDirectory.claim(tmp_path / "run").lock():
        pair = Pair(small_recipe(tmp_path / "run"), tmp_path)
        assert pair.wait() == [8, 12]
    first, second = pair.outputs()
    assert f"is in use by process {os.getpid()}" in first and "process 0 of 2" in second
    assert not (tmp_path / "run" / "result.json").exists()


def test_the_record_has_the_error_of_the_process_that_failed_first(tmp_path):
    missing = f"data.train={tmp_path}/missing.jsonl"
    pair = Pair(small_recipe(tmp_path / "run"), tmp_path, overrides_of_second=(missing,))
    assert pair.wait() == [12, 4]
    record = pair.result()
    first, second = pair.outputs()
    assert record["status"] == "failed" and "missing.jsonl" in record["error"] and record["error"] in second
    assert not first, "the first error is shown once"


def fail_in_step(number: int, environment: dict[str, str], recipe: Path, log: Path) -> None:
    """Be one of two processes; the second runs out of memory in its third step, before gradients are exchanged."""

    def step(parts, batches, *arguments, **options):
        if number == 1 and parts.progress.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return optimizer_step(parts, batches, *arguments, **options)

    loop.optimizer_step = step
    folder = load_recipe(recipe, ()).run.output
    jobs._train(
        Job(recipe, (), Path(folder), log, environment | {"RANK": str(number), "LOCAL_RANK": str(number)}), False
    )


def test_an_error_in_one_process_ends_both_in_seconds_with_one_line_of_output(tmp_path):
    recipe, logs = tmp_path / "recipe.yaml", [tmp_path / f"{number}.log" for number in range(2)]
    recipe.write_text(dump_recipe(small_recipe(tmp_path / "run", steps=LONG)))
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    context = multiprocessing.get_context("forkserver")
    processes = [
        context.Process(target=fail_in_step, args=(number, environment, recipe, logs[number])) for number in range(2)
    ]
    for process in processes:
        process.start()
    processes[1].join(120)
    failed = time.monotonic()
    processes[0].join(30)
    assert time.monotonic() - failed < 15
    assert [process.exitcode for process in processes] == [12, 7]
    record = RunDirectory.open(tmp_path / "run").read_result()
    assert record.status == "out_of_memory" and "Tried to allocate 1.00 GiB" in record.error
    first, second = (log.read_text() for log in logs)
    assert "error" not in first and second.count("peftlab: error: ") == 1 and "Tried to allocate" in second


def hang(pid: int, word: Path) -> None:
    """Be a process that waits for one that has ended, without an error."""
    launch_module.STUCK_SECONDS = 0.1
    launch = launch_module.Launch(2, {0: psutil.Process(pid)})
    launch.give_up = lambda error: word.write_text(str(error))
    with launch:
        word.with_name("ready").touch()
        time.sleep(60)


def test_a_process_that_hangs_when_another_has_ended_is_ended(tmp_path):
    other = subprocess.Popen(["sleep", "600"])
    stuck = multiprocessing.get_context("forkserver").Process(target=hang, args=(other.pid, tmp_path / "word"))
    stuck.start()
    while stuck.is_alive() and not (tmp_path / "ready").exists():
        time.sleep(0.05)
    other.kill()
    other.wait()
    stuck.join(20)
    assert stuck.exitcode == 12
    assert (tmp_path / "word").read_text().startswith("process 0 of 2")


def test_a_last_checkpoint_does_not_wait_for_the_part_of_a_process_that_ended(tmp_path):
    other = subprocess.Popen(["sleep", "600"])
    record = SimpleNamespace(
        directory=SimpleNamespace(checkpoints=tmp_path / "checkpoints"),
        world=SimpleNamespace(processes=2, process=0),
        launch=launch_module.Launch(2, {1: psutil.Process(other.pid)}),
        add_seconds=lambda name, seconds: None,
    )
    saver = CheckpointSaver(record, None, None, {}, None)
    part = encode_state({"weights": {"a": torch.zeros(2)}}, "part")
    with pytest.raises(LaunchError, match="process 1 of 2 .* ended"), saver:
        saver.writer.start(partial(saver._write, (6, {6}), encode_state({}, "state"), [], part))
        saver.check()
        other.kill()
        other.wait()


def be_killed_after_the_meeting(number: int, environment: dict[str, str], recipe: Path, log: Path) -> None:
    """Be one of two processes; the second is killed when both have met, before they know each other."""
    if number == 1:
        launch_module.find_others = lambda world: os.kill(os.getpid(), signal.SIGKILL)
    folder, place = load_recipe(recipe, ()).run.output, {"RANK": str(number), "LOCAL_RANK": str(number)}
    jobs._train(Job(recipe, (), Path(folder), log, environment | place), False)


def test_a_process_that_is_killed_right_after_the_meeting_leaves_one_line_and_the_exit_code_of_a_lost_one(tmp_path):
    recipe, logs = tmp_path / "recipe.yaml", [tmp_path / f"{number}.log" for number in range(2)]
    recipe.write_text(dump_recipe(small_recipe(tmp_path / "run")))
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    context = multiprocessing.get_context("forkserver")
    processes = [
        context.Process(target=be_killed_after_the_meeting, args=(number, environment, recipe, logs[number]))
        for number in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [12, -signal.SIGKILL]
    line = logs[0].read_text().strip()
    assert line.startswith("peftlab: error: the processes of this launch did not meet: ") and "\n" not in line


@pytest.mark.parametrize(
    "error",
    [
        torch.distributed.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed."),
        RuntimeError("[/src/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer."),
    ],
    ids=["store", "gloo"],
)
def test_a_connection_that_another_machine_closed_is_a_lost_process(error):
    with pytest.raises(LaunchError, match="did not meet: "), meeting():
        raise error
    found = launch_module.Launch(2, {}).explain(error)
    assert isinstance(found, LaunchError) and "is not on this machine ended" in str(found)
    assert launch_module.Launch(1, {}).explain(error) is error, "alone, there is nobody to lose"


def test_other_errors_of_the_meeting_are_not_explained_by_it():
    error = RuntimeError("No backend type associated with device type cpu")
    with pytest.raises(RuntimeError) as caught, meeting():
        raise error
    assert caught.value is error
    assert launch_module.Launch(2, {}).explain(error) is error
