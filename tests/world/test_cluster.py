"""Launches as clusters make them: preempted by a signal and queued again, and restarted by torchrun after a loss."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.schema import Recipe
from peftlab.runs.directory import RunDirectory
from peftlab.runs.launch import RESTARTS, is_restarted
from peftlab.runs.verify import differing, load_final
from tests.conftest import REPOSITORY
from tests.runs.pairs import free_port, wait_for_step
from tests.runs.recipes import METHODS, shallow_sections

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
# torch 2.13 announces the place to meet in the first round alone: a node whose launcher is new would wait for it.
ANNOUNCED = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
STUBS = {
    "scontrol": '#!/bin/bash\nif [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$STUBS/requeued"; fi\n',
    "srun": '#!/bin/bash\nshift\necho $$ > "$STUBS/pid"\nexec "$@"\n',
    "torchrun": f'#!/bin/bash\nexec {" ".join(TORCHRUN)} "$@"\n',
}


def write_recipe(folder: Path, name: str, steps: int) -> Path:
    """Write a recipe of two processes with dropout, whose run is `folder / name`."""
    sections = shallow_sections("lora", folder / name, steps=steps, batch_size=2, schedule="constant")
    sections["method"] = METHODS["lora"] | {"dropout": 0.1}
    sections["data"] |= {"max_length": 48, "train_rows": 12, "evaluation_rows": 4}
    sections["evaluation"] = {"generation": {"examples": 0}}
    sections["run"] |= {"save_every": 2, "log_every": 1, "device": "cpu", "plan": "off"}
    path = folder / f"{name}.yaml"
    path.write_text(dump_recipe(Recipe.model_validate(sections)))
    return path


@pytest.fixture
def environment(tmp_path):
    """The environment of a Slurm job on one node with two devices, whose commands are stubs."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name, text in STUBS.items():
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    settings = {
        "SLURM_JOB_NODELIST": "here",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_JOB_ID": "7",
    }
    paths = {"PATH": f"{stubs}:{os.environ['PATH']}", "STUBS": str(stubs), "PYTHONPATH": str(REPOSITORY)}
    return os.environ | settings | paths | {"PORT": str(free_port()), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_slurm_job_that_is_preempted_saves_is_queued_again_and_resumes(tmp_path, environment, number):
    """The real script; as Slurm does, the signal goes to every process of the step."""
    steps, run = 40, tmp_path / "job"
    job = ["bash", str(REPOSITORY / "scripts" / "cluster" / "slurm.sh")]
    environment |= {"RECIPE": str(write_recipe(tmp_path, "job", steps)), "RUN": str(run)}
    first = subprocess.Popen(job, env=environment, cwd=tmp_path)
    wait_for_step(run, 3, lambda: first.poll() is None)
    step = psutil.Process(int((tmp_path / "stubs" / "pid").read_text()))
    for process in [step, *step.children(recursive=True)]:
        process.send_signal(number)
    assert first.wait(120) != 0
    result = RunDirectory.open(run).read_result()
    assert result.status == "interrupted" and 3 <= result.progress.step < steps
    assert (tmp_path / "stubs" / "requeued").read_text() == "requeue 7\n"
    done = subprocess.run(job, env=environment | {"SLURM_RESTART_COUNT": "1"}, cwd=tmp_path, timeout=240)
    result = RunDirectory.open(run).read_result()
    assert done.returncode == 0 and result.status == "finished" and result.progress.step == steps
    assert [resume.exact for resume in result.resumes] == [True]
    assert (tmp_path / "stubs" / "requeued").read_text() == "requeue 7\n", "a run that has finished is not queued"


def start_node(recipe: Path, address: str, endpoint: str, nodes: int, processes: int) -> subprocess.Popen:
    """Start a node's torchrun, which restarts what fails. That of the endpoint's address has the place to meet."""
    command = [*TORCHRUN, "--nnodes", str(nodes), "--nproc-per-node", str(processes), "--max-restarts", "3"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "run", "--local-addr", address]
    command += ["--rdzv-conf", f"is_host={int(endpoint.startswith(f'{address}:'))}"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "LOGLEVEL": "INFO", **ANNOUNCED}
    command += ["-m", "peftlab", "train", str(recipe)]
    with (recipe.parent / f"{address}.log").open("a") as log:
        return subprocess.Popen(command, env=environment, cwd=recipe.parent, stdout=log, stderr=log)


def end_nodes(nodes: list[subprocess.Popen], folder: Path, seconds: float) -> None:
    """Wait for nodes that must end well; what they wrote is shown if one does not."""
    for node in nodes:
        code = node.wait(seconds)
        assert code == 0, "\n".join(path.read_text() for path in sorted(folder.glob("*.log")))


def check_restarted(folder: Path, steps: int) -> None:
    """Check that a run resumed by itself, to the bytes of one that nothing happened to."""
    result = RunDirectory.open(folder / "restarted").read_result()
    assert result.status == "finished" and result.progress.step == steps
    assert result.resumes and result.resumes[0].exact and result.resumes[0].step > 0
    straight = start_node(write_recipe(folder, "straight", steps), "127.0.0.1", f"127.0.0.1:{free_port()}", 1, 2)
    end_nodes([straight], folder, 240)
    same = differing(load_final(folder / "restarted"), load_final(folder / "straight"))
    assert len(same) > 50 and all(same.values())


@pytest.mark.slow
def test_a_process_that_is_killed_is_restarted_by_torchrun_and_the_run_resumes_by_itself(tmp_path):
    steps, run = 30, tmp_path / "restarted"
    node = start_node(write_recipe(tmp_path, "restarted", steps), "127.0.0.1", f"127.0.0.1:{free_port()}", 1, 2)
    wait_for_step(run, 5, lambda: node.poll() is None)
    psutil.Process(node.pid).children()[-1].kill()
    end_nodes([node], tmp_path, 240)
    check_restarted(tmp_path, steps)


@pytest.mark.slow
def test_one_of_two_nodes_is_killed_and_started_again(tmp_path):
    """Two groups with addresses of their own; the second is gone with its launcher, and comes back."""
    steps, run, endpoint = 30, tmp_path / "restarted", f"127.0.0.1:{free_port()}"
    recipe = write_recipe(tmp_path, "restarted", steps)
    nodes = [start_node(recipe, address, endpoint, 2, 1) for address in ("127.0.0.1", "127.0.0.2")]
    try:
        wait_for_step(run, 5, lambda: all(node.poll() is None for node in nodes))
        for process in [psutil.Process(nodes[1].pid), *psutil.Process(nodes[1].pid).children(recursive=True)]:
            process.kill()
        nodes[1].wait()
        time.sleep(1)
        nodes.append(start_node(recipe, "127.0.0.2", endpoint, 2, 1))
        end_nodes([nodes[0], nodes[2]], tmp_path, 200)
    finally:
        for node in nodes:
            with suppress(psutil.NoSuchProcess):
                for process in psutil.Process(node.pid).children(recursive=True):
                    process.kill()
                node.kill()
    check_restarted(tmp_path, steps)


@pytest.mark.parametrize(
    ("restarts", "age", "restarted"), [("0", 1, False), ("1", 1, True), ("1", -1000, False), ("1", None, False)]
)
def test_a_run_resumes_by_itself_only_if_this_launch_began_it(monkeypatch, restarts, age, restarted):
    """A folder from before the launch is of another run, which only its user may resume."""
    monkeypatch.setenv(RESTARTS, restarts)
    world = SimpleNamespace(highest=lambda number: number, gather=list)
    launched = psutil.Process().parent().create_time()
    assert is_restarted(world, None if age is None else launched + age) is restarted
