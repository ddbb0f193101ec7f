"""Damage by chance to what runs keep: each flipped bit and each damaged record is noticed before it is used.

`python -m tests.faults.damages --help`; `scripts/damage_test` runs it.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from peftlab.comparison.trials import read_trial
from peftlab.errors import StoppedError, StorageError
from peftlab.files import write_atomically
from peftlab.recipe.load import load_recipe
from peftlab.reports import TrialReport
from peftlab.runs.digests import read_digests
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.examination import examine
from peftlab.runs.resumption import find_resumption
from peftlab.runs.run import train
from peftlab.runs.use import open_run
from peftlab.world.hardware import device_name
from tests.runs.recipes import METHODS, shallow_recipe

RECORDS = ("result.json", "scores.json", "metrics.jsonl", "recipe.yaml", "MANIFEST.json")
CONTENTS = [
    b"", b"\n", b"null\n", b"true\n", b"3\n", b'"x"\n', b"[]\n", b"[1, 2]\n", b"{}\n", b"NaN\n", b"1e400\n",
    b"\xff\xfe\x00\n", b"\x00" * 64 + b"\n", b"[" * 100_000 + b"\n", b'{"a":' * 100_000 + b"\n", b"9" * 5000 + b"\n",
]  # fmt: skip


@dataclass
class Figures:
    """How many damages each door noticed; `missed` and `faults` must stay empty."""

    bits: int = 0
    records: int = 0
    noticed: Counter = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


def make_runs(folder: Path) -> list[Path]:
    """Return a finished run of every method, and a stopped one."""
    runs = []
    for method in METHODS:
        recipe = shallow_recipe(method, folder / method, steps=2, batch_size=2)
        sections = recipe.model_dump(mode="json")
        sections["run"] |= {"save_every": 1, "log_every": 1}
        sections["data"] |= {"train_rows": 8, "evaluation_rows": 3, "max_length": 32}
        train(type(recipe).model_validate(sections), display=NoDisplay())
        runs.append(folder / method)
    sections["run"] |= {"output": str(folder / "stopped"), "stop_after": 1}
    try:
        train(type(recipe).model_validate(sections), display=NoDisplay())
    except StoppedError:
        runs.append(folder / "stopped")
    return runs


def refusal(act: Callable[[], object]) -> str:
    """Return the line of the StorageError that `act` raises, empty without one."""
    try:
        act()
    except StorageError as error:
        return str(error)
    return ""


def ask_use(run: Path) -> str:
    """Return what `evaluate` and `generate` say before they load anything."""
    return refusal(lambda: open_run(run, ()))


def ask_resume(run: Path) -> str:
    """Return what `train --resume` says before it loads anything: a refusal, or what is made again."""
    found: list[str] = []

    def look() -> None:
        recipe = load_recipe(run.parent / f"{run.name}.yaml")
        found.extend(find_resumption(RunDirectory.reopen(run), recipe).faults.values())

    return refusal(look) or "; ".join(found)


def ask_report(run: Path) -> str:
    """Return what a comparison's report says of the run."""
    problems: list[str] = []
    read_trial(run, TrialReport(run=run.name, learning_rate=1e-3, seed=0, status="finished"), problems)
    return "; ".join(problems)


def ask_verify(run: Path) -> str:
    """Return what `peftlab verify` says."""
    found: list[str] = []
    return refusal(lambda: found.extend(examine(run)["faults"])) or "; ".join(found)


# Which commands read which file; weights are compared by size in a report, which does not use them.
USE, RESUME, REPORT, VERIFY = ask_use, ask_resume, ask_report, ask_verify
READERS: dict[str, tuple[Callable[[Path], str], ...]] = {
    "result.json": (USE, RESUME, REPORT, VERIFY),
    "recipe.yaml": (USE, RESUME, REPORT, VERIFY),
    "metrics.jsonl": (RESUME, REPORT, VERIFY),
    "scores.json": (RESUME, REPORT, VERIFY),
    "weights": (USE, RESUME, VERIFY),
    "loss.png": (RESUME, VERIFY),
    "MANIFEST.json": (USE, RESUME, REPORT, VERIFY),
}


def check(run: Path, name: str, content: bytes, figures: Figures) -> None:
    """Put other bytes into a file, ask every command that reads it, and put the old ones back."""
    path = run / name
    whole = path.read_bytes()
    if content == whole:
        return
    path.write_bytes(content)
    for ask in READERS[name.partition("/")[0]]:
        place = f"{ask.__name__} of {run.name}/{name}"
        try:
            line = ask(run)
        except Exception as error:
            figures.faults.append(f"{place}: {type(error).__name__}: {str(error)[:200]}")
            continue
        if str(path) in line and len(line.splitlines()) == 1:
            figures.noticed[ask.__name__] += 1
        else:
            figures.missed.append(f"{place}: {line[:200]!r}")
    path.write_bytes(whole)


def damage_runs(folder: Path, bits: int, records: int, seed: int = 0) -> Figures:
    """Flip so many bits and damage so many records of runs made in `folder`, one at a time."""
    figures, chance, started = Figures(), random.Random(seed), time.monotonic()
    runs = make_runs(folder)
    for run in runs:
        shutil.copy(run / "recipe.yaml", folder / f"{run.name}.yaml")
    for number in range(bits):
        run = runs[number % len(runs)]
        name = chance.choice(sorted([*read_digests(run).files, "MANIFEST.json"]))
        content = bytearray((run / name).read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        check(run, name, bytes(content), figures)
        figures.bits += 1
    for number in range(records):
        run, name = runs[number % len(runs)], chance.choice(RECORDS)
        whole = (run / name).read_bytes()
        half = whole[: chance.randrange(len(whole))]
        check(run, name, chance.choice([*CONTENTS, half, half, whole + whole]), figures)
        figures.records += 1
    figures.seconds = time.monotonic() - started
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, default=500)
    parser.add_argument("--records", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/damages.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="peftlab-damages-") as folder:
        figures = damage_runs(Path(folder), arguments.bits, arguments.records, arguments.seed)
    machine = f"{device_name(torch.device('cpu'))}, torch {torch.__version__}"
    record = vars(figures) | {"machine": machine, "date": time.strftime("%Y-%m-%d"), "seed": arguments.seed}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output, json.dumps(record, indent=2) + "\n")
    print(
        f"{figures.bits} bits, {figures.records} records: noticed {dict(figures.noticed)}, "
        f"{len(figures.missed)} missed, {len(figures.faults)} faults, {figures.seconds:.0f} s; {arguments.output}"
    )
    print("\n".join([*figures.missed, *figures.faults][:20]))
    return 1 if figures.missed or figures.faults else 0


if __name__ == "__main__":
    sys.exit(main())
