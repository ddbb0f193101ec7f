"""Pictures: the loss curve of a run, the memory of several."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.files import write_atomically
from peftlab.reports import MemoryReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can distinguish.
BLUE, ORANGE = "#0072B2", "#D55E00"
CURVES: dict[str, tuple[str, dict[str, Any]]] = {
    "train": ("training", {"color": BLUE, "linewidth": 1.5}),
    "evaluation": ("held out", {"color": ORANGE, "marker": "o", "linewidth": 1.5}),
}
CATEGORY_COLOURS = {
    "frozen_weights": "#999999",
    "quantisation_state": "#000000",
    "trainable_weights": "#0072B2",
    "gradients": "#56B4E9",
    "optimiser_state": "#009E73",
    "saved_activations": "#E69F00",
    "logits_and_loss": "#D55E00",
    "workspace": "#CC79A7",
}


def draw_losses(history: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draw training and held-out loss against the step; nothing is drawn for a run without losses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for event, (label, style) in CURVES.items():
        lines = [line for line in history if line["event"] == event]
        points = [(line["step"], line["loss"]) for line in lines if math.isfinite(line.get("loss") or math.nan)]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    if not axes.lines:
        return
    axes.set(xlabel="optimiser step", ylabel="loss (nats)")
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    write_picture(figure, path)


def write_picture(figure: Figure, path: Path) -> None:
    """Write a figure; a name in a script that the font lacks is drawn as boxes, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        content = io.BytesIO()
        figure.savefig(content, dpi=120, format="png")
    write_atomically(path, content.getvalue())


def draw_memory(rows: Sequence[tuple[str, dict[str, MemoryReport]]], path: Path) -> None:
    """Draw each run's categories at its peak as stacked bars, predicted (hatched) next to measured."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    bars = [
        (position + shift, memory[source], hatch)
        for position, (_, memory) in enumerate(rows)
        for source, shift, hatch in (("predicted", -0.2, "//"), ("measured", 0.2, None))
        if source in memory
    ]
    if not bars:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for place, report, hatch in bars:
        bottom = 0.0
        for name, colour in CATEGORY_COLOURS.items():
            height = report.categories.get(name, 0) / 2**20
            axes.bar(place, height, 0.36, bottom, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4)
            bottom += height
    axes.set(ylabel="MiB at the peak", title="Memory in tensors: predicted (hatched), measured (plain)")
    axes.set_xticks(range(len(rows)), [name for name, _ in rows], parse_math=False)
    axes.grid(axis="y", alpha=0.3)
    handles = [Patch(color=colour, label=name.replace("_", " ")) for name, colour in CATEGORY_COLOURS.items()]
    axes.legend(handles=handles[::-1], fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    write_picture(figure, path)
