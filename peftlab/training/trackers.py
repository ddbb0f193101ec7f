"""The recipe's trackers, none of which can end a run: one that fails is noted once and no longer used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from peftlab.world.base import Tracker, World

Result = TypeVar("Result")


class Trackers:
    """The main process's trackers of these names, started for `project` in `folder`; `note` shows what failed."""

    def __init__(self, world: World, names: Sequence[Any], project: str, folder: Path, note: Callable[[str], None]):
        self.note = note
        self.trackers: list[Tracker] = []
        for name in names:
            opened, _ = self._guard(str(name), partial(world.open_trackers, [name], project, folder))
            self.trackers += opened or []

    def describe(self, values: dict[str, Any]) -> None:
        """Give every tracker what the run is: plain values by name. Once, before any number."""
        self._each(lambda tracker: tracker.store_init_configuration(values))

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._each(lambda tracker: tracker.log(numbers, step=step))

    def write(self, texts: dict[str, str], step: int) -> None:
        """Give every tracker texts by name. One that takes numbers only is noted, and stays in use."""
        if texts:
            for tracker in self.trackers:
                self._guard(tracker.name, partial(tracker.log, texts, step=step), "took no text")

    def close(self) -> None:
        self._each(lambda tracker: tracker.finish())

    def _each(self, act: Callable[[Tracker], Any]) -> None:
        self.trackers = [one for one in self.trackers if self._guard(one.name, partial(act, one))[1]]

    def _guard(
        self, name: str, act: Callable[[], Result], what: str = "failed and is no longer used"
    ) -> tuple[Result | None, bool]:
        """Return what `act` returns and whether it succeeded; `what` is noted of a tracker where it did not."""
        try:
            return act(), True
        except Exception as error:  # a tracker's service or library may raise anything
            reason = next(iter(str(error).splitlines()), "")
            self.note(f"run.trackers: {name} {what}: {type(error).__name__}: {reason}")
            return None, False
