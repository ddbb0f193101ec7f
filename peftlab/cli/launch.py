"""`peftlab launch`: one recipe on several devices or processes of this machine."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from peftlab.cli.answer import answers
from peftlab.cli.options import Debug, Overrides, Overwrite, RecipePath
from peftlab.cli.training import Resume
from peftlab.errors import UsageError

Processes = Annotated[
    int, typer.Option("--processes", min=1, metavar="N", help="Processes, each on a device of its own.")
]
Strategy = Annotated[
    str,
    typer.Option(
        "--strategy",
        help="How they share the work: ddp, zero2 (divided states), zero3 or fsdp2 (divided weights), "
        "fsdp2-offload, or tensor (divided layers).",
    ),
]


@answers
def launch(
    recipe: RecipePath,
    overrides: Overrides = None,
    processes: Processes = 2,
    strategy: Strategy = "ddp",
    overwrite: Overwrite = False,
    resume: Resume = False,
    debug: Debug = False,
) -> Any:
    """Run a recipe in several processes of this machine, as accelerate launch and torchrun do."""
    from peftlab.recipe.load import load_recipe
    from peftlab.runs.jobs import list_cuda_devices
    from peftlab.runs.processes import run_processes
    from peftlab.world.request import variables_of

    variables, device = variables_of(strategy, processes), load_recipe(recipe, overrides or ()).run.device
    if device != "cpu" and 0 < (found := len(list_cuda_devices())) < processes:
        raise UsageError(
            f"--processes {processes}: this machine has {found} CUDA devices; use {found}, or run.device=cpu"
        )
    flags = {"--overwrite": overwrite, "--resume": resume, "--debug": debug}
    command = [sys.executable, "-m", "peftlab", "train", str(recipe), *(overrides or ())]
    command += [flag for flag, wanted in flags.items() if wanted]
    code = run_processes(command, processes, variables)
    return {}, lambda: None, code
