"""Kernels of formulas: what norms, feed-forwards, rotations and the loss do between matrix products, compiled."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from typing import ClassVar

import torch
from torch import nn
from torch._subclasses import FakeTensor

from peftlab.errors import one_line
from peftlab.nn.formulas import compile_formulas
from peftlab.recipe.schema import Recipe
from peftlab.speed.base import Decline, SpeedUp
from peftlab.world.hardware import has_cuda

COMPILED = ("loss", "feed_forward", "norm", "rotary")
"""The switches of the speed-ups that have formulas."""


class Compiling(SpeedUp):
    name: ClassVar[str] = "compile"
    does: ClassVar[str] = "what norms, feed-forwards, rotations and the loss do between matrix products is compiled"

    def unavailable(self) -> str | None:
        return _what_is_missing("cuda" if has_cuda() else "cpu")

    def decline(self, model: nn.Module, recipe: Recipe) -> Decline | None:
        speed = recipe.training.speed
        if all(getattr(speed, name) == "off" for name in COMPILED):
            return Decline(f"{', '.join(COMPILED)} are off, whose formulas it compiles")
        if recipe.run.deterministic:
            return Decline("its kernels are chosen by their times, and run.deterministic is true")
        weight = next(model.parameters())
        if weight.is_meta or isinstance(weight, FakeTensor):
            return Decline("a plan sees each operation", possible=True)
        device = weight.device.type
        if missing := _what_is_missing(device):
            return Decline(missing)
        if speed.compile == "on" and (fault := _try_compiler(device)):
            return Decline(fault)
        if device == "cuda":
            return Decline("whether it pays there has not been measured", possible=True)
        return Decline("on a CPU it saves nothing", possible=True)

    def apply(self, model: nn.Module, recipe: Recipe) -> str:
        compile_formulas(model, True)
        return ""

    def remove(self, model: nn.Module) -> None:
        compile_formulas(model, False)


def _what_is_missing(device: str) -> str | None:
    if device == "cuda":
        return None if importlib.util.find_spec("triton") else "torch compiles by Triton, which is not installed"
    if os.environ.get("CXX") or any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return None
    return "torch needs a C++ compiler, and none is installed"


@functools.cache
def _try_compiler(device: str) -> str | None:
    """Return why torch cannot compile a small function on a device; None if it can."""
    try:
        torch.compile(lambda x: x * 2 + 1, dynamic=True)(torch.ones(3, device=device))
    except Exception as error:  # whatever a compiler that is half installed does
        return f"torch's compiler fails ({type(error).__name__}: {one_line(str(error))[:100]})"
    return None
