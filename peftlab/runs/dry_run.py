"""A run up to its first step: data, plan, weights, method, and the longest rows; it leaves nothing behind."""

from __future__ import annotations

from typing import Any

from peftlab.data.dataset import Dataset
from peftlab.data.view import view_row
from peftlab.device import quiet_libraries
from peftlab.memory.probe import Probe, join_reports
from peftlab.recipe.schema import Recipe
from peftlab.reports import DryRunReport, MemoryReport
from peftlab.runs.accelerator import open_accelerator
from peftlab.runs.bench import prepare
from peftlab.runs.display import open_display
from peftlab.runs.longest import held_out
from peftlab.runs.prediction import foresee, open_forecast
from peftlab.runs.setup import build_setup
from peftlab.training.preflight import measure_longest
from peftlab.training.stop import Stop


def dry_run(recipe: Recipe, *, rows: int = 3, display: Any = None) -> DryRunReport:
    """Do all that a run does before its first step and return what it would start with.

    `rows` are shown as the model will see them. Raises what the run would raise.
    """
    quiet_libraries()
    accelerator = open_accelerator(recipe)
    display = display or open_display(accelerator.is_main_process)
    memory: dict[str, MemoryReport] = {}

    def look_ahead(dataset: Dataset) -> Recipe:
        return foresee(recipe, open_forecast(recipe, dataset, accelerator), memory, display.note)

    bench = prepare(recipe, accelerator, look_ahead)
    model, parameters = bench.apply()
    setup = build_setup(bench, model, Stop())
    measured = measure_longest(setup, model, held_out(bench, model), Probe(accelerator.device))
    memory["measured"] = join_reports([bench.load, measured])
    shown = bench.dataset.train[:rows]
    return DryRunReport(
        recipe=bench.recipe.model_dump(mode="json"),
        steps=setup.steps,
        data=bench.dataset.report,
        rows=[view_row(row, bench.tokenizer, bench.dataset.labels) for row in shown],
        parameters=parameters,
        memory=memory,
    )
