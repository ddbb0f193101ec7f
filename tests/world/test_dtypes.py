"""The types of frozen weights and of computation, for what a recipe names and for each device."""

from __future__ import annotations

import pytest
import torch

from peftlab.world.dtypes import resolve_types

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
B, F, H = torch.bfloat16, torch.float32, torch.float16


@pytest.mark.parametrize(
    ("dtype", "precision", "device", "types"),
    [
        ("auto", "auto", CUDA, (B, B)),
        ("auto", "auto", CPU, (F, F)),
        ("auto", "float32", CUDA, (F, F)),
        ("auto", "float16", CUDA, (H, H)),
        ("auto", "bfloat16", CPU, (B, B)),
        ("float32", "auto", CUDA, (F, F)),
        ("bfloat16", "auto", CPU, (B, B)),
        ("float32", "bfloat16", CUDA, (F, B)),
    ],
)
def test_a_type_that_is_not_named_follows_the_one_that_is_and_else_the_device(dtype, precision, device, types):
    assert resolve_types(dtype, precision, device) == types


def test_weights_are_unpacked_to_the_type_that_is_computed_in_unless_another_is_named():
    types = resolve_types("auto", "float32", CUDA)
    assert types.unpacked("auto") == F and types.unpacked("bfloat16") == B
