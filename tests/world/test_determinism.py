"""Deterministic algorithms: set before CUDA starts, undone at the end, and said where they are missing."""

from __future__ import annotations

import os

import pytest
import torch

from peftlab.errors import UsageError
from peftlab.world.determinism import VARIABLES, explain_refusal, is_repeatable
from peftlab.world.open import open_world


def test_a_deterministic_world_sets_what_cublas_and_torch_read_and_undoes_it(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    world = open_world("cpu", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    world.close()
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_a_user_had_set_remains():
    torch.use_deterministic_algorithms(True)
    try:
        open_world("cpu", deterministic=True).close()
        open_world("cpu").close()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_step_on_cuda_is_repeatable_with_deterministic_algorithms_only():
    assert is_repeatable(torch.device("cpu")) and not is_repeatable(torch.device("cuda"))
    world = open_world("cpu", deterministic=True)
    assert is_repeatable(torch.device("cuda"))
    world.close()


def test_an_operation_without_a_deterministic_kernel_is_one_line():
    """torch's own text for such an operation."""
    error = RuntimeError(
        "cumsum_cuda_kernel does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation"
    )
    found = explain_refusal(error)
    assert isinstance(found, UsageError)
    assert str(found) == "run.deterministic: torch has no deterministic kernel for cumsum_cuda_kernel; set it to false"
    assert explain_refusal(RuntimeError("out of memory")) is None


@pytest.mark.parametrize("name", VARIABLES)
def test_a_users_own_variable_is_kept(monkeypatch, name):
    monkeypatch.setenv(name, ":16:8")
    open_world("cpu", deterministic=True).close()
    assert os.environ[name] == ":16:8"
