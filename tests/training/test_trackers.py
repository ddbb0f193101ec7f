"""A tracker that fails is noted once, and the run continues."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.tracking import GeneralTracker

from peftlab.training.trackers import Trackers
from peftlab.world.open import open_world


class Fragile(GeneralTracker):
    """Fails in one of its methods."""

    name, requires_logging_directory, tracker = "fragile", False, None

    def __init__(self, failing: str = ""):
        super().__init__()
        self.failing, self.logged = failing, []

    def start(self):
        self._do("start")

    def log(self, values, step=None, **_):
        self._do("log")
        self.logged.append(step)

    def store_init_configuration(self, values):
        self._do("describe")

    def finish(self):
        self._do("finish")

    def _do(self, what):
        if what == self.failing:
            raise ConnectionError(f"no service for {what}\nand more")


@pytest.mark.parametrize("failing", ["start", "log", "finish"])
def test_a_failing_tracker_is_noted_once_and_does_not_end_the_run(failing):
    notes, broken = [], Fragile(failing)
    trackers = Trackers(open_world("cpu"), [broken], "run", Path("-"), notes.append)
    for step in (1, 2):
        trackers.log({"loss": 1.0}, step)
    trackers.close()
    assert len(notes) == 1 and "\n" not in notes[0]
    assert "failed and is no longer used: ConnectionError: no service for " + failing in notes[0]
    assert broken.logged == ([1, 2] if failing == "finish" else [])


@pytest.mark.parametrize("failing", ["start", "log"])
def test_a_tracker_next_to_a_failing_one_gets_everything(failing):
    notes, whole = [], Fragile()
    trackers = Trackers(open_world("cpu"), [Fragile(failing), whole], "run", Path("-"), notes.append)
    for step in (1, 2):
        trackers.log({"loss": 1.0}, step)
    trackers.close()
    assert whole.logged == [1, 2] and len(notes) == 1


class NumbersOnly(Fragile):
    """Takes no text."""

    name = "numbers-only"

    def log(self, values, step=None, **_):
        if any(isinstance(value, str) for value in values.values()):
            raise TypeError("not a number")
        self.logged.append(step)


def test_a_tracker_that_takes_no_text_keeps_its_numbers():
    notes, one = [], NumbersOnly()
    trackers = Trackers(open_world("cpu"), [one], "run", Path("-"), notes.append)
    trackers.write({"example": "a text"}, 1)
    trackers.log({"loss": 1.0}, 2)
    assert one.logged == [2]
    assert notes == ["run.trackers: numbers-only took no text: TypeError: not a number"]
