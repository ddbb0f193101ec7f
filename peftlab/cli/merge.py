"""`peftlab merge`: a run's result as one plain model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from peftlab.cli.answer import answers
from peftlab.cli.merging import Base, ComparedRows, MergeBase, Tolerance, merge_options
from peftlab.cli.options import AsJson, Debug, NoVerify, Overrides, Overwrite, RunPath


class Type(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Quantized(StrEnum):
    nf4 = "nf4"
    int8 = "int8"


@answers
def merge(
    run: RunPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the merged model.", show_default=False)],
    overrides: Overrides = None,
    base: MergeBase = Base.auto,
    dtype: Annotated[Type, typer.Option("--dtype", help="Type of the weights; auto is the base's.")] = Type.auto,
    quantize: Annotated[
        Quantized | None,
        typer.Option(
            "--quantize", help="Quantise the result again; it needs bitsandbytes to load.", show_default=False
        ),
    ] = None,
    rows: ComparedRows = 64,
    tolerance: Tolerance = None,
    overwrite: Overwrite = False,
    no_verify: NoVerify = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """Merge a run's result into a plain transformers model, compare both, and keep it if they agree."""
    from peftlab.runs.merge import merge as merge_run

    options = merge_options(
        base,
        dtype.value,
        rows,
        tolerance,
        no_verify=no_verify,
        overwrite=overwrite,
        overrides=overrides,
        quantize=quantize and quantize.value,
    )
    report = merge_run(run, out, options)
    return report.model_dump(), lambda: show_merge(report), 0


def show_merge(report: Any) -> None:
    from peftlab.cli.render import show
    from peftlab.cli.render_merge import render_merge

    show(render_merge(report))
