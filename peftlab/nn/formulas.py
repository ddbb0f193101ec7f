"""Formulas of speed-ups: functions of tensors, computed operation by operation, or compiled by torch into few kernels.

They lie within autograd functions of our own, so that compiling them changes nothing of what is saved for backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from peftlab.parameters.trainable import find_base

KERNELS = 64
"""How many kernels one formula may have in a process."""

_models: WeakSet[nn.Module] = WeakSet()
_compiling = False  # of the process, not of a thread: autograd calls formulas from threads of its own


class Formula:
    """A function of tensors that is not differentiated itself.

    `functional` computes the same and writes into no argument: it is what is compiled, where `plain` does write.
    """

    def __init__(self, plain: Callable[..., Any], functional: Callable[..., Any] | None = None):
        self.plain, self.functional = plain, functional or plain

    def __call__(self, *arguments: Any) -> Any:
        # A mode of dispatch counts bytes or has no numbers: it has to see each operation.
        compiled = _compiling and _get_current_dispatch_mode() is None
        return (self.compiled if compiled else self.plain)(*arguments)

    @cached_property
    def compiled(self) -> Callable[..., Any]:
        # For any shape from the first call on: a second kernel for a second length would round otherwise, and a run
        # that resumes there would not be the one that never stopped.
        # A view, a row or a column alone each get a kernel still, and torch stops a run that needs a ninth.
        config: Any = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, KERNELS)
        return torch.compile(self.functional, dynamic=True, fullgraph=True)


@contextmanager
def compiled_formulas(model: nn.Module) -> Iterator[None]:
    """While the context is open, formulas are compiled if `compile_formulas` was asked for `model`."""
    global _compiling
    before, _compiling = _compiling, find_base(model)[1] in _models
    try:
        yield
    finally:
        _compiling = before


def compile_formulas(model: nn.Module, wanted: bool) -> None:
    """Compile the formulas in steps of `model`, wrapped or not, from now on; or do not."""
    (_models.add if wanted else _models.discard)(find_base(model)[1])
