"""All pictures of a report, each drawn on its own: one that fails takes nothing else with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from peftlab.comparison.findings import Findings
from peftlab.comparison.peft_bench import ACCURACIES, BenchResult
from peftlab.comparison.report.bars import draw_memory
from peftlab.comparison.report.curves import draw_learning_rates, draw_losses, draw_search
from peftlab.comparison.report.forests import draw_change, draw_differences, draw_quality
from peftlab.comparison.report.frontiers import AXES, axes_of, draw_frontier
from peftlab.comparison.report.imported import COSTS, draw_imported
from peftlab.comparison.report.scatters import COST_TITLES, draw_forgetting, draw_pareto
from peftlab.comparison.report.style import inline_svg
from peftlab.comparison.rows import Table

Drawn = tuple[str, bytes] | None


@dataclass(frozen=True)
class Picture:
    """One picture: SVG and PNG, and the SVG as the page embeds it."""

    name: str
    title: str
    caption: str
    vector: str
    pixels: bytes

    @property
    def standalone(self) -> str:
        """The SVG by itself, on white: its ink is dark."""
        return self.vector.replace("<svg ", '<svg style="background:#ffffff" ', 1)

    @property
    def inline(self) -> str:
        return inline_svg(self.vector, self.name, self.title)


@dataclass(frozen=True)
class Subject:
    """What a picture shows: its title, how to read it, and what draws it (None: there is nothing to draw)."""

    name: str
    title: str
    caption: str
    draw: Callable[[], Drawn]


BARS = (
    "Bars are 95 % intervals over {chance}. All variants share the rows, so the bars of two may overlap although they "
    "differ significantly."
)
CHANCE = {
    (True, True): "seeds and rows", (True, False): "rows alone: one seed was tried", (False, True): "seeds alone",
}  # fmt: skip
FRONT = "Faded: another variant is significantly better and costs no more. The dotted front is of the means alone."


def subjects_of(table: Table, findings: Findings, imported: Sequence[BenchResult] = ()) -> list[Subject]:
    """Return everything that a report draws, in the page's order; with what was imported from another comparison."""
    metric = table.metric

    def front(cost: str) -> Callable[[], Drawn]:
        return partial(draw_pareto, table, findings, cost)

    return [
        *frontiers_of(table, findings),
        Subject("quality", f"{metric.capitalize()} of every variant",
                _describe_bars(table, findings),                 partial(draw_quality, table, findings)),
        Subject("differences", "Difference to the best mean",
                "Paired by row, intervals corrected for the number of pairs. Filled where significant: away from 0.",
                partial(draw_differences, table, findings)),
        Subject("pareto_trainable", "Quality against trainable parameters", FRONT, front("trainable")),
        Subject("pareto_memory", "Quality against peak memory", FRONT, front("memory")),
        Subject("pareto_seconds", "Quality against time", FRONT, front("seconds")),
        Subject("change", "Before and after training", "The model before training, and the mean of the seeds after it.",
                partial(draw_change, table, findings)),
        Subject("forgetting", "Learned against forgotten",
                "Loss on general text that no variant trained on: above the line it rose. Bars are 95 % intervals.",
                partial(draw_forgetting, table, findings)),
        Subject("memory", "Memory, predicted and measured",
                "What tensors take at the peak of a step with the longest rows.", partial(draw_memory, table)),
        Subject("training_loss", "Training loss", "Means over the seeds.", partial(draw_losses, table, "train")),
        Subject("held_out_loss", "Held-out loss", "Means over the seeds.", partial(draw_losses, table, "evaluation")),
        Subject("search", "What the searches found", "Each step is a trial that was better than all before it. All "
                "trials count in the seconds.", partial(draw_search, table)),
        Subject("learning_rates", "Sensitivity to the learning rate",
                "It is chosen on the evaluation rows; the test rows only report.", partial(draw_learning_rates, table)),
        *(Subject(f"imported_{cost}", f"Imported results against {COST_TITLES[cost]}", _describe_imported(table),
                  partial(draw_imported, table, findings, imported, cost)) for cost in (COSTS if imported else ())),
    ]  # fmt: skip


def frontiers_of(table: Table, findings: Findings) -> list[Subject]:
    """Return a picture of each kind of budget under which variants were run in several sizes."""
    caption = "Each point is one size with its own tuning, at what it reached. Bands are 95 % intervals of the means."
    return [
        Subject(
            f"frontier_{kind}", f"{table.metric.capitalize()} over {AXES[kind][0]}", caption,
            partial(draw_frontier, table, findings, kind),
        )
        for kind in axes_of(table)
    ]  # fmt: skip


def _describe_imported(table: Table) -> str:
    """Return how to read imported points beside the comparison's own."""
    if table.metric in ACCURACIES:
        return "Grey: imported. Models, data and machines differ from this comparison's: compare within a colour."
    return f"Grey: imported. This comparison measured {table.metric} and has no accuracy to draw beside them."


def _describe_bars(table: Table, findings: Findings) -> str:
    """Return how to read the means: which chance the bars cover, what ticks and letters are."""
    quality = findings.quality.get(table.metric, {}).values()
    chance = CHANCE.get((any(found.of_rows for found in quality), any(found.of_seeds for found in quality)))
    bars = f"{BARS.format(chance=chance)} " if chance else ""
    return f"{bars}Ticks are single seeds; variants that share a letter are not significantly different."


def draw_all(
    table: Table, findings: Findings, problems: list[str], imported: Sequence[BenchResult] = ()
) -> list[Picture]:
    """Draw all that can be drawn; a picture that fails adds a line to `problems`."""
    pictures = []
    for subject in subjects_of(table, findings, imported):
        try:
            drawn = subject.draw()
            picture = Picture(subject.name, subject.title, subject.caption, *drawn) if drawn else None
            if picture and picture.inline:
                pictures.append(picture)
        except Exception as error:  # whatever a drawing library makes of strange numbers, the tables still stand
            problems.append(f"the picture {subject.title!r} could not be drawn: {type(error).__name__}: {error}")
    return pictures
