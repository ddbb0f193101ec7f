"""Runs that take turns step by step, each in a process of its own: a machine that slows down slows all of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

PIPES = "RACE_PIPES"
"""Variable of a child: the descriptors that it reads its turns from and writes their ends to."""


@dataclass
class Child:
    """A process that has ended its first step. It does one more after each byte that it gets."""

    process: subprocess.Popen[bytes]
    turns: int
    ends: int
    going: bool = True

    @classmethod
    def start(cls, command: Sequence[str], variables: Mapping[str, str], folder: str, errors: IO[bytes]) -> Child:
        (read_turns, turns), (ends, write_ends) = os.pipe(), os.pipe()
        process = subprocess.Popen(
            command,
            env={**variables, PIPES: f"{read_turns},{write_ends}"},
            cwd=folder,
            pass_fds=(read_turns, write_ends),
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        os.close(read_turns)
        os.close(write_ends)
        child = cls(process, turns, ends)
        child._await_end()
        return child

    def step(self) -> None:
        """Let it do its next step, or what comes after the last one."""
        try:
            os.write(self.turns, b"t")
        except BrokenPipeError:
            self.going = False
            return
        self._await_end()

    def _await_end(self) -> None:
        self.going = bool(os.read(self.ends, 1))  # nothing: the process has ended

    def close(self) -> int:
        """Wait for the process, and return its exit status."""
        os.close(self.turns)
        os.close(self.ends)
        return self.process.wait()


def run_in_turns(children: Sequence[Child]) -> None:
    """Have all children do one step each, in an order that moves on by one each time, until all have ended."""
    number = 0
    while any(child.going for child in children):
        first = number % len(children)
        for child in (*children[first:], *children[:first]):
            if child.going:
                child.step()
        number += 1


def wait_of_child() -> Callable[[], object]:
    """Return what this process calls after each step: it waits for its turn, where it is one of several that do."""
    if PIPES not in os.environ:
        return lambda: None
    turns, ends = map(int, os.environ[PIPES].split(","))

    def wait() -> None:
        os.write(ends, b"e")
        os.read(turns, 1)

    return wait
