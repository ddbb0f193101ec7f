"""Functions in a process of their own that starts warm: forked from a server that has imported and done nothing."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import torch

WARM = ["peftlab.runs.run", "peft", "datasets", "transformers.models.llama.modeling_llama"]


def call_apart(function: Callable[..., object], *arguments: object, log: Path, seconds: float = 120) -> int:
    """Call a module's function in a fresh process and return its exit code; what it prints goes to `log`.

    It shares no memory with this process, and saves the seconds that a new interpreter takes to import torch.
    """
    context = multiprocessing.get_context("forkserver")
    # Where there is a CUDA device, importing bitsandbytes opens it, and an open one does not survive a fork.
    context.set_forkserver_preload([] if torch.cuda.is_available() else WARM)
    process = context.Process(target=_call, args=(function, arguments, log))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"{function.__name__} still ran after {seconds} s: {log.read_text()}")
    return process.exitcode


def _call(function: Callable[..., object], arguments: tuple[object, ...], log: Path) -> None:
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    function(*arguments)
