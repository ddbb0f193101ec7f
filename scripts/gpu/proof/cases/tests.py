"""The GPU tests of the repository: `pytest -m gpu tests/gpu`, a case for each test."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from proof.bench import ROOT, Bench

WORKERS = 4


def run(bench: Bench) -> None:
    report = bench.folder / "junit.xml"
    workers = ["-n", str(WORKERS)] if importlib.util.find_spec("xdist") and not bench.pretend else []
    # Another torch warns of other things than the one that the tests' exceptions were written for.
    options = ["-o", "filterwarnings=default", "-p", "no:cacheprovider", f"--junitxml={report}", *workers]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", *options]
    with bench.case("pytest") as case:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        case |= {"ok": done.returncode == 0, "says": summary(done.stdout)}
        case["output"] = "" if done.returncode == 0 else (done.stdout + done.stderr)[-6000:]
    if report.exists():
        note_tests(bench, report)


def summary(output: str) -> str:
    """Return pytest's line of counts."""
    lines = [line for line in output.splitlines() if re.search(r"\d+ (passed|failed|skipped|error|deselected)", line)]
    return lines[-1] if lines else "pytest counted nothing"


def note_tests(bench: Bench, report: Path) -> None:
    """Write a case for each test: right, wrong with its message, or skipped with its reason."""
    for test in ElementTree.parse(report).iter("testcase"):
        found = {"case": test.get("name"), "seconds": float(test.get("time", 0))}
        problem = test.find("failure") if test.find("failure") is not None else test.find("error")
        skipped = test.find("skipped")
        if problem is not None:
            found |= {"ok": False, "says": problem.get("message", "")[:300], "output": (problem.text or "")[-1500:]}
        elif skipped is not None:
            found |= {"skipped": skipped.get("message", "")}
        else:
            found |= {"ok": True}
        bench.write(found)
