"""Runs in processes of their own that start warm: forked from a server that has imported peftlab and done nothing."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from peftlab.errors import PeftlabError
from peftlab.recipe.load import load_recipe
from peftlab.runs.run import train


def train_apart(
    recipe: Path,
    overrides: Sequence[str] = (),
    *,
    log: Path,
    resume: bool = False,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Start a run of `recipe` beside this process; what it says goes to `log`.

    Its exit code is that of `peftlab train`, and the log's last line then the error's.
    """
    context = multiprocessing.get_context("forkserver")
    # Where there is a CUDA device, importing bitsandbytes opens it, and an open one does not survive a fork.
    context.set_forkserver_preload([] if torch.cuda.is_available() else [__name__])
    process = context.Process(target=_train, args=(recipe, list(overrides), log, resume, dict(environment or {})))
    process.start()
    return process


def _train(recipe: Path, overrides: list[str], log: Path, resume: bool, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        train(load_recipe(recipe, overrides), name=recipe.stem, resume=resume)
    except PeftlabError as error:
        print(f"peftlab: error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
