"""`peftlab params` and `peftlab doctor`: what a recipe trains, and what can run on this machine."""

from __future__ import annotations

from typing import Any

from peftlab.cli.answer import answers, error_places
from peftlab.cli.options import AsJson, Debug, Overrides, RecipePath


@answers
def params(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False, debug: Debug = False) -> Any:
    """Count the parameters that a recipe trains. Only the model's config is read."""
    from peftlab.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    from peftlab.runs.params import count

    with error_places(recipe, overrides or ()):
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
