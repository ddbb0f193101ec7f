"""How pictures look: colours and markers for every reader's eyes, one width for phones, SVG that follows the page."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from peftlab.comparison.rows import Row
from peftlab.quantities import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES = 4.3  # of every picture: its 10-point text is 10 pixels high on the narrowest phone
NAME_CHARACTERS, COLUMN_CHARACTERS = 22, 20
LEGEND_ROW_INCHES = 0.19
INK, FAINT, PAPER = "#1b1f24", "#c3c9d0", "#fefefe"

# Okabe and Ito's colours (yellow is too pale on white), and markers, so that colour alone carries nothing.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a7a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
FILLS = ("full", "none", "left", "top")
DASHES = ("-", "--", ":", "-.")

# Names by which the page sets the colours, so that one picture suits a light page and a dark one.
PAGE_COLOURS = {INK: "ink", FAINT: "faint", PAPER: "paper", "#000000": "solid", "#999999": "grey"} | {
    colour: name
    for colour, name in zip(COLOURS, ("blue", "red", "green", "pink", "orange", "sky", "stone"), strict=True)
}
SVG = "http://www.w3.org/2000/svg"
XLINK = "{http://www.w3.org/1999/xlink}href"

SETTINGS: dict[Any, Any] = {
    "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "legend.fontsize": 9, "svg.fonttype": "none", "svg.hashsalt": "peftlab", "text.parse_math": False,
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "grid.color": FAINT,
    "grid.linewidth": 0.6, "axes.grid": True, "axes.axisbelow": True, "legend.frameon": False, "hatch.linewidth": 0.8,
    "axes.unicode_minus": True, "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    """How one variant is drawn: colour and marker are its name's, fill and dashes its budget's."""

    colour: str
    marker: str
    fill: str
    dash: str


def line_of(look: Look) -> dict[str, Any]:
    """Return the keywords that draw one variant's curve, with its markers."""
    return {
        "color": look.colour, "linestyle": look.dash, "linewidth": 1.5, "marker": look.marker, "fillstyle": look.fill,
        "markersize": 4,
    }  # fmt: skip


def looks_of(rows: Sequence[Row]) -> dict[str, Look]:
    """Return the look of every row by its label."""
    names = list(dict.fromkeys(row.name for row in rows))
    budgets = list(dict.fromkeys(row.budget for row in rows))
    looks = {}
    for row in rows:
        name, budget = names.index(row.name), budgets.index(row.budget)
        looks[row.label] = Look(
            COLOURS[name % len(COLOURS)],
            MARKERS[name % len(MARKERS)],
            FILLS[budget % len(FILLS)],
            DASHES[budget % len(DASHES)],
        )
    return looks


def plain(text: str) -> str:
    """Return a name that a picture can show: one line, not too long, nothing unprintable, not hidden from legends."""
    shown = "".join(" " if character.isspace() else character for character in text)
    shown = "".join(character for character in shown if unicodedata.category(character)[0] != "C").strip()
    shown = shown if len(shown) <= NAME_CHARACTERS else f"{shown[: NAME_CHARACTERS - 1]}…"
    return f" {shown}" if shown.startswith("_") else shown or "unnamed"


@contextmanager
def drawing(height_inches: float) -> Iterator[tuple[Figure, Axes]]:
    """Give a figure with one pair of axes in peftlab's style."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")  # the reader's own fonts may have it
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        yield figure, figure.add_subplot()


def legend_below(figure: Figure, handles: Sequence[Any]) -> None:
    """Put a legend under the axes, where it covers nothing; the figure grows by its height."""
    columns = 1 if any(len(handle.get_label()) > COLUMN_CHARACTERS for handle in handles) else 2
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW_INCHES * -(-len(handles) // columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=1.6, columnspacing=1.2)


def save(figure: Figure, name: str) -> tuple[str, bytes]:
    """Return a figure as SVG, without a background, and as PNG on white."""
    vector, pixels = io.StringIO(), io.BytesIO()
    figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None, "Title": name})
    figure.set_layout_engine("none")  # it is laid out now
    figure.savefig(pixels, format="png", dpi=200, facecolor="white")
    return vector.getvalue(), pixels.getvalue()


def inline_svg(vector: str, name: str, description: str) -> str:
    """Return an SVG for the inside of a page: its ids its own, its colours the page's, its size the column's."""
    ElementTree.register_namespace("", SVG)
    root = ElementTree.fromstring(vector)
    for parent in root.iter():
        for child in [child for child in parent if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}title")]:
            parent.remove(child)
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == XLINK:
                element.attrib.pop(key)
                element.set("href", value.replace("#", f"#{name}-"))
            else:
                element.set(key, _page_colours(value.replace("url(#", f"url(#{name}-")))
        if element.tag == f"{{{SVG}}}style":
            element.text = ""
    root.attrib.pop("width")
    root.attrib.pop("height")
    root.attrib |= {"role": "img", "aria-label": description}
    return ElementTree.tostring(root, encoding="unicode")


def _page_colours(style: str) -> str:
    return re.sub(
        r"#[0-9a-f]{6}\b",
        lambda found: f"var(--{PAGE_COLOURS[found[0]]})" if found[0] in PAGE_COLOURS else found[0],
        style,
    )


def scale_to_fit(axes: Axes, low: float, high: float) -> None:
    """Make the x-axis logarithmic where costs differ more than tenfold; label it with few short numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if low > 0 and high / low > 10:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))


def label_learning_rates(axes: Axes, rates: Sequence[float]) -> None:
    """Make the x-axis logarithmic, with a label at every learning rate that leaves room for the next."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axes.set_xscale("log")
    room = (max(rates) / min(rates)) ** (1 / 6)
    shown: list[float] = []
    for rate in sorted(set(rates)):
        if not shown or rate >= shown[-1] * room * 0.999:
            shown.append(rate)
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{rate:.2g}" for rate in shown]))
    axes.xaxis.set_minor_locator(NullLocator())


def write_heading(axes: Axes, row: float, budget: str | None) -> None:
    """Write a budget above the rows of its variants."""
    axes.text(
        0.01, row, plain(budget or "no budget"), transform=axes.get_yaxis_transform(), va="center", ha="left",
        fontsize=9, fontweight="bold", zorder=5, bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1},
    )  # fmt: skip
