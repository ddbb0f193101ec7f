"""Searches side by side on this machine: each tries one point after another, in processes that can be stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from peftlab.comparison.pool import POLL_SECONDS, end_late, exit_on_signals
from peftlab.comparison.search import Attempt, VariantSearch
from peftlab.runs.jobs import Ending, Running, end_all, share_of_machine, start

STOP_GRACE_SECONDS = 20.0

Ended = Callable[[VariantSearch, Attempt, str, Ending], None]


def run_searches(searches: Iterable[VariantSearch], at_once: int, time_limit: float, warm: bool, ended: Ended) -> None:
    """Make the searches, `at_once` side by side: each tries one point after another.

    `ended` is called after each trial, with its status.
    """
    waiting, running = list(searches), dict[int, tuple[VariantSearch, Running]]()
    with exit_on_signals() as check:
        try:
            while waiting or running:
                check()
                for place in range(at_once):
                    while waiting and place not in running:
                        if one := _begin(waiting, share_of_machine(place, at_once), warm, ended):
                            running[place] = one
                for place, (search, process) in list(running.items()):
                    ending, stopped = process.ending() or end_late(process, time_limit), False
                    if ending is None and (stopped := search.should_stop()):
                        end_all([process], STOP_GRACE_SECONDS)
                        ending = process.ending()
                    if ending:
                        del running[place]
                        ended(search, *search.settle(ending, stopped), ending)
                        waiting.insert(0, search)
                time.sleep(POLL_SECONDS)
        finally:
            end_all([process for _, process in running.values()])


def _begin(
    waiting: list[VariantSearch], environment: dict[str, str], warm: bool, ended: Ended
) -> tuple[VariantSearch, Running] | None:
    """Start the next trial of the first search that waits; None where it has ended, or knew the trial's outcome."""
    search = waiting[0]
    job = search.next()
    if job is None:
        waiting.pop(0)
        return None
    if known := search.find(job):
        ended(search, *search.settle(known, stopped=False), known)
        return None
    return waiting.pop(0), start(replace(job, environment=environment), warm)
