"""A run ends early for a signal, its time or a step, and at once for a second signal."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace

import pytest

from peftlab.training import stop as stop_module
from peftlab.training.loop import agree_to_stop
from peftlab.training.stop import Stop


def end_of(work) -> int:
    """Return how a forked process ends that does `work`: its exit code, or minus a signal."""
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def send(number: int, times: int, echo_seconds: float = 0.0, pause: float = 0.0):
    def work():
        with Stop(echo_seconds=echo_seconds) as stop:
            for _ in range(times):
                os.kill(os.getpid(), number)
                time.sleep(pause)
            os._exit(100 + stop.signal)

    return work


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_first_signal_is_a_request_and_the_second_ends_at_once(number):
    assert end_of(send(number, 1)) == 100 + number
    assert end_of(send(number, 2)) == -number


def test_a_second_signal_of_another_kind_ends_at_once_too():
    def work():
        with Stop():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)

    assert end_of(work) == -signal.SIGINT


def test_what_a_launcher_repeats_is_the_same_signal_and_a_later_one_is_not():
    assert end_of(send(signal.SIGINT, 3, echo_seconds=5.0)) == 100 + signal.SIGINT
    assert end_of(send(signal.SIGINT, 3, echo_seconds=0.1, pause=0.2)) == -signal.SIGINT


def test_the_handlers_are_restored():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    former = [signal.getsignal(number) for number in numbers]
    with Stop():
        assert signal.getsignal(signal.SIGTERM) != former[0]
    assert [signal.getsignal(number) for number in numbers] == former


class Clock:
    """A monotonic clock that moves only when a test moves it."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(stop_module.time, "monotonic", lambda: self.now)


def boundary_of_stopping(clock: Clock, stop: Stop, seconds: list[float]) -> float | None:
    """Return the seconds since the start at the boundary at which `stop` first has a reason."""
    began = clock.now
    for step, taken in enumerate(seconds, start=1):
        clock.now += taken
        if stop.ask(step):
            return clock.now - began
    return None


def test_the_time_limit_leaves_room_for_one_more_step_and_a_checkpoint(monkeypatch):
    clock = Clock(monkeypatch)
    stop = Stop(max_seconds=100.0)
    assert boundary_of_stopping(clock, stop, [40.0, 5.0, 10.0] + [5.0] * 20) == 90.0, "loading was no step"
    stop = Stop(max_seconds=100.0)
    stop.saving_seconds = 25.0
    assert boundary_of_stopping(clock, stop, [40.0, 5.0, 10.0] + [5.0] * 20) == 65.0
    assert stop.why == "run.max_seconds" and stop.signal is None


def test_a_step_that_the_recipe_names_is_the_last(monkeypatch):
    stop = Stop(last_step=3)
    assert boundary_of_stopping(Clock(monkeypatch), stop, [1.0] * 5) == 3.0
    assert stop.why == "run.stop_after"


def test_a_signal_that_comes_while_processes_agree_stops_them_after_the_next_step():
    def interrupted(number: int) -> int:
        signal.raise_signal(signal.SIGTERM)
        return number

    with Stop(echo_seconds=3.0) as stop:
        setup = SimpleNamespace(stop=stop, world=SimpleNamespace(highest=interrupted))
        assert not agree_to_stop(setup, 1), "the other processes have agreed to continue"
        setup.world.highest = lambda number: number
        assert agree_to_stop(setup, 2) and stop.signal == signal.SIGTERM
