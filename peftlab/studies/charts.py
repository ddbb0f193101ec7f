"""The pictures of a study: curves over a number, and values by name with their intervals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log10
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE_INCHES, FRAME_INCHES, CURVE_INCHES = 0.3, 0.75, 2.8
# Which multiples of the powers of ten have labels on an axis of at most so many: more would overlap.
LABELLED = {1.5: (1.0, 2.0, 5.0), 3.5: (1.0, 3.0)}


class Point(NamedTuple):
    """A point of a curve, with the ends of its interval; both are infinite where it is not known."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Chart(ABC):
    """A picture with its title, how to read it, and the titles of its axes."""

    name: str
    title: str
    caption: str
    x_title: str

    @abstractmethod
    def draw(self) -> tuple[str, bytes]:
        """Return the picture as SVG and as PNG."""


@dataclass(frozen=True)
class Curves(Chart):
    """Points by the name of their curve."""

    y_title: str
    series: Mapping[str, Sequence[Point]]
    log_x: bool = False
    log_y: bool = False

    def draw(self) -> tuple[str, bytes]:
        from peftlab.comparison.report.style import drawing, legend_below, save

        with drawing(CURVE_INCHES) as (figure, axes):
            handles = [self._draw_one(axes, place, name) for place, name in enumerate(self.series)]
            drawn = any(len(line.get_xdata()) for line in handles)  # a scale without a value has no logarithm
            if self.log_x and drawn:
                make_logarithmic(axes, "x")
            if self.log_y and drawn:
                make_logarithmic(axes, "y")
            axes.set_xlabel(self.x_title)
            axes.set_ylabel(self.y_title)
            if len(handles) > 1:
                legend_below(figure, handles)
            return save(figure, self.title)

    def _draw_one(self, axes: Axes, place: int, name: str) -> Any:
        from peftlab.comparison.report.style import COLOURS, DASHES, MARKERS, plain

        points = [point for point in self.series[name] if isfinite(point.y) and (point.y > 0 or not self.log_y)]
        colour = COLOURS[place % len(COLOURS)]
        (line,) = axes.plot(
            [point.x for point in points], [point.y for point in points], color=colour, label=plain(name),
            marker=MARKERS[place % len(MARKERS)], linestyle=DASHES[place % len(DASHES)], markersize=4, linewidth=1.5,
        )  # fmt: skip
        known = [point for point in points if isfinite(point.low + point.high)]
        lows = [max(point.low, point.y / 10) if self.log_y else point.low for point in known]
        ends = lows, [point.high for point in known]
        axes.vlines([point.x for point in known], *ends, color=colour, linewidth=1)
        return line


@dataclass(frozen=True)
class Intervals(Chart):
    """Values by name, (value, low, high), one below the other; `marks` are lines to read them against."""

    lines: Mapping[str, tuple[float, float, float]]
    log_x: bool = False
    marks: Sequence[float] = ()

    def draw(self) -> tuple[str, bytes]:
        from peftlab.comparison.report.style import COLOURS, drawing, plain, save

        with drawing(FRAME_INCHES + LINE_INCHES * len(self.lines)) as (figure, axes):
            for place, (value, low, high) in enumerate(self.lines.values()):
                if isfinite(low + high):
                    axes.hlines(-place, low, high, color=COLOURS[0], linewidth=2)
                axes.plot([value], [-place], marker="o", color=COLOURS[0], markersize=5)
            for mark in self.marks:
                axes.axvline(mark, color="#999999", linewidth=1, linestyle=":")
            axes.set_yticks([-place for place in range(len(self.lines))], [plain(name) for name in self.lines])
            axes.set_ylim(0.6 - len(self.lines), 0.6)
            if self.log_x:
                make_logarithmic(axes, "x")
            axes.set_xlabel(self.x_title)
            return save(figure, self.title)


def make_logarithmic(axes: Axes, which: str) -> None:
    """Make an axis logarithmic, with plain numbers at few places."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    decades = log10(high / low)
    labelled = next((multiples for most, multiples in LABELLED.items() if decades <= most), (1.0,))
    axis.set_major_locator(LogLocator(subs=labelled, numticks=7))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
