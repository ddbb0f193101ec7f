"""Jobs in processes of their own: all end, each with its exit code and last line, and none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peftlab.comparison.jobs import Job, run_locally, run_on_cluster
from peftlab.errors import UsageError

# Stands in for Python: tells what it was called with, and ends as the recipe's name says. A scheduler's own
# worker gets the real one.
STAND_IN = """#!/usr/bin/env bash
case "$*" in *"-m submitit"*) exec PYTHON "$@";; esac
echo "called: $*" >&2
case "$*" in
  *fails*) echo "peftlab: error: no such thing" >&2; exit 5;;
  *sleeps*) trap 'echo saved >&2; exit 143' TERM; for i in $(seq 600); do sleep 0.1; done;;
esac
echo "threads ${OMP_NUM_THREADS:-all}" >&2
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    path = tmp_path / "python"
    path.write_text(STAND_IN.replace("PYTHON", sys.executable))
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    return path


def make_job(folder: Path, name: str) -> Job:
    return Job(name, Path(f"{name}.yaml"), ("run.seed=1",), folder / "runs" / name, folder / "logs" / f"{name}.txt")


def test_every_job_ends_with_its_exit_code_and_its_last_line(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    jobs = [make_job(tmp_path, name) for name in ("good", "fails", "other")]
    ended = {one.job.name: one for one in run_locally(jobs, 2)}
    assert {name: one.exit_code for name, one in ended.items()} == {"good": 0, "fails": 5, "other": 0}
    assert ended["fails"].last_line == "peftlab: error: no such thing"
    assert ended["good"].last_line == "threads 7"
    called = (tmp_path / "logs" / "good.txt").read_text().splitlines()[0]
    folder = tmp_path / "runs" / "good"
    assert called.endswith(f"good.yaml run.seed=1 run.output={folder} --overwrite")


def test_jobs_side_by_side_share_out_the_cores(stand_in, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    (alone,) = run_locally([make_job(tmp_path, "alone")], 1)
    (shared,) = run_locally([make_job(tmp_path, "shared")], 2)
    assert (alone.last_line, shared.last_line) == ("threads all", f"threads {max(1, cores // 2)}")


def test_a_job_with_a_checkpoint_goes_on_from_it(tmp_path):
    job = make_job(tmp_path, "run")
    assert job.command[-1] == "--overwrite"
    checkpoint = job.folder / "checkpoints" / "step-4"
    checkpoint.mkdir(parents=True)
    (checkpoint / "MANIFEST.json").touch()
    assert job.command[-1] == "--resume"


def test_jobs_are_told_to_end_when_nobody_waits_for_them_any_more(stand_in, tmp_path):
    running = run_locally([make_job(tmp_path, "sleeps"), make_job(tmp_path, "good")], 2)
    assert next(running).job.name == "good"
    running.close()
    assert (tmp_path / "logs" / "sleeps.txt").read_text().splitlines()[-1] == "saved"


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_jobs_end_when_their_parent_is_killed(stand_in, tmp_path):
    script = (
        "import sys; from pathlib import Path; from peftlab.comparison.jobs import Job, run_locally\n"
        f"sys.executable = {str(stand_in)!r}; folder = Path({str(tmp_path)!r})\n"
        "list(run_locally([Job('sleeps', Path('sleeps.yaml'), (), folder / 'run', folder / 'log.txt')], 1))"
    )
    python = Path(sys.prefix) / "bin" / "python"
    parent = subprocess.Popen([python, "-c", script], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    log = tmp_path / "log.txt"
    wait_for(lambda: log.exists() and "called" in log.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: "saved" in log.read_text())


def wait_for(condition, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def test_a_cluster_of_local_workers_runs_the_same_jobs(stand_in, tmp_path):
    pytest.importorskip("submitit", reason="needs the package submitit")
    jobs = [make_job(tmp_path, name) for name in ("good", "fails")]
    ended = {one.job.name: one for one in run_on_cluster(jobs, "local", {"timeout_min": 5}, tmp_path / "submitted")}
    assert {name: one.exit_code for name, one in ended.items()} == {"good": 0, "fails": 5}
    assert ended["fails"].last_line == "peftlab: error: no such thing"


def test_an_unknown_cluster_or_parameter_is_one_line(tmp_path):
    pytest.importorskip("submitit", reason="needs the package submitit")
    for cluster, options in (("slrum", {}), ("local", {"timeout_minutes": 5})):
        with pytest.raises(UsageError, match=f"--cluster {cluster}: .+") as caught:
            list(run_on_cluster([make_job(tmp_path, "x")], cluster, options, tmp_path / "submitted"))
        assert "\n" not in str(caught.value)
