"""The recipe's trackers, none of which can end a run: what fails is said once and left out from then on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker


class Trackers:
    """accelerate's trackers of the main process, started for `project`; `note` says what failed."""

    def __init__(self, accelerator: Accelerator, project: str, note: Callable[[str], None]):
        self.note = note
        self.trackers: list[GeneralTracker] = []
        if accelerator.log_with and accelerator.is_main_process:
            if self._guard("a tracker's start", lambda: accelerator.init_trackers(project)):
                self.trackers = list(accelerator.trackers)

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._each(lambda tracker: tracker.log(numbers, step=step))

    def close(self) -> None:
        self._each(lambda tracker: tracker.finish())

    def _each(self, act: Callable[[GeneralTracker], None]) -> None:
        self.trackers = [one for one in self.trackers if self._guard(one.name, lambda one=one: act(one))]

    def _guard(self, name: str, act: Callable[[], None]) -> bool:
        try:
            act()
        except Exception as error:  # whatever a tracker's service or library comes up with
            told = next(iter(str(error).splitlines()), "")
            self.note(f"run.trackers: {name} failed and is left out from here on: {type(error).__name__}: {told}")
            return False
        return True
