"""Memory of full fine-tuning, LoRA and QLoRA at one batch: planned for published sizes, measured where they fit.

See scripts/reproduce_memory_savings.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proof.bench import ROOT
from proof.hardware import describe
from proof.shapes import SMALL, Case, check, open_planner, shape_names
from proof.tables import savings_tables
from proof.titles import METHODS

PUBLISHED = ("llama-3.2-1b", "llama-3.1-8b", "llama-2-13b", "llama-3.1-70b")
USUAL_METHODS = ("full", "lora", "qlora")
ROWS, LENGTH, SMALL_LENGTH = 4, 1024, 256
MEMORY = "H100"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/reproduce_memory_savings",
        description="What full fine-tuning, LoRA and QLoRA take with random weights at one batch. A CUDA device "
        "measures what fits on it; the rest is planned. Without one, the CPU measures the shape `small`.",
    )
    names = shape_names()
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=f"{', '.join(names)} (all)")
    parser.add_argument("--methods", nargs="+", choices=["all", *METHODS], default=list(USUAL_METHODS), metavar="NAME")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"rows of a batch ({ROWS})")
    parser.add_argument("--length", type=int, help=f"tokens of a row ({LENGTH}; {SMALL_LENGTH} for small)")
    parser.add_argument("--memory", default=MEMORY, help=f"device to plan for where there is none ({MEMORY})")
    parser.add_argument("--plan", action="store_true", help="only plan, measure nothing")
    parser.add_argument("--output", type=Path, help="the JSON (runs/memory-savings-DATE.json)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.shapes if name not in names]
    if unknown:
        parser.error(f"there is no shape {unknown[0]!r}; there are: {', '.join(names)}")
    if min(options.rows, options.length or 1) < 1:
        parser.error("--rows and --length must be 1 or more")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    from peftlab.errors import PeftlabError
    from peftlab.world.quiet import quiet_libraries

    quiet_libraries()
    today = datetime.date.today().isoformat()
    content: dict[str, Any] = {"date": today, "pretended": False, **describe(), "memory": options.memory, "cases": []}
    try:
        for found in run(options, bool(content["machine"]["devices"])):
            content["cases"].append(found)
            print(line_of(found), flush=True)
    except PeftlabError as error:
        print(f"scripts/reproduce_memory_savings: {error}", file=sys.stderr)
        return error.exit_code
    path = options.output or ROOT / "runs" / f"memory-savings-{today}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"\n{savings_tables([content])}\n\nwritten: {path}")
    return 0


def run(options: argparse.Namespace, cuda: bool) -> Iterator[dict[str, Any]]:
    """Yield each case with its plan and, where it was measured, its measurement."""
    methods = METHODS if "all" in options.methods else options.methods
    with tempfile.TemporaryDirectory() as folder:
        for shape in options.shapes or (*PUBLISHED, SMALL):
            length = options.length or (SMALL_LENGTH if shape == SMALL else LENGTH)
            # What is small enough for the CPU is measured there, everything else on a device or not at all.
            device = "cuda" if cuda or shape != SMALL else "cpu"
            planner = open_planner(device, None if cuda or device == "cpu" else options.memory)
            for method in methods:
                one = Case(shape, method, options.rows, length)
                measured = not options.plan and (cuda or device == "cpu")
                yield {"case": one.name} | check(one, Path(folder), device, planner, measured)


def line_of(found: dict[str, Any]) -> str:
    measured = found.get("measured_bytes")
    end = f"{measured / 2**30:,.2f} GiB measured" if measured else found.get("error", "planned only")
    return f"{found['case']:<34} {found['predicted_bytes'] / 2**30:>9,.2f} GiB planned, {end}"


if __name__ == "__main__":
    sys.exit(main())
