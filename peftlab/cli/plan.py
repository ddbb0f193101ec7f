"""`peftlab plan`: the memory of a recipe, or of all methods on one model, before any weights are loaded."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftlab.cli.answer import answers, error_places
from peftlab.cli.options import AsJson, Debug, Overrides
from peftlab.errors import UsageError, listed
from peftlab.secrets import mask_secrets

if TYPE_CHECKING:
    from peftlab.recipe.schema import Recipe

What = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE|MODEL",
        help="Recipe file, or a model: planned with every method, or with the one of method.type=lora.",
        show_default=False,
    ),
]
From = Annotated[
    Path | None,
    typer.Option("--from", help="Configuration of another trainer instead of a recipe; see `peftlab convert`."),
]
Memory = Annotated[
    str | None, typer.Option("--memory", metavar="SIZE", help="Memory available: 24GiB, or a GPU's name.")
]
Maximize = Annotated[
    str | None,
    typer.Option("--maximize", metavar="FIELD", help="Find the largest batch_size, max_length or rank that fits."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda (no GPU is needed to plan).")]
DEVICES = ("auto", "cpu", "cuda")
Devices = Annotated[
    int, typer.Option("--devices", min=1, metavar="N", help="Devices of a machine that share the work.")
]
Nodes = Annotated[int, typer.Option("--nodes", min=1, metavar="N", help="Machines with that many devices each.")]
Strategy = Annotated[
    str, typer.Option("--strategy", help="How they share it: ddp, zero2, fsdp2, zero3, fsdp2-offload or tensor.")
]
Bandwidth = Annotated[
    str | None,
    typer.Option("--bandwidth", metavar="SIZE", help="What a device sends in a second over the slowest link: 25GB."),
]
Fit = Annotated[bool, typer.Option("--fit", help="Plan every strategy, and name the cheapest one that fits.")]


@answers
def plan(
    what: What = None,
    overrides: Overrides = None,
    source: From = None,
    memory: Memory = None,
    maximize: Maximize = None,
    device: Device = "auto",
    devices: Devices = 1,
    nodes: Nodes = 1,
    strategy: Strategy = "ddp",
    bandwidth: Bandwidth = None,
    fit: Fit = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """Predict the memory of a run, and whether it fits. The report is by category and by phase."""
    if device not in DEVICES:
        raise UsageError(f"--device {device!r} is not one of {', '.join(DEVICES)}")
    from peftlab.recipe.load import is_recipe_file, load_recipe, model_recipe

    if source is not None:
        recipe = convert_recipe(source, [*([what] if what else []), *(overrides or ())])
        what, overrides = str(source), None
    elif what is None:
        raise UsageError("name a recipe file, a model, or another trainer's configuration with --from")
    elif not is_recipe_file(what) and not overrides:
        refuse_options(
            "of one method: name a recipe file, or a model with its method, as in method.type=lora",
            {
                "--maximize": maximize,
                "--fit": fit,
                "--devices": devices != 1,
                "--nodes": nodes != 1,
                "--strategy": strategy != "ddp",
                "--bandwidth": bandwidth,
            },
        )
        return plan_model(what, memory, device)
    else:
        recipe = load_recipe(what, overrides or ()) if is_recipe_file(what) else model_recipe(what, overrides or ())
    from peftlab.runs.plan import plan as plan_recipe
    from peftlab.runs.plan import plan_strategies

    shared: dict[str, Any] = {"device": device, "devices": devices * nodes, "bandwidth": bandwidth}
    with error_places(what, overrides or ()) if source is None else nullcontext():
        if fit:
            unused = {"--maximize": maximize, "--strategy": strategy != "ddp"}
            refuse_options("of one strategy, and --fit plans each of them: leave one out", unused)
            rows = plan_strategies(recipe, memory, **shared)
            return {"strategies": [row.model_dump() for row in rows]}, lambda: show_strategies(rows), 0
        report = plan_recipe(recipe, memory, maximized=maximize, strategy=strategy, **shared)
    return report.model_dump(), lambda: show_plan(report), 0


def convert_recipe(source: Path, overrides: list[str]) -> Recipe:
    """Return the recipe of another trainer's configuration; what has no counterpart is said on standard error."""
    from peftlab.conversion.convert import convert
    from peftlab.recipe.load import parse_recipe

    text = convert(source).text
    print(
        mask_secrets("".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))), file=sys.stderr
    )
    return parse_recipe(text, overrides, file=f"recipe of {source.name}")


def refuse_options(why: str, options: Mapping[str, Any]) -> None:
    """Raise UsageError for options that are given and would change nothing."""
    if given := [name for name, value in options.items() if value]:
        raise UsageError(f"{listed(given)} {'is' if len(given) == 1 else 'are'} {why}")


def plan_model(model: str, memory: str | None, device: str) -> Any:
    """Plan every method with its defaults on one model."""
    from peftlab.runs.plan import plan_methods

    rows = plan_methods(model, memory, device=device)
    return {"model": model, "methods": [row.model_dump() for row in rows]}, lambda: show_methods(rows), 0


def show_plan(report: Any) -> None:
    from peftlab.cli.render import show
    from peftlab.cli.render_memory import render_memory

    show(render_memory(report))


def show_strategies(rows: Any) -> None:
    from peftlab.cli.render import show
    from peftlab.cli.render_memory import render_strategies

    show(render_strategies(rows))


def show_methods(rows: Any) -> None:
    from peftlab.cli.render import show
    from peftlab.cli.render_memory import render_methods

    show(render_methods(rows))
