"""A run up to its first step: data, plan, weights, method, and the longest rows; it writes no files."""

from __future__ import annotations

from typing import Any

from peftlab.data.dataset import Dataset
from peftlab.data.notes import note_data
from peftlab.data.view import view_row
from peftlab.memory.probe import Probe, join_reports
from peftlab.memory.shortage import is_shortage
from peftlab.recipe.schema import Recipe
from peftlab.reports import DryRunReport
from peftlab.runs.bench import prepare, with_format
from peftlab.runs.display import open_display
from peftlab.runs.launch import launched
from peftlab.runs.longest import held_out
from peftlab.runs.prediction import open_run_planner, plan_run
from peftlab.runs.setup import build_setup
from peftlab.runs.shortage import explain_shortage
from peftlab.runs.watch import Watch
from peftlab.training.preflight import measure_longest
from peftlab.training.stop import Stop
from peftlab.world.open import open_world, refuse_missing_trackers, refuse_recipe
from peftlab.world.quiet import quiet_libraries


def dry_run(recipe: Recipe, *, rows: int = 3, display: Any = None) -> DryRunReport:
    """Return what a run would start with, after doing all that it does before its first step.

    `rows` of them are shown as the model gets them. Raises what the run would raise.
    """
    quiet_libraries()
    world = open_world(recipe.run.device, recipe.run.deterministic)
    refuse_recipe(world, recipe)
    refuse_missing_trackers(recipe.run.trackers)
    display = display or open_display(world.is_main)
    for line in world.notes:
        display.note(line)
    watch = Watch(recipe, world.device, memory={})

    def plan(dataset: Dataset) -> Recipe:
        known = with_format(recipe, dataset.report["format"])
        watch.planner = open_run_planner(known, dataset, world)
        watch.recipe = plan_run(known, watch.planner, watch.memory, display.note)
        return watch.recipe

    try:
        with launched(world):
            bench = prepare(recipe, world, plan)
            for line in note_data(recipe, bench.dataset.report, world.row_processes):
                display.note(line)
            applied = bench.apply()
            watch.model = applied.model
            display.note(applied.speed.describe())
            setup = build_setup(bench, watch.model, Stop())
            watch.probe, watch.optimizer = Probe(world.device), setup.optimizer
            measured = measure_longest(setup, watch.model, held_out(bench, watch.model), watch.probe)
    except Exception as error:
        if is_shortage(error):
            raise explain_shortage(error, watch) from error
        raise
    return DryRunReport(
        recipe=bench.recipe.model_dump(mode="json"),
        steps=setup.steps,
        data=bench.dataset.report,
        rows=[view_row(row, bench.tokenizer, bench.dataset.labels) for row in bench.dataset.train[:rows]],
        parameters=applied.parameters,
        memory=watch.memory | {"measured": join_reports([bench.load, measured])},
    )
