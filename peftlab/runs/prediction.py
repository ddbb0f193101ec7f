"""The memory of a run, predicted from its own rows before weights are loaded, and whether the run may start."""

from __future__ import annotations

from collections.abc import Callable

from peftlab.data.dataset import Dataset
from peftlab.errors import OutOfMemoryError
from peftlab.memory.constants import cuda_constants
from peftlab.memory.fakes import UnpredictableError
from peftlab.memory.fit import CHECKPOINTING, fewest_recomputed, largest_split, remedies, with_settings
from peftlab.memory.private import explain_failure
from peftlab.quantities import format_bytes
from peftlab.recipe.checkpointing import AUTO
from peftlab.recipe.schema import Recipe
from peftlab.reports import MemoryReport
from peftlab.runs.kept_plans import KeptPlan
from peftlab.runs.planner import Planner
from peftlab.sizes import DEFAULT_CAPABILITY, parse_budget
from peftlab.world.base import World
from peftlab.world.hardware import cuda_capability

Note = Callable[[str], None]


def open_run_planner(recipe: Recipe, dataset: Dataset, world: World) -> Planner:
    """Return the planner of a run's own rows; all processes of a launch must call this together."""
    capability = cuda_capability(world.device) if world.device.type == "cuda" else DEFAULT_CAPABILITY
    return Planner(
        world.device,
        processes=world.processes,
        strategy=world.strategy if world.processes > 1 else "ddp",
        capability=capability,
        capacity_bytes=usable_bytes(recipe, world, capability),
        dataset=dataset,
    )


def plan_run(
    recipe: Recipe, planner: Planner, memory: dict[str, MemoryReport], note: Note, kept: KeptPlan | None = None
) -> Recipe:
    """Return the recipe to run, after adding its predicted memory to `memory` or noting why there is none.

    It differs from `recipe`, with a note, only where that makes it fit: where `training.fit` asks for smaller
    micro-batches, or `training.gradient_checkpointing` leaves the number of recomputed layers open. Raises
    OutOfMemoryError for a run that will not fit, unless `run.plan` is `report`. `kept` has the plan of an earlier run.
    """
    if recipe.run.plan == "off":
        return recipe
    try:
        memory["predicted"] = make_plan(recipe, planner, note, kept)
    except Exception as error:  # a model that cannot be traced may still train: a plan never ends a run
        reason = error.reason if isinstance(error, UnpredictableError) else explain_failure(error)
        unsplit = "; training.fit changes nothing" if recipe.training.fit else ""
        note(f"Memory cannot be predicted for this model ({reason}); training continues without a plan{unsplit}.")
        return recipe
    if memory["predicted"].fits is False:
        recipe = make_fit(recipe, planner, memory, note)
    if memory["predicted"].fits is False and recipe.run.plan == "refuse":
        refuse_too_large(recipe, memory["predicted"], planner)
    return recipe


def make_plan(recipe: Recipe, planner: Planner, note: Note, kept: KeptPlan | None) -> MemoryReport:
    """Return the plan that an earlier run made, with a note, else a new one, which is kept."""
    if kept is not None and (found := kept.find(planner.capacity_bytes)) is not None:
        note("the memory plan is that of an earlier run with the same model, method, settings and rows")
        return found
    report = planner(recipe)
    if kept is not None:
        kept.keep(report)
    return report


def replan_padded(recipe: Recipe, planner: Planner, memory: dict[str, MemoryReport], note: Note) -> Recipe:
    """Plan again, with a note, for padded rows, if the plan was for rows that lie end to end; return the recipe to run.

    It is for a model that declined that once its weights were there, and differs in recomputed layers only. Raises
    OutOfMemoryError as `plan_run` does.
    """
    former = memory.get("predicted")
    if former is None or not planner.workload(planner.blueprint(recipe)).packed:
        return recipe
    speed = recipe.training.speed.model_copy(update={"packing": "off"})
    padded = recipe.model_copy(update={"training": recipe.training.model_copy(update={"speed": speed})})
    report = memory["predicted"] = planner(padded)
    sizes = f"{format_bytes(report.needed_bytes)} instead of {format_bytes(former.needed_bytes)}"
    note(f"the plan was made again for padded rows: {sizes}")
    if report.fits is False and recipe.training.gradient_checkpointing == AUTO:
        padded = recompute_to_fit(padded, planner, memory, note)
    if memory["predicted"].fits is False and recipe.run.plan == "refuse":
        refuse_too_large(padded, memory["predicted"], planner)
    return with_settings(recipe, {CHECKPOINTING: padded.training.gradient_checkpointing})


def make_fit(recipe: Recipe, planner: Planner, memory: dict[str, MemoryReport], note: Note) -> Recipe:
    """Return the recipe with what it allows to make it fit; unchanged where that is not enough.

    Smaller micro-batches come first: they compute nothing again.
    """
    fit, auto = recipe.training.fit, recipe.training.gradient_checkpointing == AUTO
    split = split_to_fit(recipe, planner, memory, note) if fit else recipe
    if memory["predicted"].fits or not auto:
        return split
    found = recompute_to_fit(split, planner, memory, note)
    if memory["predicted"].fits or not fit or not recipe.method.supports_gradient_checkpointing:
        return found
    both = largest_split(with_settings(recipe, {CHECKPOINTING: True}), planner.usable_bytes, planner)
    if both is None:
        return recipe
    split = note_split(recipe, with_settings(recipe, both.settings), both.report, planner, memory, note)
    memory["predicted"] = planner(split)
    return recompute_to_fit(split, planner, memory, note)


def recompute_to_fit(recipe: Recipe, planner: Planner, memory: dict[str, MemoryReport], note: Note) -> Recipe:
    """Return the recipe with the fewest recomputed layers that fit, with a note; unchanged if not even all do."""
    layers = planner.blueprint(recipe).layers
    change = fewest_recomputed(recipe, memory["predicted"], planner.usable_bytes, planner, layers)
    if change is None or change.report.checkpointing is None:
        return recipe
    memory["predicted"] = change.report
    sizes = f"{format_bytes(change.report.needed_bytes)} of {format_bytes(planner.usable_bytes)}"
    note(f"{CHECKPOINTING}: {change.report.checkpointing.describe()}: that needs {sizes}")
    return with_settings(recipe, change.settings)


def split_to_fit(recipe: Recipe, planner: Planner, memory: dict[str, MemoryReport], note: Note) -> Recipe:
    """Return the recipe with micro-batches that fit and the same rows in a step, with a note; unchanged if none fit."""
    change = largest_split(recipe, planner.usable_bytes, planner)
    if change is None:
        return recipe
    return note_split(recipe, with_settings(recipe, change.settings), change.report, planner, memory, note)


def note_split(
    recipe: Recipe, split: Recipe, report: MemoryReport, planner: Planner, memory: dict[str, MemoryReport], note: Note
) -> Recipe:
    """Return the recipe with its steps split, after noting how and keeping its plan."""
    memory["predicted"] = report
    used, asked = (
        f"{one.training.gradient_accumulation} micro-batches of {one.training.batch_size} rows"
        for one in (split, recipe)
    )
    sizes = f"{format_bytes(report.needed_bytes)} of {format_bytes(planner.usable_bytes)}"
    note(f"training.fit: {used} a step instead of {asked}: that needs {sizes}")
    return split


def usable_bytes(recipe: Recipe, world: World, capability: tuple[int, int] = DEFAULT_CAPABILITY) -> int:
    """Return the memory that each process may use: the least of all, so that all make the same plan.

    On CUDA with the context, which exists by now and is no longer free: a plan counts it, as it must for a GPU by name.
    """
    context = cuda_constants(capability).context if world.device.type == "cuda" else 0
    least = min(world.gather([world.free_bytes() + context]))
    return least if recipe.run.memory is None else min(least, parse_budget(recipe.run.memory).bytes)


def refuse_too_large(recipe: Recipe, report: MemoryReport, planner: Planner) -> None:
    """Raise OutOfMemoryError with the changes that would fit."""
    capacity = planner.usable_bytes
    changes = remedies(recipe, capacity, planner)
    report.remedies = [change.describe() for change in changes]
    ways = f"these fit: {'; '.join(report.remedies)}" if changes else "no smaller batch, length or method would fit"
    left = [note for note in report.notes if note.startswith("method: ")]
    raise OutOfMemoryError(
        f"this run needs {format_bytes(report.needed_bytes)}, but {format_bytes(capacity)} is available; "
        f"{'; '.join([ways, *left])}; run.plan=report starts it anyway"
    )
