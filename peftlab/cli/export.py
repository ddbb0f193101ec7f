"""`peftlab export`: a run's result in the format of another library or server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from peftlab.cli.answer import answers
from peftlab.cli.merge import Base
from peftlab.cli.options import AsJson, Debug, NoVerify, Overwrite, RunPath


@answers
def export(
    run: RunPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.", show_default=False)],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="Format; see `peftlab docs using`.")],
    base: Annotated[Base, typer.Option("--base", help="As for `peftlab merge`.")] = Base.auto,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="TYPE", help="Type of the weights: float32, float16, bfloat16, q8_0."),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="Held-out rows on which the result is compared.")] = 64,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", min=0, help="As for `peftlab merge`.", show_default="by the type"),
    ] = None,
    overwrite: Overwrite = False,
    no_verify: NoVerify = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """Write a run's result for another library or server, and compare it with the trained model."""
    from peftlab.export.formats import export as export_run

    options: dict[str, Any] = {"rows": rows, "tolerance": tolerance, "overwrite": overwrite, "verify": not no_verify}
    report = export_run(run, out, to, base=base.value, dtype=dtype, **options)
    return report.model_dump(), lambda: show_export(report), 0


def show_export(report: Any) -> None:
    from peftlab.cli.render import show
    from peftlab.cli.render_merge import render_export

    show(render_export(report))
