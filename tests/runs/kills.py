"""Runs that are killed at random instants and resume until they finish: `python -m tests.runs.kills --help`.

Runs start forked from a process that has imported everything, so that a kill and what follows takes half a second.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from peftlab.checkpoint.store import list_steps
from peftlab.errors import LaunchError
from peftlab.files import write_atomically
from peftlab.methods import METHODS as METHOD_TYPES
from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.schema import Recipe
from peftlab.runs.digests import find_faults, read_digests
from peftlab.runs.directory import RunDirectory
from peftlab.runs.jobs import Job, start
from peftlab.runs.verify import differing, load_final
from peftlab.world.hardware import device_name
from peftlab.world.request import variables_of
from tests.runs.recipes import METHODS, even_model, shallow_sections

STEPS = 6
# The longest that writing a checkpoint takes here, or nearly.
WRITING_SECONDS = 0.08
# What a record says of a run whatever its paths, times and interruptions are.
SAID = ("status", "metrics", "audit", "examples", "progress", "parameters", "data", "saved_step", "error")
TIMES = {"seconds", "seconds_left", "tokens_per_second", "memory_bytes"}
# They contain paths, and times; the record is compared by what it says.
OTHERS = {"result.json", "recipe.yaml", "metrics.jsonl", "MANIFEST.json"}
MARKER = ".peftlab"


# What chooses the weights of a run, by name: sections' changes. With this learning rate the loss soon rises.
ENDS = {"evaluation": {"every": 1, "patience": 2}, "run": {"keep": "both"}}
CHOICES: dict[str, dict[str, dict[str, Any]]] = {
    "": {},
    "patience": ENDS | {"training": {"learning_rate": 0.3}},
    "ema": ENDS | {"training": {"learning_rate": 0.3, "average": {"ema": 0.7}}},
    "mean": {"training": {"average": {"last": 3}}, "run": {"keep_checkpoints": 3}},
}


@dataclass(frozen=True)
class Case:
    """A kind of run: method, task, number of processes, how they share the work, and which weights it keeps."""

    method: str
    task: str = "causal-lm"
    processes: int = 1
    strategy: str = "ddp"
    choice: str = ""

    @property
    def name(self) -> str:
        shared = f"-{self.strategy}" if self.processes > 1 else ""
        return f"{self.method}-{self.task}-{self.processes}{shared}" + (f"-{self.choice}" if self.choice else "")


CASES = [
    *(Case(method) for method in METHODS),
    *(Case(method, "sequence-classification") for method in ("full", "lora", "adapters", "bitfit")),
    Case("lora", processes=2),
    Case("bitfit", "sequence-classification", 2),
    *(Case(method, processes=2, strategy="fsdp2") for method in ("lora", "qlora", "full")),
    Case("lora", processes=2, strategy="fsdp2-offload"),
    *(Case(method, processes=2, strategy="tensor") for method in ("lora", "full", "bitfit")),
]
CHOSEN = [Case("lora", processes=2, choice=choice) for choice in ("patience", "ema", "mean")]
CHOSEN += [Case("lora", processes=2, strategy="fsdp2", choice=choice) for choice in ("patience", "ema", "mean")]
CHOSEN += [Case("lora", processes=2, strategy="tensor", choice=choice) for choice in ("patience", "mean")]
if importlib.util.find_spec("deepspeed"):
    CASES += [
        Case(method, processes=2, strategy=strategy)
        for strategy in ("zero2", "zero3")
        for method in ("lora", "qlora", "full")
    ]
    CHOSEN += [
        Case("lora", processes=2, strategy=strategy, choice=choice)
        for strategy in ("zero2", "zero3")
        for choice in ("patience", "mean")
    ]
LOST = LaunchError.exit_code
# A process whose first one was killed before they met waits in torch for the meeting, until its launcher ends it.
UNMET, MEETING_SECONDS = -signal.SIGTERM, 30.0


@dataclass
class Figures:
    """The outcomes of all kills; `mismatches` and `faults` must stay empty."""

    kills: int = 0
    phases: Counter = field(default_factory=Counter)
    cases: Counter = field(default_factory=Counter)
    resumes: int = 0
    anew: int = 0
    finished: int = 0
    compared: int = 0
    mismatches: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    longest_end_seconds: float = 0.0
    """The longest that the other processes of a run needed to end after one of them was killed."""
    seconds: float = 0.0
    kept: Path | None = None
    """Where the folders of runs that differ, or that end with a fault, are copied; None: nowhere."""


def recipe_for(folder: Path, case: Case) -> Recipe:
    """A run with a checkpoint at every step, evaluations, dropout and a warm-up, over two epochs of its rows."""
    sections = shallow_sections(case.method, folder, steps=STEPS, batch_size=2, warmup=4)
    if "dropout" in METHOD_TYPES[case.method].model_fields:
        sections["method"] = sections["method"] | {"dropout": 0.1}
    text = case.task == "causal-lm"
    source = "builtin:docstrings" if text else "builtin:topics"
    sections["model"] |= {"task": case.task}
    if case.strategy == "tensor":
        sections["model"]["name"] = str(even_model())
    sections["data"] = {
        "train": f"{source}[train]", "evaluation": f"{source}[test]", "train_rows": 11, "evaluation_rows": 3,
        "max_length": 32, "format": "completion" if text else "classification",
    }  # fmt: skip
    sections["evaluation"] = {"every": 2, "generation": {"max_new_tokens": 2, "examples": 1 if text else 0}}
    sections["run"] |= {"save_every": 1, "log_every": 1}
    for name, changes in CHOICES[case.choice].items():
        sections[name] = sections[name] | changes
    return Recipe.model_validate(sections)


def kill_runs(
    folder: Path,
    kills: int,
    seed: int = 0,
    minutes: float = 60.0,
    cases: Sequence[Case] = CASES,
    keep: Callable[[Figures], object] = lambda figures: None,
    kept: Path | None = None,
) -> Figures:
    """Kill runs under `folder` so many times, or as long as there is time: half at any instant, half in a write.

    Each resumes until it finishes and is compared with one that was never killed. The cases take turns. `keep` gets the
    figures after each. Folders with something wrong are copied below `kept`.
    """
    figures, instants, started = Figures(kept=kept), random.Random(seed), time.monotonic()
    turns = itertools.cycle(cases)
    while figures.kills < kills and not figures.faults and time.monotonic() < started + 60 * minutes:
        case = next(turns)
        place = folder / case.name
        place.mkdir(exist_ok=True)
        if not (place / "straight").exists():
            end(begin(place, place / "straight", case, resume=False))
        seconds = RunDirectory.open(place / "straight").read_result().seconds["total"]
        finish_one(place, case, seconds, instants, figures)
        figures.seconds = time.monotonic() - started
        print(f"{figures.kills:>5} kills, {figures.finished} runs, {len(figures.mismatches)} differ", flush=True)
        keep(figures)
    return figures


def finish_one(folder: Path, case: Case, seconds: float, instants: random.Random, figures: Figures) -> None:
    """Start a run, kill it repeatedly, and compare it when it has finished."""
    straight, killed = folder / "straight", folder / "killed"
    shutil.rmtree(killed, ignore_errors=True)
    reached = 0
    while True:
        resume = (killed / MARKER).exists()
        processes = begin(folder, killed, case, resume)
        if instants.random() < 0.5:
            processes[0].join(instants.uniform(0, 1.2 * seconds))
        else:
            wait_for_write(processes[0], killed / "checkpoints", instants.randint(1, 2))
            processes[0].join(instants.uniform(0, WRITING_SECONDS))
        instants.choice(processes).kill()  # the others end by themselves
        killed_at = time.monotonic()
        codes = end(processes, MEETING_SECONDS)
        if codes == [0] * case.processes:
            break
        figures.longest_end_seconds = max(figures.longest_end_seconds, time.monotonic() - killed_at)
        if wrong := [number for number, code in enumerate(codes) if code not in (0, -signal.SIGKILL, LOST, UNMET)]:
            log = (folder / f"log-{wrong[0]}").read_text().strip() or "no output"
            kept = keep_folder(folder, figures)
            figures.faults.append(f"{case.name}, exit codes {codes}: {log.splitlines()[-1]}{kept}")
            return
        figures.kills += 1
        figures.cases[case.name] += 1
        figures.phases[phase_of(killed)] += 1
        latest = max(list_steps(killed / "checkpoints"), default=0)
        # Without progress the machine is busier than when the straight run was timed.
        seconds, reached = seconds * (1 if latest > reached else 1.3), latest
        figures.resumes += latest > 0
        figures.anew += latest == 0
    figures.finished += 1
    same = compare(straight, killed)
    figures.compared += len(same)
    if different := [f"{case.name}: {name}" for name, equal in same.items() if not equal]:
        figures.mismatches += [f"{line}{keep_folder(folder, figures)}" for line in different]


def keep_folder(folder: Path, figures: Figures) -> str:
    """Copy a run, its output and the run that was not killed below `figures.kept`, and return where."""
    if figures.kept is None:
        return ""
    place = figures.kept / f"{folder.name}-{figures.kills}"
    shutil.copytree(folder, place, dirs_exist_ok=True)
    return f"; see {place}"


def wait_for_write(process: BaseProcess, checkpoints: Path, number: int) -> None:
    """Return once a run has begun to write its next checkpoint, or the one after that; or has ended."""
    seen: set[str] = set()
    while process.is_alive() and len(seen) < number:
        names = os.listdir(checkpoints) if checkpoints.is_dir() else []
        seen |= {name for name in names if name.endswith(f".{process.pid}.partial")}
        time.sleep(0.001)


def begin(folder: Path, output: Path, case: Case, resume: bool) -> list[BaseProcess]:
    """Start a run, or resume it; the output of each process is in `log-NUMBER`."""
    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(recipe_for(output, case)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {
            "WORLD_SIZE": str(case.processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
        }
    processes = []
    for number in range(case.processes):
        place = {"RANK": str(number), "LOCAL_RANK": str(number)} | variables_of(case.strategy)
        launched = shared | place if case.processes > 1 else {}
        job = Job(path, (), output, folder / f"log-{number}", launched, resume)
        processes.append(start(job, warm=True).process)
    return processes


def end(processes: Sequence[BaseProcess], seconds: float | None = None) -> list[int]:
    """Wait for the processes of a run, and return their exit codes.

    Those that have not ended so many seconds after another did get SIGTERM, as a launcher sends it. One that has met
    the others handles it, and has another exit code than `UNMET`.
    """
    connection.wait([process.sentinel for process in processes])
    for process in processes:
        process.join(seconds)
        if process.is_alive():
            process.terminate()
            process.join()
    return [process.exitcode or 0 for process in processes]


def compare(straight: Path, killed: Path) -> dict[str, bool]:
    """Return whether every state of the last checkpoint, every kept byte, line and word is the same."""
    same = differing(load_final(straight), load_final(killed))
    files = [{path.relative_to(run).as_posix(): digest(path) for path in kept_files(run)} for run in (straight, killed)]
    same |= differing(*files)
    same |= same_lines(lines(straight), lines(killed))
    records = [RunDirectory.open(run).read_result() for run in (straight, killed)]
    same |= {f"result: {name}": getattr(records[0], name) == getattr(records[1], name) for name in SAID}
    same["digests"] = not find_faults(killed) and read_digests(killed) is not None
    left = [path.name for path in killed.rglob(".*") if path.name not in (MARKER, ".lock")]
    return same | {f"nothing is left over ({', '.join(left)})": not left}


def kept_files(run: Path) -> list[Path]:
    """Return the files of a run that have the same bytes however often it was killed, but for its checkpoints."""
    files = (path for path in run.rglob("*") if path.is_file() and "checkpoints" not in path.parts)
    return [path for path in files if path.name not in OTHERS and not path.name.startswith(".")]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lines(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics without its times."""
    found = [json.loads(line) for line in RunDirectory(run).metrics.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in found]


def same_lines(straight: list[dict[str, Any]], killed: list[dict[str, Any]]) -> dict[str, bool]:
    """Return whether lines are the same, under a name that shows the first that are not."""
    for number, (one, other) in enumerate(itertools.zip_longest(straight, killed, fillvalue={}), 1):
        if one != other:
            names = [name for name in one | other if one.get(name) != other.get(name)]
            parts = [{name: line[name] for name in names if name in line} for line in (one, other)]
            return {f"line {number} of metrics.jsonl has {parts[1]}, without kills {parts[0]}": False}
    return {"lines": True}


def phase_of(run: Path) -> str:
    """Return what a run was doing when it was killed, from its files."""
    names = {path.name for path in run.iterdir()} if run.exists() else set()
    result = run / "result.json"
    if ".peftlab" not in names:
        return "before its directory was made"
    record = json.loads(result.read_text()) if result.exists() else {}
    if record.get("status") == "finished":
        return "after it had finished"
    if record.get("saved_step"):
        return "in the final evaluation"
    if any(re.fullmatch(r"\.weights\..*", name) for name in names):
        return "writing the weights"
    steps = list_steps(run / "checkpoints")
    for entry in sorted((run / "checkpoints").glob(".step-*")):
        if entry.suffix == ".former" or int(entry.name[6:12]) in steps:
            return "replacing a checkpoint"
        if steps and int(entry.name[6:12]) < max(steps):
            return "removing an old checkpoint"
        return "before the rename" if (entry / "MANIFEST.json").exists() else "writing a checkpoint's files"
    if not steps:
        return "before the first checkpoint"
    return "between checkpoints, or before the first of a resumed run"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument(
        "--cases", default="", help="only those whose names contain one of these, as in patience,ema,mean"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/kills.json"))
    arguments = parser.parse_args()
    cases = [case for case in CASES + CHOSEN if any(one in case.name for one in arguments.cases.split(","))]
    origin = {
        "machine": f"{device_name(torch.device('cpu'))}, torch {torch.__version__}",
        "date": time.strftime("%Y-%m-%d"),
        "steps": STEPS,
        "of": [case.name for case in cases],
        "seed": arguments.seed,
    }
    kept = arguments.output.with_suffix(".kept")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)

    def keep(figures: Figures) -> None:
        text = json.dumps(vars(figures) | origin, indent=2, default=str)
        write_atomically(arguments.output, text + "\n")

    with tempfile.TemporaryDirectory(prefix="peftlab-kills-") as folder:
        figures = kill_runs(Path(folder), arguments.kills, arguments.seed, arguments.minutes, cases, keep, kept)
    for phase, count in figures.phases.most_common():
        print(f"{count:>6}  {phase}")
    print(
        f"{figures.kills} kills, {figures.resumes} resumes, {figures.anew} starts anew, "
        f"{figures.finished} runs finished: {len(figures.mismatches)} of {figures.compared} comparisons differ, "
        f"{len(figures.faults)} faults, "
        f"{figures.seconds:.0f} s; {arguments.output}"
    )
    for line in [*figures.mismatches, *figures.faults]:
        print(line)
    return 1 if figures.mismatches or figures.faults else 0


if __name__ == "__main__":
    sys.exit(main())
