"""ZeRO-3: what is its own; `test_divided` compares its runs with those of one process."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from peftlab.checkpoint.parts import join
from peftlab.errors import UsageError
from peftlab.parameters.divided import (
    are_finite,
    is_divided,
    numbers_of,
    own_numbers,
    own_part,
    part_of,
    whole,
    whole_count,
    whole_shape,
)
from peftlab.world.zero3 import Zero3


def test_models_that_it_cannot_divide_are_refused():
    """Experts that a process may skip would leave the others waiting; DeepSpeed needs one type of what trains."""
    world = Zero3.__new__(Zero3)
    world.device = torch.device("cpu")
    layer = nn.Module()
    layer.experts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    with pytest.raises(UsageError, match="the experts in experts are layers of their own"):
        world.prepare(layer)
    with pytest.raises(UsageError, match=r"several types \(bfloat16, float32\)"):
        world.prepare(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16()))
    world.prepare(nn.Sequential(nn.Linear(2, 2)))


@pytest.fixture
def parts():
    """A parameter of five numbers as each of two processes has it: three numbers, and two with one of padding."""
    full = torch.arange(5.0)
    made = []
    for process, own in enumerate((full[:3], torch.cat([full[3:], torch.tensor([float("nan")])]))):
        parameter = nn.Parameter(torch.empty(0))
        parameter.ds_tensor, parameter.ds_numel, parameter.ds_shape = own.clone(), 5, torch.Size([5, 1])
        parameter.ds_zero_partition_rank = process
        made.append(parameter)
    return full, made


def test_padding_is_no_part_of_a_parameter(parts):
    full, made = parts
    for one in made:
        assert is_divided(one) and whole_shape(one) == (5, 1) and whole_count(one) == 5
        assert torch.equal(own_numbers(one), numbers_of(one, full.view(5, 1))) and len(own_part(one)) == 3
    assert torch.equal(join([part_of(one) for one in made]), full.view(5, 1))


def test_a_gathered_parameter_is_its_own_whole(parts):
    full, (one, _) = parts
    one.data = full.view(5, 1)
    assert whole(one) is one


def test_a_parameter_is_finite_where_all_processes_find_it_so(parts, monkeypatch):
    _, (one, other) = parts
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, operation: None)
    assert are_finite([one, other]).tolist() == [True, True], "padding is not looked at"
    own_numbers(other)[0] = torch.inf
    assert are_finite([one, other]).tolist() == [True, False]
    assert are_finite([torch.ones(2), torch.tensor([1.0, torch.nan])]).tolist() == [True, False]


def test_gradients_have_no_padding(parts):
    _, made = parts
    world = Zero3.__new__(Zero3)
    kept = SimpleNamespace(averaged_gradients={0: [torch.ones(3), torch.ones(3)]}, fp16_groups=[made])
    world._engine = SimpleNamespace(optimizer=kept)
    assert [len(one) for one in world.gradients(None)] == [3, 2]
    kept.averaged_gradients = {0: None}
    assert world.gradients(None) == []
