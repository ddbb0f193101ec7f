"""A report of a comparison that is going, or was stopped: what has not ended has not failed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from peftlab.checkpoint.lock import RunLock
from peftlab.cli.app import run
from peftlab.comparison.claims import conclude
from peftlab.comparison.findings import find
from peftlab.comparison.jobs import Jobs
from peftlab.comparison.rows import read_table
from peftlab.comparison.variants import Settings
from peftlab.runs.jobs import Job

from .folders import Maker


def change(folder: Path, name: str, **values) -> None:
    """Change the record of a run."""
    path = folder / "runs" / name / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def partial(tmp_path) -> Path:
    """BitFit's first seed has finished, the second one is going or killed, the third one has not begun."""
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=20).write()
    report = json.loads((folder / "comparison.json").read_text())
    (bitfit,) = [one for one in report["variants"] if one["name"] == "bitfit"]
    for trial, status in zip(bitfit["trials"][1:], ("running", "not_begun"), strict=True):
        trial |= {"status": status, "validation": None, "test": None}
    (folder / "comparison.json").write_text(json.dumps(report))
    change(folder, "bitfit-0-0.001-1", status="running", metrics={})
    shutil.rmtree(folder / "runs" / "bitfit-0-0.001-2")
    return folder


def statuses(folder: Path) -> tuple[list[str], str]:
    (row,) = [row for row in read_table(folder).rows if row.name == "bitfit"]
    return [trial.report.status for trial in row.trials], row.status


def test_a_run_that_has_not_begun_and_one_that_is_going_have_not_failed(partial, capsys):
    with RunLock(partial / "runs" / "bitfit-0-0.001-1" / ".lock"):
        assert statuses(partial) == (["finished", "running", "not_begun"], "1 of 3 (running, not begun)")
        table = read_table(partial)
        texts = [claim.text for claim in conclude(table, find(table))[1]]
        assert run(["report", str(partial)]) == 0
    assert "Not all runs have ended: bitfit (2 of 3). What is said here may change." in texts
    assert not any("Seeds gave no" in text for text in texts)
    page, said = (partial / "report" / "report.html").read_text(), capsys.readouterr().out
    assert "seed 1: running" not in page and "seed 2: not begun" not in page, "the list of what failed"
    assert "2 not ended" in page and "Not all runs have ended" in said


def test_a_run_that_says_running_and_has_no_process_was_killed(partial):
    assert statuses(partial) == (["finished", "killed", "not_begun"], "1 of 3 (killed, not begun)")
    change(partial, "bitfit-0-0.001-1", status="failed", error="no room")
    assert statuses(partial)[0] == ["finished", "failed", "not_begun"]
    change(partial, "bitfit-0-0.001-1", status="finished")
    assert statuses(partial)[0] == ["finished", "ended", "not_begun"], "the comparison has not counted it"


def test_what_earlier_versions_called_failed_has_not_begun(partial):
    report = json.loads((partial / "comparison.json").read_text())
    report["variants"][1]["trials"][2] |= {"status": "failed", "error": "it has not run yet"}
    (partial / "comparison.json").write_text(json.dumps(report))
    assert statuses(partial)[0][2] == "not_begun"


def test_a_job_without_a_record_has_not_begun_and_is_run(tmp_path):
    jobs = Jobs(tmp_path, Settings(), "loss")
    job = Job(tmp_path / "recipe.yaml", (), tmp_path / "runs" / "one", tmp_path / "log.txt")
    assert jobs.status(job) == ("not_begun", None) and not jobs.is_settled(job) and jobs.find_ending(job) is None
