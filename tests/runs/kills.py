"""Runs that are killed at random instants and resume until they finish: `python -m tests.runs.kills --help`.

Runs start forked from a process that has imported everything, so that a kill and what follows takes half a second.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from peftlab.checkpoint.store import list_steps
from peftlab.files import write_atomically
from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.schema import Recipe
from peftlab.runs.directory import RunDirectory
from peftlab.runs.jobs import Job, start
from peftlab.runs.verify import differing, load_final
from tests.runs.recipes import shallow_sections

STEPS = 6
# The longest that writing a checkpoint takes here, or nearly.
WRITING_SECONDS = 0.08


@dataclass
class Figures:
    """The outcomes of all kills; `mismatches` and `faults` must stay empty."""

    kills: int = 0
    phases: Counter = field(default_factory=Counter)
    resumes: int = 0
    anew: int = 0
    finished: int = 0
    compared: int = 0
    mismatches: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


def recipe_for(folder: Path) -> Recipe:
    """A run with a checkpoint at every step, dropout and a warm-up, over two epochs of its rows."""
    sections = shallow_sections("lora", folder, steps=STEPS, batch_size=2, warmup=4)
    sections["method"] = sections["method"] | {"dropout": 0.1}
    sections["data"] = {"train": "builtin:docstrings[train]", "train_rows": 11, "max_length": 32}
    sections["run"] |= {"save_every": 1, "log_every": 1}
    return Recipe.model_validate(sections)


def kill_runs(folder: Path, kills: int, seed: int = 0, minutes: float = 60.0) -> Figures:
    """Kill runs under `folder` so many times, or as long as there is time: half at any instant, half in a write.

    Each resumes until it finishes and is compared with one that was never killed.
    """
    figures, instants, started = Figures(), random.Random(seed), time.monotonic()
    straight = folder / "straight"
    begin(folder, straight, resume=False).join()
    seconds = RunDirectory.open(straight).read_result().seconds["total"]
    while figures.kills < kills and not figures.faults and time.monotonic() < started + 60 * minutes:
        finish_one(folder, straight, seconds, instants, figures)
        print(f"{figures.kills:>5} kills, {figures.finished} runs, {len(figures.mismatches)} differ", flush=True)
    figures.seconds = time.monotonic() - started
    return figures


def finish_one(folder: Path, straight: Path, seconds: float, instants: random.Random, figures: Figures) -> None:
    """Start a run, kill it repeatedly, and compare it when it has finished."""
    killed = folder / "killed"
    shutil.rmtree(killed, ignore_errors=True)
    resume, reached = False, 0
    while True:
        process = begin(folder, killed, resume)
        if instants.random() < 0.5:
            process.join(instants.uniform(0, seconds))
        else:
            wait_for_write(process, killed / "checkpoints", instants.randint(1, 2))
            process.join(instants.uniform(0, WRITING_SECONDS))
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        if process.exitcode > 0:
            figures.faults.append((folder / "log").read_text().strip().splitlines()[-1])
            return
        figures.kills += 1
        figures.phases[phase_of(killed)] += 1
        latest = max(list_steps(killed / "checkpoints"), default=0)
        # Without progress the machine is busier than when the straight run was timed.
        seconds, reached, resume = seconds * (1 if latest > reached else 1.1), latest, latest > 0
        figures.resumes += resume
        figures.anew += not resume
    figures.finished += 1
    same = compare(straight, killed)
    figures.compared += len(same)
    figures.mismatches += [name for name, equal in same.items() if not equal]


def wait_for_write(process: BaseProcess, checkpoints: Path, number: int) -> None:
    """Return once a run has begun to write its next checkpoint, or the one after that; or has ended."""
    seen: set[str] = set()
    while process.is_alive() and len(seen) < number:
        names = os.listdir(checkpoints) if checkpoints.is_dir() else []
        seen |= {name for name in names if name.endswith(f".{process.pid}.partial")}
        time.sleep(0.001)


def begin(folder: Path, output: Path, resume: bool) -> BaseProcess:
    """Start a run, or resume it; its output is in `log`."""
    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(recipe_for(output)))
    return start(Job(path, (), output, folder / "log", resume=resume), warm=True).process


def compare(straight: Path, killed: Path) -> dict[str, bool]:
    """Return whether every state of the last checkpoint, every file of the weights and every loss is the same."""
    same = differing(load_final(straight), load_final(killed))
    weights = [{path.name: digest(path) for path in (run / "weights").iterdir()} for run in (straight, killed)]
    same |= differing(*weights)
    same["losses"] = losses(straight) == losses(killed)
    left = [path.name for path in killed.rglob(".*") if path.name not in (".peftlab", ".lock")]
    return same | {f"nothing is left over ({', '.join(left)})": not left}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def losses(run: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in RunDirectory(run).metrics.read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def phase_of(run: Path) -> str:
    """Return what a run was doing when it was killed, from its files."""
    names = {path.name for path in run.iterdir()} if run.exists() else set()
    result = run / "result.json"
    if ".peftlab" not in names:
        return "before its directory was made"
    if result.exists() and json.loads(result.read_text())["status"] == "finished":
        return "after it had finished"
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
    parser.add_argument("--output", type=Path, default=Path("runs/kills.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="peftlab-kills-") as folder:
        figures = kill_runs(Path(folder), arguments.kills, arguments.seed, arguments.minutes)
    record = vars(figures) | {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "date": time.strftime("%Y-%m-%d"),
        "steps": STEPS,
        "seed": arguments.seed,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output, json.dumps(record, indent=2) + "\n")
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
