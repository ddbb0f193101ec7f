"""`peftlab import`: weights that another trainer made, as a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from peftlab.cli.answer import answers
from peftlab.cli.options import AsJson, Debug, Overrides, Overwrite


@answers
def import_(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Folder of PEFT or transformers, or a trainer's checkpoint.", show_default=False
        ),
    ],
    overrides: Overrides = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", metavar="FILE", help="Recipe, or configuration that `convert` reads: data, settings."),
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", metavar="A,B", help="Classes in the order of the head's outputs.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """Make a run of weights that PEFT, TRL, axolotl, LLaMA-Factory or transformers trained."""
    from peftlab.runs.imported import import_run

    names = [name.strip() for name in labels.split(",")] if labels is not None else None
    path, result = import_run(folder, recipe, overrides or (), labels=names, overwrite=overwrite)
    return {"run": str(path), **result.model_dump()}, lambda: show_import(path, result), 0


def show_import(path: Path, result: Any) -> None:
    from peftlab.cli.training import show_result

    show_result(result)
    print(f"\nin {path}")
