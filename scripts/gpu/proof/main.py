"""The command: which parts, with which packages, until when."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from requirements import canonical, missing, own_requirements, unfit_builds

from proof.bench import ROOT
from proof.gathering import USUAL
from proof.parts import BY_NAME, PARTS
from proof.record import Record, failed
from proof.runner import Runner

GATHERED = ROOT / ".gpu"
MISSING, FAILED, TERMINATED = 9, 10, 143  # exit codes, as peftlab's own
# Allows for the start of the machine and for copying the file, within ten minutes.
LIMIT_SECONDS = 540
DESCRIPTION = """Runs everything that only a CUDA device can show, each part in a process of its own, and writes one
JSON with hardware, versions and date. It needs Python 3.11 or newer and no registry. Packages that this Python lacks
are read from a folder that scripts/gpu/gather makes where a registry can be reached."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/gpu/prove", description=DESCRIPTION)
    parser.add_argument("--list", action="store_true", help="show the parts in their order and end")
    parser.add_argument("--needs", action="store_true", help="show which packages are missing and end")
    parser.add_argument("--pretend", action="store_true", help="try every part on the CPU, at tiny size")
    parser.add_argument("--only", nargs="+", metavar="PART", choices=BY_NAME, help="run these parts only")
    parser.add_argument("--skip", nargs="+", metavar="PART", choices=BY_NAME, default=[], help="leave these parts out")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, metavar="SECONDS", help="end after so long (540)")
    parser.add_argument("--packages", type=Path, metavar="FOLDER", help="packages beside this Python's (.gpu)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the JSON (runs/proof-DATE.json)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.list:
        print("\n".join(f"{part.name:<10} {part.seconds:>4} s  {part.title}" for part in PARTS))
        return 0
    folder = choose_packages(options.packages)
    lines = lacking(folder)
    if lines or options.needs:
        return report_needs(lines, folder)
    environment = environment_of(folder, options.pretend)
    facts = describe(environment)
    if facts is None:
        return MISSING
    if not facts["machine"]["devices"] and not options.pretend:
        print("scripts/gpu/prove: torch sees no CUDA device; --pretend tries every part on the CPU", file=sys.stderr)
        return MISSING
    return prove(options, environment, facts)


def choose_packages(asked: Path | None) -> Path | None:
    """Return the folder to read packages from: the one asked for, or the gathered one if this Python lacks any."""
    if asked is not None or not GATHERED.is_dir():
        return asked
    return GATHERED if missing(own_requirements()) else None


def lacking(folder: Path | None) -> list[str]:
    """Return what is missing for the proof, one line each."""
    if folder is not None and not folder.is_dir():
        return [f"{folder}: no such folder"]
    return [*(unfit_builds(folder) if folder else ()), *missing([*own_requirements(), "pytest"], folder)]


def report_needs(lines: list[str], folder: Path | None) -> int:
    print(f"packages beside this Python's own: {folder or 'none'}")
    if not lines:
        print("nothing is missing")
        return 0
    print("\n".join(lines))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    absent = [line.partition(":")[0] for line in lines if line.endswith("not installed")]
    further = [name for name in absent if name not in map(canonical, USUAL)]
    print(f"where a registry can be reached: {' '.join(['scripts/gpu/gather --python', version, *further])}")
    return MISSING


def environment_of(folder: Path | None, pretend: bool) -> dict[str, str]:
    """Return the environment of the parts: what they import, no hub, and no CUDA device where they are only tried."""
    here = Path(__file__).resolve().parents[1]
    paths = [*([folder.resolve()] if folder else []), here, here.parent, ROOT]
    own = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    own |= {"PYTHONUNBUFFERED": "1"}
    if pretend:  # two parts at once: more threads than cores would wait for one another
        own |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return {**os.environ, **own}


def describe(environment: dict[str, str]) -> dict[str, Any] | None:
    """Return hardware and versions as the parts see them; None, with a line, where torch cannot be loaded."""
    command = [sys.executable, "-m", "proof.hardware"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(f"scripts/gpu/prove: torch cannot be loaded: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout)


def prove(options: argparse.Namespace, environment: dict[str, str], facts: dict[str, Any]) -> int:
    """Run the parts and return the exit code: 0 if every part ended and every claim is true."""
    started = time.monotonic()
    now = datetime.datetime.now().astimezone()
    path = options.output or ROOT / "runs" / f"proof-{now:%Y-%m-%d-%H%M%S}.json"
    when = {"date": f"{now:%Y-%m-%d}", "time": now.isoformat(timespec="seconds"), "pretended": options.pretend}
    record = Record(path, when | {"commit": commit()} | facts)
    say = lambda line: print(line, flush=True)  # noqa: E731
    say(headline(record.content))
    runner = Runner(record, environment, started + options.limit, say, pretend=options.pretend)
    chosen = [part for part in PARTS if part.name not in options.skip]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # ends the parts too
    runner.run_all([part for part in chosen if not options.only or part.name in options.only])
    wrong = failed(record.content)
    record.content |= {"seconds": round(time.monotonic() - started, 1)}
    record.write()
    cases = sum(len(part.get("cases", [])) for part in record.content["parts"].values())
    say(f"{cases} cases of {len(record.content['parts'])} parts in {record.content['seconds']:.0f} s")
    for name in wrong:
        say(f"not ok: {name}")
    say(f"written: {path}")
    return FAILED if wrong else 0


def headline(content: dict[str, Any]) -> str:
    names = [one["name"] for one in content["machine"]["devices"]]
    versions = content["versions"]
    where = "the CPU, to try the parts" if content["pretended"] else ", ".join(names)
    return (
        f"on {where}: torch {versions['torch']}, transformers {versions['transformers']}, python {versions['python']}"
    )


def commit() -> str | None:
    """Return the commit of this checkout; None where it is only a copy of the files, or git is not here."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or None
