"""`peftlab evaluate` and `peftlab generate`: use of a run's trained weights."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from peftlab.cli.answer import answers
from peftlab.cli.options import AsJson, Debug, Overrides, RunPath

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue or answer.", show_default=False)]


@answers
def evaluate(run: RunPath, overrides: Overrides = None, as_json: AsJson = False, debug: Debug = False) -> Any:
    """Evaluate a run's trained weights. Overrides change its recipe, such as data.evaluation=FILE."""
    from peftlab.runs.use import evaluate as evaluate_run

    metrics = evaluate_run(run, overrides or ())
    return {"run": str(run), "metrics": metrics}, lambda: show_metrics(metrics), 0


def show_metrics(metrics: dict[str, float]) -> None:
    from peftlab.cli.render import render_metrics, show

    show(render_metrics(metrics))


@answers
def generate(
    run: RunPath, prompt: Prompt, overrides: Overrides = None, as_json: AsJson = False, debug: Debug = False
) -> Any:
    """Continue or answer a prompt with a run's trained weights."""
    from peftlab.runs.use import generate as generate_text

    text = generate_text(run, prompt, overrides or ())
    return {"run": str(run), "prompt": prompt, "text": text}, lambda: print(text), 0
