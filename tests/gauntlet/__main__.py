"""Runs the gauntlet, and makes the table of its outcomes.

`scripts/gauntlet [TYPE ...]` runs the cases that the file of outcomes lacks, one line of JSON each, in a process for
each type. `--seconds N` ends after the type that is running then; the next call continues. `--write` makes
`peftlab/families.json` and the page about families from the outcomes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from peftlab.world.quiet import quiet_libraries
from tests.gauntlet.cases import Case, Outcome, cases_of
from tests.gauntlet.small import build, model_types
from tests.gauntlet.stages import run_case
from tests.gauntlet.table import write_table


def run_type(cases: list[Case], out: Path, show_errors: bool) -> None:
    """Run one type's cases in this process, and append each outcome to `out` at once."""
    if not show_errors:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    bases: dict[str, Path | str] = {}
    with tempfile.TemporaryDirectory() as root:
        for case in cases:
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


def chosen(model_type: str, asked: argparse.Namespace, done: set[str]) -> list[Case]:
    return [
        case
        for case in cases_of(model_type)
        if case.key not in done
        and (not asked.tasks or case.task in asked.tasks.split(","))
        and (not asked.methods or case.method in asked.methods.split(","))
    ]


def run_all(types: Iterable[str], asked: argparse.Namespace) -> None:
    """Run the types one after the other, each in a process forked from this one, which has imported everything."""
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401

    context, end = multiprocessing.get_context("fork"), time.monotonic() + asked.seconds
    for model_type in types:
        cases = chosen(model_type, asked, read_keys(asked.out))
        if not cases or time.monotonic() > end:
            continue
        process = context.Process(target=run_type, args=(cases, asked.out.resolve(), asked.show_errors))
        process.start()
        process.join(asked.type_seconds)
        if process.is_alive():
            process.kill()
            process.join()
        lost = [case for case in cases if case.key not in read_keys(asked.out)]
        if lost:
            code = process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            add(asked.out, Outcome(lost[0].key, "fails", "process", f"the process ended: {how}"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/gauntlet", description=__doc__)
    parser.add_argument("types", nargs="*", help="model types; all by default")
    parser.add_argument("--out", type=Path, default=Path("gauntlet.jsonl"), help="file of outcomes")
    parser.add_argument("--tasks", default="", help="only these, by names with commas")
    parser.add_argument("--methods", default="", help="only these, by names with commas")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no type after this time")
    parser.add_argument("--type-seconds", type=float, default=180, help="longest time of one type")
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
