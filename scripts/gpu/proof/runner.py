"""Runs parts one after another, each in a process with a time limit; what one has found survives its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from proof.parts import Part
from proof.record import Record, read_findings

SHORTEST_SECONDS = 8.0
GRACE_SECONDS = 3.0
TAIL = 3000
WIDTH = 118


class Runner:
    """Runs parts until `deadline` (of `time.monotonic`); `show` gets a line for every finding."""

    def __init__(
        self,
        record: Record,
        environment: Mapping[str, str],
        deadline: float,
        show: Callable[[str], None],
        *,
        pretend: bool = False,
    ):
        self.record, self.environment, self.deadline, self.show = record, environment, deadline, show
        self.pretend = pretend

    def run_all(self, parts: Sequence[Part]) -> None:
        """Run parts in their order; only where nothing is measured two run at once, on two cores."""
        at_once = min(2, len(os.sched_getaffinity(0))) if self.pretend else 1
        with ThreadPoolExecutor(at_once) as pool:
            try:
                list(pool.map(self.run, parts))
            except BaseException:
                self.deadline = 0.0  # what still runs ends too
                raise

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def run(self, part: Part) -> None:
        """Run a part, or record why it was not run."""
        if self.left < SHORTEST_SECONDS:
            self.show(f"{part.name:<9}  not run: the time limit is near")
            self.record.set(part.name, "not run", title=part.title)
            return
        if not self.pretend:
            self.show(f"{part.name:<9}  {part.title}")
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="peftlab-part-") as folder:
            findings, log = Path(folder) / "findings.jsonl", Path(folder) / "log"
            # What is only tried runs on a machine of any speed, beside anything.
            limit = self.left if self.pretend else min(part.seconds, self.left)
            status = self._wait(part, findings, log, limit)
            cases = read_findings(findings)
            tail = log.read_text(encoding="utf-8", errors="replace")[-TAIL:] if log.exists() else ""
        seconds = round(time.monotonic() - started, 1)
        shown = {"log": tail} if status != "done" or any("error" in case for case in cases) else {}
        self.record.set(part.name, status, title=part.title, seconds=seconds, cases=cases, **shown)
        if self.pretend:
            self.show(f"{part.name:<9}  {part.title}; {seconds:.0f} s")
            self._show_cases(cases)
        if status != "done":
            self.show(f"  {status} after {seconds:.0f} s{'' if cases else ': ' + last_line(tail)}")

    def _wait(self, part: Part, findings: Path, log: Path, limit: float) -> str:
        """Return how the part ended, after showing and recording its findings as they come."""
        command = child_command(part, findings, self.pretend)
        started, shown = time.monotonic(), 0
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                env=dict(self.environment),
                start_new_session=True,  # so that a part's own processes end with it
            )
            try:
                while process.poll() is None and time.monotonic() - started < limit and self.left > 0:
                    shown = self._note(part, findings, shown)
                    time.sleep(0.1)
                code = process.poll()
            finally:
                end_group(process)
        self._note(part, findings, shown)
        return "time limit" if code is None else "done" if code == 0 else "failed"

    def _note(self, part: Part, findings: Path, shown: int) -> int:
        cases = read_findings(findings)
        if not self.pretend:
            self._show_cases(cases[shown:])
        if len(cases) > shown:
            self.record.set(part.name, "running", title=part.title, cases=cases)
        return len(cases)

    def _show_cases(self, cases: Sequence[dict[str, Any]]) -> None:
        for case in cases:
            if "says" in case or "error" in case:
                self.show(f"  {line_of(case)}")


def child_command(part: Part, findings: Path, pretend: bool) -> list[str]:
    return [sys.executable, "-m", "proof.child", part.name, str(findings), *["--pretend"] * pretend]


def end_group(process: subprocess.Popen) -> None:
    """End a process and those that it started, which share its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def line_of(case: dict[str, Any]) -> str:
    """Return one line of limited length: the case, its verdict, and what it says."""
    verdict = {True: "ok", False: "NOT OK", None: ""}[case.get("ok")]
    says = case.get("error") or case.get("says") or ""
    return f"{case['case'][:30]:<30} {verdict:<7}{case['seconds']:>5.1f} s  {' '.join(says.split())}"[:WIDTH]


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:60] if lines else "it printed nothing"
