"""`peftlab data`: what the model will see of a recipe's data."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from peftlab.cli.answer import answers, error_places
from peftlab.cli.options import AsJson, Debug, Overrides, RecipePath
from peftlab.errors import DataError, StorageError, UsageError, one_line

ROWS_IN_TEXT, ROWS_ON_PAGE = 3, 50


class Part(StrEnum):
    train = "train"
    evaluation = "evaluation"
    test = "test"


@answers
def data(
    recipe: RecipePath,
    overrides: Overrides = None,
    part: Annotated[Part, typer.Option("--part", help="Rows to show.")] = Part.train,
    row: Annotated[
        list[int] | None, typer.Option("--row", metavar="N", help="Show row N, counted from 0; may be repeated.")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            "--rows", min=0, help="Number of rows to show: 3, with --html 50, with --json all.", show_default=False
        ),
    ] = None,
    worst: Annotated[bool, typer.Option("--worst", help="Show the rows with the most faults first.")] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page with the same content.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """Show what the model will see: rows, supervised tokens, lengths, and what is unusual. Loads no weights."""
    from peftlab.recipe.load import load_recipe, recipe_name

    if row and (worst or rows is not None):
        raise UsageError("--row names rows itself; remove --rows and --worst")
    loaded = load_recipe(recipe, overrides or ())
    if loaded.data.train == "-":
        raise UsageError("this recipe has no data (data.train: -); set data.train")
    if html is not None:
        from peftlab.data.sources import files_of_recipe
        from peftlab.files import refuse_output_file

        refuse_output_file(html, [recipe, *files_of_recipe(loaded.data)])
    from peftlab.runs.data_report import report_data

    default = None if as_json else ROWS_ON_PAGE if html else ROWS_IN_TEXT
    with error_places(recipe, overrides or ()):
        report = report_data(
            loaded, part=part.value, indices=row or (), count=rows if rows is not None else default, worst=worst
        )
    if html is not None:
        write_page(report, recipe_name(recipe), html)
    return report.model_dump(), lambda: show_report(report, html), DataError.exit_code if report.refusal else 0


def write_page(report: Any, name: str, path: Path) -> None:
    from peftlab.cli.render_data import FACTS, fact_lines
    from peftlab.files import write_output
    from peftlab.runs.data_page import render_page

    try:
        write_output(path, render_page(report, name, FACTS, list(fact_lines(report))))
    except OSError as error:
        raise StorageError(f"--html {path}: cannot be written: {one_line(error.strerror or error)}") from None


def show_report(report: Any, html: Path | None) -> None:
    from peftlab.cli.render import show
    from peftlab.cli.render_data import render_data

    show(render_data(report, with_rows=html is None))
    if html is not None:
        print(f"\n{len(report.rows)} rows are on the page {html}")
