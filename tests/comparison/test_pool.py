"""Jobs side by side and on a cluster: all end, each with its record's status, and none outlives its parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from peftlab.comparison.pool import SCHEDULER_MINUTES, run_locally, run_on_cluster, scheduler_limit
from peftlab.errors import UsageError
from peftlab.recipe.dump import dump_recipe
from peftlab.runs.jobs import Job, start
from peftlab.runs.outcomes import read_record
from tests.runs.recipes import shallow_recipe

# Takes the place of Python: prints what it was called with, and ends as the recipe's name says. A scheduler's own
# worker gets the real one.
STAND_IN = """#!/usr/bin/env bash
case "$*" in *"-m submitit"*) exec PYTHON "$@";; esac
echo "called: $*" >&2
for word in "$@"; do case "$word" in run.output=*) output="${word#run.output=}";; esac; done
record() {
  mkdir -p "$output"; echo '{"schema": 1}' > "$output/.peftlab"
  echo '{"status": "'$1'", "name": "x", "recipe": {}, "environment": {}, "error": '"$2"'}' > "$output/result.json"
}
case "$*" in
  *fails*) echo "peftlab: error: no such thing" >&2; exit 5;;
  *diverges*) record diverged '"a loss is not finite"'; echo "a last word" >&2; exit 6;;
  *crashes*) record running null; kill -SEGV $$;;
  *hangs*) trap '' TERM; while true; do sleep 0.1; done;;
  *sleeps*) trap 'echo saved >&2; exit 143' TERM; for i in $(seq 600); do sleep 0.1; done;;
esac
record finished null
echo "threads ${OMP_NUM_THREADS:-all}" >&2
"""
ENDINGS = {"good": ("finished", None), "fails": ("failed", "no such thing"), "diverges": (
    "diverged", "a loss is not finite"
)}  # fmt: skip


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    path = tmp_path / "python"
    path.write_text(STAND_IN.replace("PYTHON", sys.executable))
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    return path


def make_job(folder: Path, name: str) -> Job:
    return Job(Path(f"{name}.yaml"), ("run.seed=1",), folder / "runs" / name, folder / "logs" / f"{name}.txt")


def log_of(folder: Path, name: str) -> list[str]:
    return (folder / "logs" / f"{name}.txt").read_text().splitlines()


def test_every_job_ends_as_its_record_says_or_without_one_its_log(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    endings = {
        one.job.name: (one.status, one.error) for one in run_locally([make_job(tmp_path, n) for n in ENDINGS], 2)
    }
    assert endings == ENDINGS
    called, *_, last = log_of(tmp_path, "good")
    assert called.endswith(f"good.yaml run.seed=1 run.output={tmp_path / 'runs' / 'good'} --overwrite")
    assert last == "threads 7"


def test_a_job_that_crashes_is_named_by_its_signal_and_not_by_its_log(stand_in, tmp_path):
    (ending,) = run_locally([make_job(tmp_path, "crashes")], 1)
    assert ending.status == "failed" and ending.error.startswith("killed by SIGSEGV; its log is ")


def test_a_job_over_its_time_limit_is_ended_and_costs_itself_alone(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr("peftlab.runs.jobs.LATE_GRACE_SECONDS", 0.5)
    jobs = [make_job(tmp_path, name) for name in ("hangs", "sleeps", "good")]
    endings = {one.job.name: one for one in run_locally(jobs, 1, time_limit=1.0)}
    for name in ("hangs", "sleeps"):
        assert (endings[name].status, endings[name].error) == (
            "failed",
            "ended at its time limit of 1 s (--time-limit)",
        )
    assert log_of(tmp_path, "sleeps")[-1] == "saved" and endings["good"].status == "finished"


def test_jobs_side_by_side_share_out_the_cores(stand_in, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    for name, at_once in (("alone", 1), ("shared", 2)):
        list(run_locally([make_job(tmp_path, name)], at_once))
    assert log_of(tmp_path, "alone")[-1] == "threads all"
    assert log_of(tmp_path, "shared")[-1] == f"threads {max(1, cores // 2)}"


def test_jobs_are_ended_when_nobody_waits_for_them_any_more(stand_in, tmp_path):
    running = run_locally([make_job(tmp_path, "sleeps"), make_job(tmp_path, "good")], 2)
    assert next(running).job.name == "good"
    running.close()
    assert log_of(tmp_path, "sleeps")[-1] == "saved"


def run_two(python: str, folder: Path) -> None:
    """Be a process that runs two jobs at once, which only a signal ends."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
    sys.executable = python
    jobs = [Job(Path("sleeps.yaml"), (), folder / "runs" / name, folder / "logs" / f"{name}.txt") for name in "ab"]
    list(run_locally(jobs, 2))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_to_the_process_ends_all_its_jobs_which_save_first(stand_in, tmp_path, number):
    process = multiprocessing.get_context("forkserver").Process(target=run_two, args=(str(stand_in), tmp_path))
    process.start()
    logs = [tmp_path / "logs" / f"{name}.txt" for name in "ab"]
    wait_for(lambda: all(log.exists() and "called" in log.read_text() for log in logs), 60)
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == 128 + number
    assert [log.read_text().splitlines()[-1] for log in logs] == ["saved", "saved"]


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_while_a_job_is_forked_is_not_lost(stand_in, tmp_path, monkeypatch, request, number, error):
    """Python ignores what is raised in its hooks around a fork, such as those of logging."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist's workers ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, former))

    def start_and_lose(*arguments):
        running = start(*arguments)
        wait_for(lambda: "called" in running.job.log.read_text())
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            signal.raise_signal(number)
        return running

    monkeypatch.setattr("peftlab.comparison.pool.start", start_and_lose)
    with pytest.raises(error):
        list(run_locally([make_job(tmp_path, "sleeps"), make_job(tmp_path, "good")], 1))
    assert log_of(tmp_path, "sleeps")[-1] == "saved" and not (tmp_path / "logs" / "good.txt").exists()


def test_jobs_can_be_run_beside_the_main_thread(stand_in, tmp_path):
    found: list[str] = []
    work = threading.Thread(target=lambda: found.extend(e.status for e in run_locally([make_job(tmp_path, "good")], 1)))
    work.start()
    work.join(30)
    assert found == ["finished"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_jobs_end_when_their_parent_is_killed(stand_in, tmp_path):
    script = (
        "import sys; from pathlib import Path; from peftlab.runs.jobs import Job\n"
        "from peftlab.comparison.pool import run_locally\n"
        f"sys.executable = {str(stand_in)!r}; folder = Path({str(tmp_path)!r})\n"
        "list(run_locally([Job(Path('sleeps.yaml'), (), folder / 'run', folder / 'log.txt')], 1))"
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


def test_a_cluster_of_local_workers_runs_the_same_jobs_and_ends_one_at_its_time_limit(stand_in, tmp_path):
    pytest.importorskip("submitit", reason="needs the package submitit")
    names = ("good", "sleeps")  # each worker is a process that imports torch
    jobs = [make_job(tmp_path, name) for name in names]
    found = run_on_cluster(jobs, "local", {}, tmp_path / "submitted", time_limit=3.0)
    late = ("failed", "ended at its time limit of 3 s (--time-limit)")
    assert {one.job.name: (one.status, one.error) for one in found} == {"good": ENDINGS["good"], "sleeps": late}
    assert log_of(tmp_path, "sleeps")[-1] == "saved"


def test_a_scheduler_gives_a_run_its_time_limit_and_some_minutes_more_unless_it_is_told_a_limit():
    assert scheduler_limit({"slurm_partition": "gpu"}, 2 * 3600) == {"timeout_min": 120 + SCHEDULER_MINUTES}
    assert scheduler_limit({"timeout_min": 60}, 2 * 3600) == scheduler_limit({"slurm_time": 60}, 2 * 3600) == {}


def test_an_unknown_cluster_or_parameter_is_one_line(tmp_path):
    pytest.importorskip("submitit", reason="needs the package submitit")
    for cluster, options in (("slrum", {}), ("local", {"timeout_minutes": 5})):
        with pytest.raises(UsageError, match=f"--cluster {cluster}: .+") as caught:
            list(run_on_cluster([make_job(tmp_path, "x")], cluster, options, tmp_path / "submitted"))
        assert "\n" not in str(caught.value)


def test_a_warm_run_is_the_run_of_a_fresh_process(tmp_path):
    """Forked from a server that has imported torch: the same losses, threads and peak, in a process of its own."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(shallow_recipe("lora", tmp_path / "unused", steps=2)))
    results = {}
    for warm in (False, True):
        job = Job(recipe, (), tmp_path / f"warm-{warm}", tmp_path / f"{warm}.txt", {"OMP_NUM_THREADS": "1"})
        (ending,) = run_locally([job], 1, warm=warm)
        assert ending.status == "finished", ending.error
        results[warm] = read_record(job.folder)
    cold, forked = results[False], results[True]
    assert forked.metrics == cold.metrics
    assert forked.environment["threads"] == cold.environment["threads"] == 1
    peaks = [one.memory["measured"].peak_bytes for one in (cold, forked)]
    assert peaks[1] == pytest.approx(peaks[0], rel=0.01)


def test_a_warm_run_that_is_killed_costs_itself_alone(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(shallow_recipe("lora", tmp_path / "unused", steps=2)))
    jobs = [Job(recipe, overrides, tmp_path / name, tmp_path / f"{name}.txt")
            for name, overrides in (("killed", ("training.steps=100000",)), ("good", ()))]  # fmt: skip
    threading.Thread(target=kill_when_it_trains, args=(tmp_path / "killed",)).start()
    killed, good = run_locally(jobs, 1, warm=True)
    assert killed.status == "failed" and killed.error.startswith("killed by SIGKILL")
    assert good.status == "finished"


def kill_when_it_trains(folder: Path) -> None:
    """Kill the process that has the run's directory locked, as the kernel does where memory is short."""
    while not (folder / "metrics.jsonl").exists():
        time.sleep(0.05)
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            held = [link for link in (path / "fd").iterdir() if str(folder) in os.readlink(link)]
            if held and int(path.name) != os.getpid():
                os.kill(int(path.name), signal.SIGKILL)
                return
