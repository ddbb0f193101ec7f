"""The first stages: data, plan and base model; then the method applied to it."""

from __future__ import annotations

from torch import nn

from peftlab.data.dataset import Dataset
from peftlab.data.notes import note_data
from peftlab.recipe.schema import Recipe
from peftlab.reports import ParameterReport
from peftlab.runs.bench import Bench, prepare, with_format
from peftlab.runs.classes import known_classes, note_other_classes
from peftlab.runs.identity import refuse_other_rows
from peftlab.runs.kept_plans import KeptPlan
from peftlab.runs.loading import fill_trained
from peftlab.runs.longest import note_cut_prompts
from peftlab.runs.prediction import open_run_planner, plan_run, replan_padded
from peftlab.runs.record import RunRecord
from peftlab.runs.reopen import save_held_out
from peftlab.runs.resumption import Resumption
from peftlab.runs.start import fill_start


def prepare_bench(record: RunRecord, start: Resumption | None = None) -> Bench:
    """Read the data, plan the run's memory on its own rows, load the base; add all to the record.

    A run that continues a former attempt keeps the order of its labels. Raises StorageError where it has other rows.
    """
    former = start.former if start else None

    def plan(dataset: Dataset) -> Recipe:
        if start and former is not None:
            refuse_other_rows(former.data, dataset.report, with_checkpoint=start.checkpoint is not None)
        record.continue_with(with_format(record.recipe, dataset.report["format"]))
        record.watch.planner = planner = open_run_planner(record.recipe, dataset, record.world)
        kept = KeptPlan(
            record.recipe, dataset, record.result.environment, device=str(planner.device), capability=planner.capability
        )
        record.split(plan_run(record.recipe, planner, record.result.memory, record.note, kept))
        return record.recipe

    known = tuple(former.data.get("labels") or ()) if former is not None else known_classes(record.recipe)
    bench = prepare(record.recipe, record.world, plan, known)
    record.watch.model = bench.base.model
    record.result.environment["types"] = bench.types.describe()
    record.result.data = bench.dataset.report
    if record.world.is_main:
        save_held_out(record.directory, record.recipe, bench.held_out)
    for line in bench.tokens.notes if bench.tokens else ():
        record.note(line)
    for line in note_data(record.recipe, bench.dataset.report, record.world.row_processes):
        record.note(line)
    if (other := note_other_classes(known, bench.dataset.labels, bench.base)) is not None:
        record.note(other)
    for line in note_cut_prompts(record.recipe, bench.dataset, bench.base.model):
        record.note(line)
    return bench


def apply_method(record: RunRecord, bench: Bench, resumed: bool = False) -> nn.Module:
    """Return the model with the recipe's method applied; add what trains to the record.

    It has the weights of `method.from`, unless the run is `resumed` from a checkpoint, which has later ones.
    """
    model, record.result.parameters, record.result.speed, record.result.checkpointing = bench.apply()
    record.watch.model = model
    if record.recipe.method.from_ is not None and not resumed:
        record.note(fill_start(record.recipe, model, bench.base.source))
    record.note(describe_parameters(record.recipe, record.result.parameters))
    for line in (*record.result.parameters.notes, record.result.speed.describe()):
        record.note(line)
    if record.watch.planner is not None and not record.result.speed.uses("packing"):
        recipe = replan_padded(record.recipe, record.watch.planner, record.result.memory, record.note)
        if recipe != record.recipe:
            record.continue_with(recipe)
            bench.recipe = recipe
            record.result.checkpointing = bench.recompute(model)
    return model


def restore_trained(record: RunRecord, bench: Bench, begun: nn.Module | None = None) -> nn.Module:
    """Return the model with the weights that an earlier attempt saved after its last step.

    `begun` is a model that has the method already.
    """
    record.note(f"training was finished; the saved weights of step {record.kept_step} are used")
    model = begun or fill_trained(record.recipe, bench.base, record.directory.weights, bench.device)
    if begun is not None:
        record.recipe.method.fill(begun, record.directory.weights)
    record.watch.model = model
    return model


def describe_parameters(recipe: Recipe, report: ParameterReport) -> str:
    """Return one line: what trains."""
    share = f"{report.trainable:,} of {report.total:,} parameters train ({report.fraction:.3%})"
    return f"{recipe.method.title}: {share}"
