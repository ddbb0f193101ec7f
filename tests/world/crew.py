"""Two processes on the CPU that train one recipe after another under a strategy, which saves their start each time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from peftlab.errors import PeftlabError
from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.load import load_recipe
from peftlab.recipe.schema import Recipe
from peftlab.runs.display import NoDisplay
from peftlab.runs.jobs import start_server
from peftlab.runs.run import train
from peftlab.world.request import variables_of
from tests.runs.pairs import free_port


class Crew:
    """The two processes of a strategy. They are started with the first recipe, and again after an error."""

    def __init__(self, strategy: str, folder: Path):
        self.strategy, self.folder = strategy, folder
        self.environment = variables_of(strategy)
        self._members: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []

    def train(self, recipe: Recipe, resume: bool = False, seconds: float = 300) -> list[str]:
        """Return the error of each process, empty where it trained. Raises AssertionError where one does not answer."""
        found = self.order(recipe, resume, seconds)
        if any(found):
            self.end()
        return found

    def order(self, recipe: Recipe, resume: bool = False, seconds: float = 300) -> list[str]:
        """Do what `train` does, and keep the processes after an error too."""
        path = self.folder / "recipe.yaml"
        path.write_text(dump_recipe(recipe))
        if not self._members:
            port = str(free_port())
            self._members = [self._start(number, port) for number in range(2)]
        for _, orders in self._members:
            orders.send((path, resume))
        return self._answers(time.monotonic() + seconds)

    def _answers(self, ends: float) -> list[str]:
        found = []
        for _, orders in self._members:
            try:
                assert orders.poll(max(ends - time.monotonic(), 0)), "a process does not end"
                found.append(orders.recv())
            except (EOFError, AssertionError) as error:
                self.end()
                raise AssertionError(f"a process was lost after {found}: {error}") from None
        return found

    def _start(self, number: int, port: str) -> tuple[multiprocessing.process.BaseProcess, Connection]:
        context = multiprocessing.get_context("forkserver")
        start_server()
        orders, theirs = context.Pipe()
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | self.environment
        environment = shared | {"RANK": str(number), "LOCAL_RANK": str(number)}
        process = context.Process(target=serve, args=(environment, theirs, torch.get_num_threads()), daemon=True)
        process.start()
        theirs.close()
        return process, orders

    def end(self) -> None:
        """End the processes."""
        for process, orders in self._members:
            orders.close()
            process.kill()
            process.join()
        self._members = []


def serve(environment: dict[str, str], orders: Connection, threads: int) -> None:
    """Be one process: train each recipe that is ordered, and answer with its error."""
    os.environ.update(environment)
    torch.set_num_threads(threads)
    with contextlib.suppress(EOFError):  # there are no more
        while True:
            orders.send(_train(*orders.recv()))


def _train(path: Path, resume: bool) -> str:
    try:
        train(load_recipe(path, ()), overwrite=not resume, resume=resume, display=NoDisplay())
    except PeftlabError as error:
        return str(error)
    except Exception:
        return traceback.format_exc()
    return ""
