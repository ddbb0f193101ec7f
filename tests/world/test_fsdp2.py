"""FSDP 2: what is its own; `test_divided` compares its runs with those of one process."""

from __future__ import annotations

from types import SimpleNamespace

from peftlab.world.fsdp2 import Fsdp2
from peftlab.world.open import open_world
from tests.world.runs import FSDP2


def test_a_launch_of_one_process_trains_alone_with_a_note(monkeypatch):
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    world = open_world("cpu")
    assert world.strategy == "single"
    assert world.notes == ("FSDP 2 was asked for, but the launch has one process: its device has the whole model",)


def test_a_process_works_on_its_share_alone_unless_weights_are_divided():
    place = SimpleNamespace(process=1, processes=3, divided=False)
    assert list(Fsdp2.own_share(place, 5)) == [1, 4]
    assert list(Fsdp2.own_share(SimpleNamespace(divided=True), 3)) == [0, 1, 2]
