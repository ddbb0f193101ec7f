"""`peftlab reproduce`: a run made again, and whether it is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from peftlab.cli.answer import answers
from peftlab.cli.options import AsJson, Debug, Overwrite, RunPath
from peftlab.errors import StorageError

Output = Annotated[
    Path | None, typer.Option("--output", metavar="FOLDER", help="Where to run it (default: RUN-again).")
]


@answers
def reproduce(
    run: RunPath,
    start: Annotated[bool, typer.Option("--run", help="Run it, and compare the two results byte by byte.")] = False,
    output: Output = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """Show how to make a run again and what is different here; with --run do it and compare."""
    from peftlab.runs import reproduction

    found = reproduction.reproduce(run, output, overwrite) if start else reproduction.describe_run(run)
    return found, lambda: show_found(found), 0 if found.get("equal", True) else StorageError.exit_code


def show_found(found: dict[str, Any]) -> None:
    for name, (there, here) in found["different"].items():
        print(f"different here: {name}: {there} -> {here}")
    if not found["different"]:
        print("hardware and software are those of the run")
    if "equal" not in found:
        print(found["command"])
        return
    if found["equal"]:
        print(f"equal to the bit: weights, row scores and metrics of {found['run']} and {found['output']}")
    for name in found["files"]:
        print(f"differs: {name}")
    for name, (there, here) in found["metrics"].items():
        print(f"differs: {name}: {there} -> {here}")
