"""`peftlab predict`: rows in, rows with predictions out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from peftlab.cli.answer import answers
from peftlab.cli.options import Debug, NoVerify, Overrides, Overwrite, RunPath
from peftlab.errors import DataError
from peftlab.quantities import number


@answers
def predict(
    run: RunPath,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Rows, or - for JSON lines on standard input.")],
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="JSON lines to write (default: standard output).")
    ] = None,
    name: Annotated[
        str, typer.Option("--name", help="Name of the new column, and beginning of others.")
    ] = "prediction",
    resume: Annotated[bool, typer.Option("--resume", help="Continue an --output that was interrupted.")] = False,
    overwrite: Overwrite = False,
    no_verify: NoVerify = False,
    debug: Debug = False,
) -> Any:
    """Predict labels, tags, numbers or texts for rows, and write the rows with them as JSON lines."""
    from peftlab.runs.predict import predict as predict_rows

    found = predict_rows(
        run, file, output, overrides or (), name=name, resume=resume, overwrite=overwrite, verify=not no_verify
    )
    if found.errors:
        print(f"peftlab: note: {number(found.errors, 'row')} with an error; {found.first_error}", file=sys.stderr)
    for note in found.notes:
        print(f"peftlab: note: {note}", file=sys.stderr)
    before = f", {found.resumed:,} of them before" if found.resumed else ""
    code = DataError.exit_code if found.errors == found.rows else 0
    return {}, lambda: output and print(f"{number(found.rows, 'row')} in {output}{before}"), code
