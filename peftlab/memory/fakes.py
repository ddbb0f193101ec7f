"""A model from the meta device as fake tensors, which go through a real step's operations without any memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from peftlab.errors import ModelError, PeftlabError
from peftlab.memory.private import (
    COUNTS_KINDS,
    FORMULAS,
    READS_VALUE,
    TAKES,
    FakeTensor,
    FakeTensorMode,
    TorchDispatchMode,
    computes_numbers,
    explain_failure,
    fake_parameter,
    first_of_rows,
    masks_as_for_real_tensors,
    one_kind,
    quiet_fake_tensors,
    tensor_tables,
    without_modes,
)


class UnpredictableError(ModelError):
    """A model that cannot run on fake tensors; `reason` is why, in one line."""

    def __init__(self, reason: str):
        super().__init__(f"memory cannot be predicted for this model ({reason})")
        self.reason = reason


@contextmanager
def refuse_untraceable() -> Iterator[None]:
    """Turn whatever a model raises on fake tensors into UnpredictableError; errors for the user stay as they are."""
    try:
        with quiet_fake_tensors():
            yield
    except PeftlabError:
        raise
    except Exception as error:
        raise UnpredictableError(explain_failure(error)) from error


class FakeModel:
    """A model whose tensors were replaced, in place, by fake ones on the CPU. Raises UnpredictableError."""

    def __init__(self, model: nn.Module):
        self.model = model
        self._mode = FakeTensorMode()
        with refuse_untraceable(), self._mode:
            _fake_all(model)

    @contextmanager
    def running(self, padded: bool) -> Iterator[None]:
        """Make every tensor inside fake. `padded` answers the model's question whether its masks mask anything.

        Whatever fails inside is raised as UnpredictableError.
        """
        with refuse_untraceable(), masks_as_for_real_tensors(), self._mode, _Answers(padded):
            yield


def nowhere() -> AbstractContextManager:
    """Return a context in which what is saved for the backward pass takes no memory of the planned device."""
    return saved_tensors_hooks(
        lambda tensor: (tensor.shape, tensor.dtype), lambda kept: torch.empty(kept[0], dtype=kept[1])
    )


class _Answers(TorchDispatchMode):
    """Answers what a program asks of a tensor's values: `padded` decides all(), numbers are 1, no outliers.

    What it computes of its own numbers alone, such as how many chunks a row has, is computed. A program that asks
    whether all rows have as many marked tokens (BART's classifiers: ends) gets one marked token a row.
    """

    def __init__(self, padded: bool):
        super().__init__()
        self.padded = padded
        self._marks_one_a_row = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if computes_numbers(func, args):
            with without_modes():
                return func(*args, **(kwargs or {}))
        if func is READS_VALUE:
            return not self.padded if args[0].dtype == torch.bool else 1
        if func.name() in FORMULAS:
            return FORMULAS[func.name()](*args, **(kwargs or {}))
        if func is COUNTS_KINDS:
            self._marks_one_a_row = True
            return one_kind(args[0])
        if self._marks_one_a_row and func is TAKES and args[1][0].dtype == torch.bool:
            return first_of_rows(args[0], args[1][0])
        return func(*args, **(kwargs or {}))


def _fake_all(model: nn.Module) -> None:
    fakes: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for table in tensor_tables(module):
            _fake_values(table, fakes)


def _fake_values(values: dict[str, Any], fakes: dict[int, torch.Tensor]) -> None:
    for name, value in list(values.items()):
        if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor):
            if id(value) not in fakes:
                fakes[id(value)] = fake_parameter(value)
            values[name] = fakes[id(value)]
