"""Runs in processes of their own that start warm: forked from a server that has imported peftlab and done nothing."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from peftlab.errors import PeftlabError
from peftlab.recipe.load import load_recipe
from peftlab.runs.run import train
from peftlab.world.hardware import has_cuda

# Modules that a run needs sooner or later and that take long to import.
WARM = [__name__, "datasets", "matplotlib.figure", "transformers.models.llama.modeling_llama", "peft.tuners.lora.bnb"]


def train_apart(
    recipe: Path,
    overrides: Sequence[str] = (),
    *,
    log: Path,
    resume: bool = False,
    overwrite: bool = False,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Start a run of `recipe` beside this process; what it says goes to `log`.

    Its exit code is that of `peftlab train`, and the log's last line then the error's.
    """
    context = multiprocessing.get_context("forkserver")
    # Where there is a CUDA device, importing bitsandbytes opens it, and an open one does not survive a fork.
    context.set_forkserver_preload([] if has_cuda() else WARM)
    arguments = (recipe, list(overrides), log, dict(environment or {}), resume, overwrite)
    process = context.Process(target=_train, args=arguments)
    process.start()
    return process


def _train(
    recipe: Path, overrides: list[str], log: Path, environment: dict[str, str], resume: bool, overwrite: bool
) -> None:
    os.environ.update(environment)
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        train(load_recipe(recipe, overrides), name=recipe.stem, resume=resume, overwrite=overwrite)
    except PeftlabError as error:
        print(f"peftlab: error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
