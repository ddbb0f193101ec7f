"""The parts in the order in which they run, with the most seconds that each may take on a card."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    """A part: `module` of `proof.cases` has its `run`; `settings` are passed to it."""

    name: str
    title: str
    seconds: int
    module: str
    settings: tuple[tuple[str, Any], ...] = ()
    starts_commands: bool = False
    """Whether it only starts other processes, and needs no library itself."""

    def run(self, bench: Any) -> None:
        """Measure, in this process."""
        importlib.import_module(f"proof.cases.{self.module}").run(bench, **dict(self.settings))


PARTS = (
    Part("doctor", "versions, devices, and a trial of every method", 40, "doctor"),
    Part("parity", "six methods in float32: losses of six steps on the CPU and on CUDA", 60, "parity"),
    Part("formats", "nf4, fp4, int8: bytes and scales that the CPU and CUDA make of equal weights", 30, "formats"),
    Part("biases", "types of trained biases and moments in QLoRA, audit, saved files, resume", 60, "biases"),
    Part("tests", "pytest -m gpu tests/gpu", 120, "tests", starts_commands=True),
    Part("resume", "verify-resume of LoRA, QLoRA and full, with and without deterministic kernels", 100, "resume"),
    Part("states", "8-bit and paged optimizer states: types, pages, and again after a restore", 30, "states"),
    Part("constants", "what CUDA takes beside tensors, after the libraries have loaded", 40, "constants"),
    Part("memory", "predicted memory and the allocator's, six methods on the 1B shape", 90, "memory"),
    Part("speed", "LoRA on the 1B and 8B shapes: tokens a second", 60, "speed"),
    Part("switches", "liger, varlen and compile on and off, LoRA on ragged rows: a step's seconds", 90, "switches"),
    Part("syncs", "how often a step waits for the device, counted by the profiler", 40, "syncs"),
    Part("shortage", "running out of memory in the loop: message, record, exit code", 45, "shortage"),
    Part("startup", "seconds from a command to its answer, in fresh processes", 40, "startup", starts_commands=True),
    Part(
        "memory-8b",
        "predicted memory and the allocator's, the methods that fit on the 8B shape",
        120,
        "memory",
        (("shape", "llama-3.1-8b"),),
    ),
    Part("context", "longest context that trains: QLoRA on the 8B shape, checkpointed", 100, "context"),
    Part("ddp", "two processes: equal to one, and the end of one", 90, "ddp"),
)
BY_NAME = {part.name: part for part in PARTS}
