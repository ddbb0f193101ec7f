"""What a run writes and shows while it trains: `metrics.jsonl`, trackers, the terminal."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from peftlab.errors import StorageError
from peftlab.files import why, write_atomically
from peftlab.reports import Metrics, Progress
from peftlab.training.metrics_file import read_lines

if TYPE_CHECKING:
    from peftlab.training.trackers import Trackers
    from peftlab.world.base import World


class Display(Protocol):
    """Shows one line of numbers at a time."""

    def update(self, line: dict[str, Any], steps: int) -> None: ...


def is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


class Recorder:
    """Collects the losses of steps on the device, and reads them with one synchronisation at log time."""

    def __init__(
        self,
        world: World,
        path: Path,
        display: Display,
        trackers: Trackers,
        memory_bytes: Callable[[], int],
    ):
        self.world, self.path, self.memory_bytes = world, path, memory_bytes
        self.display, self.trackers = display, trackers
        self.steps = self._done = 0
        self.first_step: Callable[[], object] = lambda: None  # called when the first step is done
        self.history: list[dict[str, Any]] = []
        self._losses: list[torch.Tensor] = []
        self._counts: list[tuple[int, int]] = []
        self._started = self._last = time.perf_counter()

    def start(self, steps: int, done: int = 0) -> None:
        """Start the clock of a training of so many steps, of which `done` are done."""
        self.steps, self._done = steps, done
        self._started = self._last = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """Return what is not logged yet, so that a resumed run logs the same means."""
        return {"losses": [loss.cpu() for loss in self._losses], "counts": list(self._counts)}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self._losses = [loss.to(self.world.device) for loss in state["losses"]]
        self._counts = list(state["counts"])

    def rewind(self, step: int) -> list[int]:
        """Remove the lines after `step` from the file; a resumed run writes them again.

        Return the numbers of the lines that cannot be read and are removed too.
        """
        lines, unreadable = read_lines(self.path)
        self.history = [line for line in lines if line["step"] <= step]
        if self.world.is_main:
            self._rewrite()
        return unreadable

    def write_history(self) -> None:
        """Write the lines in `history`, which another program logged, in place of those in the file."""
        if self.history and self.world.is_main:
            self._rewrite()

    def has_evaluation(self, step: int) -> bool:
        """Return whether the evaluation after a step is among the lines; only the main process knows."""
        return any(line["event"] == "evaluation" and line["step"] == step for line in self.history)

    def add(self, loss: torch.Tensor, supervised: int, tokens: int) -> None:
        """Add one step's loss (this process's share of the mean over `supervised`) without reading it."""
        self._losses.append(loss * supervised)
        self._counts.append((supervised, tokens))

    def log(self, progress: Progress, norm: torch.Tensor, learning_rate: float) -> None:
        """Write the means since the last line: loss per token, gradient norm, learning rate, speed, memory, time."""
        supervised, tokens = (sum(counts) for counts in zip(*self._counts, strict=True))
        loss = self.world.sum(torch.stack(self._losses).sum()).item() / supervised
        if progress.step == 1:
            self.first_step()
        now = time.perf_counter()
        elapsed = now - self._started
        line = {
            "step": progress.step,
            "loss": loss,
            "gradient_norm": norm.item(),
            "learning_rate": learning_rate,
            "tokens_per_second": tokens / max(now - self._last, 1e-9),
            "memory_bytes": self.memory_bytes(),
            "seconds": elapsed,
            "seconds_left": elapsed / (progress.step - self._done) * (self.steps - progress.step),
        }
        self._losses, self._counts, self._last = [], [], now
        self._write("train", line)

    def log_evaluation(self, step: int, metrics: Metrics) -> None:
        """Write the metrics of the evaluation rows after a step; the next line's speed starts here.

        They replace those that a killed run wrote of the same evaluation.
        """
        again = self.has_evaluation(step)
        self.history = [one for one in self.history if (one["event"], one["step"]) != ("evaluation", step)]
        self._write("evaluation", {"step": step, **metrics}, again)
        self._last = time.perf_counter()

    def _write(self, event: str, line: dict[str, Any], again: bool = False) -> None:
        if not self.world.is_main:
            return
        line = {"event": event, **line}
        later = any(one["step"] > line["step"] for one in self.history)
        self.history.append(line)
        if again or later:  # an evaluation that a resumed run made again: replaced at once, as a kill may come between
            self.history.sort(key=lambda one: one["step"])
            self._rewrite()
        else:
            self._append(render_line(line))
        self.display.update(line, self.steps)
        numbers = {f"{event}/{k}": v for k, v in line.items() if isinstance(v, (int, float)) and is_finite(v)}
        self.trackers.log(numbers, step=line["step"])

    def _append(self, text: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written: {why(error)}") from None

    def _rewrite(self) -> None:
        try:
            write_atomically(self.path, "".join(map(render_line, self.history)))
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written: {why(error)}") from None


def render_line(line: dict[str, Any]) -> str:
    """Return a line of `metrics.jsonl`; JSON has no NaN and no infinity, which become null.

    They are a gradient that a scaler will skip, or an overflowing perplexity.
    """
    return json.dumps({k: v if is_finite(v) else None for k, v in line.items()}) + "\n"
