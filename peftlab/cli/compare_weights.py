"""`peftlab compare-weights`: how far two models are from each other on a run's rows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from peftlab.cli.answer import answers
from peftlab.cli.options import AsJson, Debug, NoVerify, Overrides

Weights = "A run, `base`, a folder of transformers, or a GGUF file."


@answers
def compare_weights(
    first: Annotated[str, typer.Argument(metavar="A", help=Weights)],
    second: Annotated[str, typer.Argument(metavar="B", help=Weights)],
    overrides: Overrides = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="Run whose rows to use, where neither names one.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Held-out rows to compare on.")] = 64,
    no_verify: NoVerify = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """Compare the outputs of two models on held-out rows of a run: logits, KL divergence, loss."""
    from peftlab.export.weights import compare_weights as compare

    found = compare(first, second, run=run, rows=rows, verify=not no_verify, overrides=overrides or ())
    answer = {**asdict(found), "agreement": found.agreement.model_dump()}
    return answer, lambda: show_comparison(found), 0


def show_comparison(found: Any) -> None:
    from peftlab.cli.render import show
    from peftlab.cli.render_merge import render_compared

    show(render_compared(found.first, found.second, found.part, found.agreement))
