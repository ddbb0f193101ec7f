"""Texts reach trackers whose adapter in accelerate takes numbers alone; numbers reach them as ever."""

from __future__ import annotations

import pytest

from peftlab.world import tracker_texts
from peftlab.world.tracker_texts import accept_texts


class Numbers:
    """Keeps numbers as accelerate's tracker of MLflow does, and refuses texts as that of Aim does."""

    def __init__(self, name: str):
        self.name = name
        self.kept: list = []

    def store_init_configuration(self, values):
        self.kept.append(values)

    def log(self, values, step=None):
        assert values and not any(isinstance(value, str) for value in values.values())
        self.kept.append((step, values))

    def finish(self):
        self.kept.append("finished")


@pytest.mark.parametrize("name", ["aim", "mlflow"])
def test_texts_go_to_the_library_and_numbers_to_accelerate_s_tracker(name, monkeypatch):
    texts: list = []
    monkeypatch.setitem(tracker_texts.WRITERS, name, lambda tracker, *given: texts.append((tracker.name, *given)))
    plain = Numbers(name)
    tracker = accept_texts(plain)
    tracker.store_init_configuration({"method.rank": 4})
    tracker.log({"train/loss": 2.5}, step=1)
    tracker.log({"examples/1": "an answer", "final/loss": 2.0}, step=2)
    tracker.log({"summary": "- trainable: 12"}, step=2)
    tracker.finish()
    assert tracker.name == name
    assert plain.kept == [{"method.rank": 4}, (1, {"train/loss": 2.5}), (2, {"final/loss": 2.0}), "finished"]
    assert texts == [(name, "examples/1", "an answer", 2), (name, "summary", "- trainable: 12", 2)]


def test_a_tracker_that_takes_texts_is_left_as_it_is():
    plain = Numbers("wandb")
    assert accept_texts(plain) is plain
