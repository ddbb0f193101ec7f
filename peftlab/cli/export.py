"""`peftlab export`: a run's result in the format of another library or server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from peftlab.cli.answer import answers
from peftlab.cli.merging import Base, ComparedRows, MergeBase, Tolerance, merge_options
from peftlab.cli.options import AsJson, Debug, NoVerify, Overrides, Overwrite, RunPath


@answers
def export(
    run: RunPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.", show_default=False)],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="Format; see `peftlab docs using`.")],
    overrides: Overrides = None,
    base: MergeBase = Base.auto,
    dtype: Annotated[
        str,
        typer.Option("--dtype", metavar="TYPE", help="Type of the weights: auto, float32, float16, bfloat16, q8_0."),
    ] = "auto",
    rows: ComparedRows = 64,
    tolerance: Tolerance = None,
    overwrite: Overwrite = False,
    no_verify: NoVerify = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """Write a run's result for another library or server, and compare it with the trained model."""
    from peftlab.export.formats import export as export_run

    options = merge_options(base, dtype, rows, tolerance, no_verify=no_verify, overwrite=overwrite, overrides=overrides)
    report = export_run(run, out, to, options)
    return report.model_dump(), lambda: show_export(report), 0


def show_export(report: Any) -> None:
    from peftlab.cli.render import show
    from peftlab.cli.render_merge import render_export

    show(render_export(report))
