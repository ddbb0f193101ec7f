"""Runs the gauntlet, and makes the table of its outcomes.

`scripts/gauntlet [TYPE ...]` runs the cases that the file of outcomes lacks, one line of JSON each, in a process for
each type. `--seconds N` ends after the type that is running then; the next call continues. `--part K/N` takes every
N-th case from the K-th on: N calls run them all, and the first has every type already. A case's limit counts processor
seconds, so that a busy machine ends none. `--write` makes `peftlab/families.json` and the page about families from the
outcomes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import resource
import signal
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from peftlab.world.quiet import quiet_libraries
from tests.gauntlet.cases import Case, Outcome, cases_of, method_variants
from tests.gauntlet.small import build, model_types
from tests.gauntlet.stages import run_case
from tests.gauntlet.table import write_table

IDLE_FACTOR = 20
"""How much longer than its processor seconds a process may take: one that waits for ever uses none."""


def run_type(cases: list[Case], out: Path, show_errors: bool, case_seconds: int) -> None:
    """Run one type's cases in this process, and append each outcome to `out` at once.

    One that takes more than `case_seconds` processor seconds ends the process with SIGXCPU.
    """
    if not show_errors:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    bases: dict[str, Path | str] = {}
    with tempfile.TemporaryDirectory() as root:
        for case in cases:
            resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + case_seconds, resource.RLIM_INFINITY))
            if case.task not in bases:
                bases[case.task] = build(case.model_type, case.task, Path(root))
            add(out, run_one(case, bases[case.task], Path(root)))


def run_one(case: Case, base: Path | str, root: Path) -> Outcome:
    if isinstance(base, str):
        return Outcome(case.key, "unbuilt", "build", base)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        return run_case(case, base, Path(folder))


def add(out: Path, outcome: Outcome) -> None:
    with out.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(outcome)) + "\n")


def read_keys(out: Path) -> set[str]:
    if not out.exists():
        return set()
    return {json.loads(line)["key"] for line in out.read_text(encoding="utf-8").splitlines()}


def chosen(types: Iterable[str], asked: argparse.Namespace) -> list[Case]:
    """Return the cases that are asked for, whether they have been run or not."""
    number, of = asked.part
    forms = [form for form in method_variants() if not asked.methods or form in asked.methods.split(",")]
    return [
        case
        for place, model_type in enumerate(types)
        for case in cases_of(model_type)
        if (not asked.tasks or case.task in asked.tasks.split(","))
        and case.method in forms
        and (place + forms.index(case.method)) % of == number - 1
    ]


def run_all(types: Sequence[str], asked: argparse.Namespace) -> None:
    """Run the types one after the other, each in a process forked from this one, which has imported everything."""
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401

    end = time.monotonic() + asked.seconds
    for _, cases in itertools.groupby(chosen(types, asked), key=lambda case: case.model_type):
        waiting = list(cases)
        while (waiting := without_done(waiting, asked.out)) and time.monotonic() < end:
            run_apart(waiting, asked)


def without_done(cases: list[Case], out: Path) -> list[Case]:
    done = read_keys(out)
    return [case for case in cases if case.key not in done]


def run_apart(cases: list[Case], asked: argparse.Namespace) -> None:
    """Run cases in a forked process. The one that ends it, if one does, fails; those after it are not run."""
    arguments = (cases, asked.out.resolve(), asked.show_errors, asked.case_seconds)
    process = multiprocessing.get_context("fork").Process(target=run_type, args=arguments)
    process.start()
    process.join(IDLE_FACTOR * asked.case_seconds * len(cases))
    if process.is_alive():
        process.kill()
        process.join()
    if lost := without_done(cases, asked.out):
        code = process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        add(asked.out, Outcome(lost[0].key, "fails", "process", f"the process ended: {how}"))


def part(text: str) -> tuple[int, int]:
    number, of = map(int, text.split("/"))
    return number, of


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/gauntlet", description=__doc__)
    parser.add_argument("types", nargs="*", help="model types; all by default")
    parser.add_argument("--out", type=Path, default=Path("gauntlet.jsonl"), help="file of outcomes")
    parser.add_argument("--tasks", default="", help="only these, by names with commas")
    parser.add_argument("--methods", default="", help="only these, by names with commas")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no type after this time")
    parser.add_argument("--part", type=part, default=(1, 1), metavar="K/N", help="every N-th case from the K-th on")
    parser.add_argument("--case-seconds", type=int, default=180, help="most processor seconds of one case")
    parser.add_argument("--show-errors", action="store_true", help="show what libraries print")
    parser.add_argument("--write", action="store_true", help="make the table from the outcomes; run nothing")
    asked = parser.parse_args()
    if asked.write:
        print(write_table(asked.out))
        return
    quiet_libraries()
    warnings.filterwarnings("ignore")
    run_all(asked.types or model_types(), asked)


if __name__ == "__main__":
    main()
