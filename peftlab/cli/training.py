"""`peftlab train` and `peftlab verify-resume`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from peftlab.cli.answer import answers, error_places
from peftlab.cli.options import AsJson, Debug, NoVerify, Overrides, Overwrite, RecipePath
from peftlab.errors import StorageError, UsageError

Resume = Annotated[bool, typer.Option("--resume", help="Resume from the run's latest intact checkpoint.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Stop before the first step; show recipe, first rows and memory.")
]


@answers
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    no_verify: NoVerify = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """Run a recipe: train, evaluate before and after, save."""
    from peftlab.recipe.load import load_recipe, recipe_name

    if dry_run:
        return try_recipe(recipe, overrides or (), overwrite or resume)
    if resume and overwrite:
        raise UsageError("--resume resumes a run and --overwrite replaces it; use only one of them")
    loaded = load_recipe(recipe, overrides or ())
    from peftlab.runs.run import train as train_recipe

    with error_places(recipe, overrides or ()):
        result = train_recipe(
            loaded, name=recipe_name(recipe), overwrite=overwrite, resume=resume, verify=not no_verify
        )
    return result.model_dump(), lambda: show_result(result), 0


def try_recipe(recipe: Path, overrides: Sequence[str], with_a_run: bool) -> Any:
    """Do everything before the first step, without a run directory."""
    from peftlab.recipe.load import load_recipe

    if with_a_run:
        raise UsageError("--dry-run has no run directory; remove --resume and --overwrite")
    loaded = load_recipe(recipe, overrides)
    from peftlab.runs.dry_run import dry_run

    with error_places(recipe, overrides):
        report = dry_run(loaded)
    return report.model_dump(), lambda: show_dry_run(loaded, report), 0


def show_dry_run(recipe: Any, report: Any) -> None:
    from peftlab.cli.render import show
    from peftlab.cli.render_rows import render_dry_run
    from peftlab.recipe.dump import dump_recipe

    print(dump_recipe(recipe))
    show(render_dry_run(report))


def show_result(result: Any) -> None:
    from peftlab.cli.render import render_result, show

    show(render_result(result))


@answers
def verify_resume(
    recipe: RecipePath,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option("--steps", help="Optimiser steps of the test.")] = 6,
    stop_after: Annotated[
        int, typer.Option("--stop-after", help="Step after which the run is stopped and resumed.")
    ] = 3,
    repeat: Annotated[
        bool, typer.Option("--repeat", help="Also compare two uninterrupted runs first; always done on CUDA.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """Test that resuming a run is exact. A stopped and resumed run is compared with an uninterrupted one."""
    from peftlab.recipe.load import load_recipe

    load_recipe(recipe, overrides or ())
    from peftlab.runs.verify import verify_resume as verify

    found = verify(recipe, overrides or (), steps=steps, stop_after=stop_after, repeat=repeat)
    return found, lambda: show_proof(found), 0 if found["exact"] else StorageError.exit_code


def show_proof(found: dict[str, Any]) -> None:
    same, repeated = found["compared"] - len(found["differ"]), found["repeat_differs"]
    if repeated is not None:
        equal = found["compared"] - len(repeated)
        print(f"two uninterrupted runs: {equal} of {found['compared']} states are equal to the byte")
    print(
        f"{found['steps']} steps uninterrupted, compared with a stop after step {found['stop_after']} and a resumption:"
    )
    print(f"{same} of {found['compared']} states are equal to the byte (weights, moments, schedule, random states)")
    for line in [*(f"differs: {name}" for name in found["differ"][:8]), *found["reasons"]]:
        print(line)
    print("exact" if found["exact"] else "not exact")
