"""A run in another process: its outcome is its record's, and only without one its exit status's or its log's."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from peftlab.cli.compare import use_devices
from peftlab.errors import UsageError
from peftlab.reports import RunResult
from peftlab.runs.directory import RunDirectory
from peftlab.runs.jobs import Job, choose_devices, run_job, share_of_machine
from peftlab.runs.outcomes import identify_record, name_signal, read_outcome

# Takes the place of Python: writes a record that is still running and a line of progress, then ends by a signal.
KILLED = """#!/usr/bin/env bash
for word in "$@"; do case "$word" in run.output=*) output="${word#run.output=}";; esac; done
mkdir -p "$output"; echo '{"schema": 1}' > "$output/.peftlab"
echo '{"status": "running", "name": "x", "recipe": {}, "environment": {}}' > "$output/result.json"
echo "step 1/2 loss 7.04" >&2
kill -SIGNAL $$
"""


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path / "recipe.yaml", (), tmp_path / "run", tmp_path / "log.txt")


def write_record(job: Job, status: str, error: str | None = None) -> None:
    record = RunResult(status=status, name="x", recipe={}, environment={}, error=error)
    RunDirectory.claim(job.folder).write_result(record)


@pytest.mark.parametrize(("name", "message"), [
    ("KILL", "killed by SIGKILL (the system may have run out of memory); its log is "),
    ("SEGV", "killed by SIGSEGV; its log is "),
])  # fmt: skip
def test_a_run_that_a_signal_killed_reports_it_and_not_its_last_line_of_progress(tmp_path, monkeypatch, name, message):
    python = tmp_path / "python"
    python.write_text(KILLED.replace("SIGNAL", name))
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    ending = run_job(Job(Path("recipe.yaml"), (), tmp_path / "run", tmp_path / "log.txt"))
    assert (ending.status, ending.error) == ("failed", f"{message}{tmp_path / 'log.txt'}")


def test_a_log_that_is_a_link_is_replaced_and_the_file_that_it_names_is_kept(job, tmp_path):
    (tmp_path / "precious").write_text("mine")
    job.log.symlink_to(tmp_path / "precious")
    run_job(replace(job, python="true"))
    assert (tmp_path / "precious").read_text() == "mine" and not job.log.is_symlink()


@pytest.mark.parametrize(("status", "error", "exit_code"), [
    ("finished", None, 0), ("diverged", "a loss is not finite", 6), ("interrupted", "stopped after step 1", 143),
    ("finished", None, -signal.SIGKILL),
])  # fmt: skip
def test_a_record_that_is_complete_decides_whatever_was_printed(job, status, error, exit_code):
    write_record(job, status, error)
    job.log.write_text("peftlab: error: something else\n")
    assert read_outcome(job.folder, job.log, exit_code, None) == (status, error)


@pytest.mark.parametrize("exit_code", [2, -signal.SIGKILL])
def test_the_record_of_an_earlier_attempt_is_not_that_of_one_that_failed_before_its_own(job, exit_code):
    write_record(job, "diverged", "of the earlier attempt")
    before = identify_record(job.folder)
    job.log.write_text("noise\npeftlab: error: data.train: no such file\n\n")
    expected = "data.train: no such file" if exit_code > 0 else f"killed by {name_signal(9)}; its log is {job.log}"
    assert read_outcome(job.folder, job.log, exit_code, before) == ("failed", expected)
    write_record(job, "diverged", "of this attempt")
    assert read_outcome(job.folder, job.log, 6, before) == ("diverged", "of this attempt")


def test_a_finished_run_that_is_resumed_keeps_its_record_and_is_finished(job):
    write_record(job, "finished")
    assert read_outcome(job.folder, job.log, 0, identify_record(job.folder)) == ("finished", None)


def test_without_a_record_the_log_ends_the_message(job):
    job.log.write_text("Segmentation rules\n")
    message = f"exit code 7 and no complete record; its log {job.log} ends with: Segmentation rules"
    assert read_outcome(job.folder, job.log, 7, None) == ("failed", message)
    job.log.unlink()
    assert read_outcome(job.folder, job.log, 7, None)[1].endswith("ends with: (nothing)")


def test_a_signal_without_a_name_has_its_number():
    assert name_signal(signal.SIGSEGV) == "SIGSEGV" and name_signal(250) == "signal 250"


def test_a_job_resumes_from_a_checkpoint_unless_asked_otherwise(job):
    assert job.command[-1] == "--overwrite"
    checkpoint = job.folder / "checkpoints" / "step-000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "MANIFEST.json").touch()
    assert job.command[-1] == "--resume"
    assert Job(job.recipe, (), job.folder, job.log, resume=False).command[-1] == "--overwrite"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_does_not_reach_the_server_of_warm_jobs():
    """While it imports modules it would print a traceback, into a terminal where the command has ended in one line."""
    program = (
        "from multiprocessing import forkserver\n"
        "from peftlab.runs import jobs\n"
        "jobs.WARM_MODULES.clear()\n"
        "jobs.start_server()\n"
        "print(open(f'/proc/{forkserver._forkserver._forkserver_pid}/status').read())\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    blocked = next(line for line in found.stdout.splitlines() if line.startswith("SigBlk:"))
    assert int(blocked.split()[1], 16) >> (signal.SIGINT - 1) & 1


@pytest.mark.parametrize(
    ("text", "devices"), [("0-2", ["4", "5", "6"]), ("3,0,0", ["7", "4"]), ("1-2, 0", ["5", "6", "4"])]
)
def test_devices_are_chosen_among_those_that_are_visible(monkeypatch, text, devices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert choose_devices(text) == devices


@pytest.mark.parametrize(
    ("visible", "text", "reason"),
    [
        ("0,1", "0-2", "has the CUDA devices 0 to 1"),
        ("", "0", "has no CUDA device; use --jobs for the CPU"),
        ("0,1", "1-0", "is not a number or a range"),
        ("0,1", "a", "is not a number or a range"),
        ("0,1", "", "is not a number or a range"),
    ],
)
def test_devices_that_are_not_here_are_one_line(monkeypatch, visible, text, reason):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UsageError, match=reason) as error:
        choose_devices(text)
    assert "\n" not in str(error.value)


def test_a_comparison_on_devices_runs_one_at_a_time_on_each(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert use_devices("1-2") == 2
    assert [share_of_machine(place, 2)["CUDA_VISIBLE_DEVICES"] for place in range(2)] == ["5", "6"]
