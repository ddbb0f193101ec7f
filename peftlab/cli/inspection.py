"""`peftlab params` and `peftlab doctor`: what a recipe trains, and what can run on this machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from peftlab.cli.answer import answers, error_places
from peftlab.cli.options import AsJson, Debug, Overrides

What = Annotated[
    str, typer.Argument(metavar="RECIPE|MODEL", help="Recipe file, or a model with method.type=...", show_default=False)
]


@answers
def params(what: What, overrides: Overrides = None, as_json: AsJson = False, debug: Debug = False) -> Any:
    """Count the parameters that a recipe, or a method on a model, trains. Only the model's config is read."""
    from peftlab.recipe.load import is_recipe_file, load_recipe, model_recipe

    loaded = load_recipe(what, overrides or ()) if is_recipe_file(what) else model_recipe(what, overrides or ())
    from peftlab.runs.params import count

    with error_places(what, overrides or ()):
        report = count(loaded)
    return report.model_dump(), lambda: show_parameters(report), 0


def show_parameters(report: Any) -> None:
    from peftlab.cli.render import render_parameters, show

    show(render_parameters(report))


@answers
def doctor(as_json: AsJson = False, debug: Debug = False) -> Any:
    """Show versions, devices, and the methods that run here."""
    from peftlab.runs.doctor import report

    found = report()
    return found, lambda: show_doctor(found), 0


def show_doctor(found: dict[str, Any]) -> None:
    from peftlab.cli.render import render_doctor, show

    show(render_doctor(found))
