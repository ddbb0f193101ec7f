"""`peftlab merge`: a run's result as one plain model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from peftlab.cli.answer import answers
from peftlab.cli.options import AsJson, Debug, NoVerify, Overwrite, RunPath


class Base(StrEnum):
    auto = "auto"
    original = "original"
    dequantised = "dequantised"


class Type(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@answers
def merge(
    run: RunPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the merged model.", show_default=False)],
    base: Annotated[
        Base,
        typer.Option("--base", help="Weights that a QLoRA run's updates are added to; auto is the nearer result."),
    ] = Base.auto,
    dtype: Annotated[Type, typer.Option("--dtype", help="Type of the weights; auto is the base's.")] = Type.auto,
    rows: Annotated[
        int, typer.Option("--rows", min=0, help="Held-out rows on which the result is compared; 0 compares nothing.")
    ] = 64,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            min=0,
            help="Largest difference that passes, as a part of what training changed.",
            show_default="by the type",
        ),
    ] = None,
    overwrite: Overwrite = False,
    no_verify: NoVerify = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """Merge a run's result into a plain transformers model, compare both, and keep it if they agree."""
    from peftlab.runs.merge import merge as merge_run

    report = merge_run(
        run,
        out,
        base=base.value,
        dtype=dtype.value,
        rows=rows,
        tolerance=tolerance,
        overwrite=overwrite,
        verify=not no_verify,
    )
    return report.model_dump(), lambda: show_merge(report), 0


def show_merge(report: Any) -> None:
    from peftlab.cli.render import show
    from peftlab.cli.render_merge import render_merge

    show(render_merge(report))
