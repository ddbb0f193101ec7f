"""Random numbers after a restored state are those that would have come."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from peftlab.checkpoint.randomness import capture_random_state, restore_random_state
from peftlab.checkpoint.tensors import load_state, save_state
from peftlab.errors import StorageError


def draw() -> list:
    """Draw so that each generator is left with half a pair in store."""
    numbers = [random.gauss(0, 1), np.random.standard_normal(), torch.randn(1).item(), random.random()]
    if torch.cuda.is_available():
        numbers += [torch.randn(3, device=f"cuda:{device}").sum().item() for device in range(torch.cuda.device_count())]
    return numbers


def test_the_next_numbers_are_the_same_after_a_round_trip(tmp_path):
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    draw()
    save_state(tmp_path, "random", capture_random_state())
    expected = [draw() for _ in range(3)]
    assert restore_random_state(load_state(tmp_path, "random")) == []
    assert [draw() for _ in range(3)] == expected
    assert [draw() for _ in range(3)] != expected


def test_states_of_devices_that_are_missing_are_reported(tmp_path):
    state = capture_random_state()
    devices = len(state["cuda"])
    state["cuda"] = [*state["cuda"], torch.zeros(16, dtype=torch.uint8)]
    assert restore_random_state(state) == [
        f"random states of {devices + 1} CUDA devices were saved, this machine has {devices}"
    ]


@pytest.mark.parametrize("part", ["python", "numpy", "torch"])
@pytest.mark.parametrize("wrong", [None, (), (3, (1, 2), None), torch.zeros(4), "text"])
def test_a_state_that_a_generator_refuses_is_one_line(part, wrong):
    state = capture_random_state()
    with pytest.raises(StorageError, match="random state of the checkpoint cannot be restored") as caught:
        restore_random_state(state | {part: wrong})
    assert "\n" not in str(caught.value)


def test_a_missing_part_is_one_line():
    state = capture_random_state()
    del state["numpy"]
    with pytest.raises(StorageError):
        restore_random_state(state)
