"""What a person sees during a run: a progress bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from peftlab.quantities import format_metric


def format_duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_line(line: dict[str, Any], steps: int) -> str:
    """Return one line of numbers, under 80 columns."""
    if line["event"] == "evaluation":
        # A metric can have no value, such as a score of texts of which all are empty.
        known = {name: value for name, value in line.items() if name not in ("event", "step")}
        numbers = "  ".join(f"{name} {format_metric(value)}" for name, value in known.items())
        when = f"step {line['step']:>5}/{steps}" if line["step"] else "before training"
        return f"{when}  held out: {numbers}"
    return (
        f"step {line['step']:>5}/{steps}  loss {line['loss']:.4f}  lr {line['learning_rate']:.1e}  "
        f"{line['tokens_per_second']:.0f} tok/s  mem {line['memory_bytes'] / 2**30:.2f} GiB  "
        f"left {format_duration(line['seconds_left'])}"
    )


class LineDisplay:
    """Plain lines on standard error, for logs and pipes."""

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stderr

    def note(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a closed pipe does not end the run
            print(text, file=self.stream, flush=True)

    def update(self, line: dict[str, Any], steps: int) -> None:
        self.note(format_line(line, steps))

    def close(self) -> None:
        pass


class BarDisplay:
    """A progress bar on a terminal, on standard error so that standard output has only the command's answer."""

    def __init__(self):
        self.console = Console(stderr=True)
        self.progress = Progress(BarColumn(bar_width=10), TextColumn("{task.description}"), console=self.console)
        self.task = None

    def note(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self.console.print(text, highlight=False, markup=False)

    def update(self, line: dict[str, Any], steps: int) -> None:
        if line["event"] == "evaluation":
            return self.note(format_line(line, steps))
        with contextlib.suppress(OSError):  # the terminal was closed
            if self.task is None:
                self.progress.start()
                self.task = self.progress.add_task("", total=steps)
            description = format_line(line, steps).removeprefix("step").lstrip()
            self.progress.update(self.task, completed=line["step"], description=description)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.progress.stop()


class NoDisplay:
    """Shows nothing: for processes other than the main one, and for callers with a display of their own."""

    def note(self, text: str) -> None:
        pass

    def update(self, line: dict[str, Any], steps: int) -> None:
        pass

    def close(self) -> None:
        pass


def open_display(shown: bool = True) -> LineDisplay | BarDisplay | NoDisplay:
    """Return this process's display: none unless `shown`, a bar on a terminal, lines otherwise."""
    if not shown:
        return NoDisplay()
    return BarDisplay() if sys.stderr.isatty() else LineDisplay()
