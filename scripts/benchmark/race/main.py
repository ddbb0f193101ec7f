"""Usage: scripts/benchmark/speed [CASE:METHOD ...] [options]."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from race.cases import METHODS, SMOLLM2, cases, expand
from race.environments import python_of
from race.in_turn import Child, run_in_turns
from race.job import Job
from race.pages import describe, summarise
from race.turns import Turns, peers_on, peers_that_have

HERE = Path(__file__).resolve().parents[1]
PEERS = ("peftlab", "loop", "trainer", "liger", "trl", "adapterhub")


def main() -> int:
    options = parse()
    device = options.device
    precision = options.precision or ("bfloat16" if device == "cuda" else "float32")
    pythons = {peer: python for peer in peers_on(device, options.peers) if (python := python_of(peer))}
    found: dict[str, Any] = {"environment": environment(device), "runs": {}}
    from race.floor import peak_flops

    with tempfile.TemporaryDirectory(prefix="race-") as name:
        folder = Path(name)
        model = folder / "model"
        prepare_model(options, model, precision)
        found["peak_flops"] = peak_flops(device, precision, options.threads)
        started = time.monotonic()
        for number, wanted in enumerate(options.races):
            turns = Turns.of_race(options.rounds, options.minutes, started, len(options.races) - number)
            case_name, _, method = wanted.partition(":")
            job = prepare(options, case_name, method or "lora", model, folder / wanted.replace(":", "-"), precision)
            found["runs"][wanted] = race(options, job, pythons, cases(device == "cuda")[case_name].title, turns)
            found["runs"][wanted] |= summarise(found["runs"][wanted], found["peak_flops"])
            print(describe(wanted, found["runs"][wanted]), flush=True)
            if options.output:
                options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark/speed",
        description="Races peftlab against a plain loop, transformers' Trainer, TRL's SFTTrainer, for adapters "
        "AdapterHub's library, and on CUDA the Trainer with Liger's kernels: the same model, rows, order and first "
        "weights, each run in a process of its own, in turns.",
    )
    known = ", ".join(cases(False))
    parser.add_argument(
        "races",
        nargs="*",
        default=["uniform:lora"],
        metavar="CASE:METHOD",
        help=f"cases: {known}; methods: {', '.join(METHODS)} (default: uniform:lora); CASE:all is all methods",
    )
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(PEERS), help=",".join(PEERS))
    parser.add_argument("--model", default=None, help="model for all (default: SmolLM2-135M; on CUDA llama-3.2-1b)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each peer, in turns")
    parser.add_argument("--minutes", type=float, help="start no turn that would end later, but one for each race")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of a run")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before the timed ones")
    parser.add_argument("--file", type=Path, help="rows of the case `ragged`")
    parser.add_argument("--columns", default="question,answer", help="its columns of prompts and answers")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=0, help="torch's threads (default: as torch chooses)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="recipe field of peftlab's runs"
    )
    parser.add_argument(
        "--step-by-step",
        action="store_true",
        help="all peers of a round run at once, one step of one peer at a time: for a machine whose speed changes",
    )
    parser.add_argument("--output", type=Path, help="JSON of all that was measured")
    options = parser.parse_args()
    options.model = options.model or ("llama-3.2-1b" if options.device == "cuda" else SMOLLM2)
    options.races = expand(options.races)
    for race_name in options.races:
        case, _, method = race_name.partition(":")
        if case not in cases(False) or (method or "lora") not in METHODS:
            parser.error(f"{race_name}: use CASE:METHOD with a case of {known} and a method of {', '.join(METHODS)}")
        if case == "ragged" and options.file is None:
            parser.error("the case ragged needs --file FILE, with --columns PROMPT,ANSWER")
    if unknown := set(options.peers) - set(PEERS):
        parser.error(f"unknown peer {', '.join(sorted(unknown))}; known: {', '.join(PEERS)}")
    return options


def environment(device: str) -> dict[str, Any]:
    import datetime

    from peftlab.runs.environment import describe_environment
    from peftlab.world.open import open_world

    found = describe_environment(open_world(device)) | {"date": datetime.date.today().isoformat()}
    found.pop("command", None)
    return found


def prepare_model(options: argparse.Namespace, folder: Path, precision: str) -> None:
    from race.preparation import write_model

    write_model(options.model, folder, precision, options.device)


def prepare(options: argparse.Namespace, case_name: str, method: str, model: Path, folder: Path, precision: str) -> Job:
    """Return a case's job, with its rows and first weights on disk."""
    from race.preparation import make_job

    folder.mkdir(parents=True)
    case = cases(options.device == "cuda")[case_name]
    file = options.file.resolve() if options.file else None
    data = case.data(folder, file, tuple(options.columns.split(",")))
    steps = options.warm_up + options.steps + 1  # the last one is profiled
    job = make_job(
        case,
        method,
        model,
        folder,
        data,
        steps,
        options.warm_up,
        options.device,
        precision,
        options.threads,
        options.set,
    )
    job.write(folder / "job.json")
    start(sys.executable, "start", folder)
    return job


def race(options: argparse.Namespace, job: Job, pythons: dict[str, str], title: str, turns: Turns) -> dict[str, Any]:
    """Run every peer that has the method in turns that begin with another peer each, and return all stamps."""
    folder = Path(job.rows).parent
    names = peers_that_have(job.method, pythons)
    runs: dict[str, list[Any]] = {peer: [] for peer in names}
    for turn in turns:
        order = {peer: pythons[peer] for peer in names[turn % len(names) :] + names[: turn % len(names)]}
        found = start_all(order, folder) if options.step_by_step else start_each(order, folder)
        for peer, run in found.items():
            runs[peer].append(run)
        shutil.rmtree(folder / "run", ignore_errors=True)
    from race.floor import step_flops

    rows = job.steps_of_rows()[job.warm_up : job.timed]
    tokens = sum(len(row["input_ids"]) for step in rows for row in step)
    targets = sum(label != -100 for step in rows for row in step for label in row["labels"][1:])
    return {
        "title": title,
        "method": job.method,
        "model": options.model,
        "precision": job.precision,
        "checkpointing": job.checkpointing,
        "settings": options.set,
        "warm_up": job.warm_up,
        "tokens": tokens,
        "targets": targets,
        "flops_of_a_step": step_flops(job),
        "stamps": runs,
    }


def start(python: str, peer: str, folder: Path) -> Any:
    """Run one peer in a process, and return what it measured, or its last lines where it failed."""
    command, variables, output = prepare_child(python, peer, folder)
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=folder, check=False)
    return read_child(peer, done.returncode, done.stderr or done.stdout, output)


def start_each(pythons: dict[str, str], folder: Path) -> dict[str, Any]:
    """Run several peers one after another, and return what each measured."""
    return {peer: start(python, peer, folder) for peer, python in pythons.items()}


def start_all(pythons: dict[str, str], folder: Path) -> dict[str, Any]:
    """Run several peers at once, which do their steps in turns, and return what each measured."""
    children, outputs = {}, {}
    for peer, python in pythons.items():
        command, variables, outputs[peer] = prepare_child(python, peer, folder)
        with (folder / f"{peer}.err").open("wb") as errors:
            children[peer] = Child.start(command, variables, str(folder), errors)
    run_in_turns(list(children.values()))
    return {
        peer: read_child(peer, child.close(), (folder / f"{peer}.err").read_text(errors="replace"), outputs[peer])
        for peer, child in children.items()
    }


def prepare_child(python: str, peer: str, folder: Path) -> tuple[list[str], dict[str, str], Path]:
    """Return the command of a peer's process, its variables, and the file that it will write."""
    output = folder / f"{peer}.json"
    output.unlink(missing_ok=True)
    paths = [str(HERE), str(HERE.parents[1])]
    paths += [one for one in [os.environ.get("PYTHONPATH")] if one]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}
    command = [python, "-m", "race.child", peer, str(folder / "job.json"), str(time.time()), str(output)]
    return command, variables, output


def read_child(peer: str, status: int, words: str, output: Path) -> Any:
    """Return what a peer's process wrote, or its last lines where it failed; where ours fails, the race ends."""
    if status:
        last = "\n".join(words.strip().splitlines()[-3:])
        print(f"{peer}: {last}", file=sys.stderr)
        if peer in ("start", "peftlab"):
            raise SystemExit(1)
        return {"error": last}
    return json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
