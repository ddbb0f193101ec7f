"""A run's result as one plain model, which is compared with the trained one before it is kept."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from peftlab.errors import MethodError, ModelError, UsageError
from peftlab.files import write_atomically
from peftlab.methods.storage import read_manifest
from peftlab.models.load import identify_base
from peftlab.recipe.schema import Recipe
from peftlab.reports import MemoryReport, MergeReport
from peftlab.runs.card import CARD_PARTS, write_card
from peftlab.runs.directory import RunDirectory
from peftlab.runs.gate import ROWS, Gate, open_bench
from peftlab.runs.launch import launched
from peftlab.runs.loading import read_shape
from peftlab.runs.merge_bases import Merging, list_bases
from peftlab.runs.merge_memory import MergeMeter, predict_merge
from peftlab.runs.merge_quantize import quantize_merged
from peftlab.runs.merge_shards import open_shards
from peftlab.runs.output_folder import put_in_place, refuse_output, temporary_folder
from peftlab.runs.use import open_run
from peftlab.tasks.base import Task
from peftlab.world.dtypes import resolve_types
from peftlab.world.open import open_world
from peftlab.world.quiet import quiet_libraries

RECORD = "merge.json"
# The commands of servers of language models that take a folder of transformers, which is their argument.
SERVERS = {"vLLM": "vllm serve", "transformers": "transformers serve"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class MergeOptions:
    """How a run is merged and compared; the same for every form in which the result is written.

    `base` says which weights a run with a quantised base gets its updates added to: `dequantised` (those that were
    trained on), `original` (the checkpoint's) or `auto`, the one that is nearer to the trained model. `dtype` is
    the type of the weights; `auto` is the base's, or the format's own. `rows` are the held-out rows on which the
    result is compared (0: not compared), `tolerance` the part of what training changed that may differ (None: by
    the type). `verify` compares the run's files with its digests first; `overwrite` replaces an earlier result.
    `quantize` (nf4, int8) quantises a merged folder again; exports have formats of their own. `overrides` are
    KEY=VALUE changes of the run's recipe, such as another place of its base or of its held-out rows. `announce` is
    called with the memory that a merge is expected to take, before it loads anything.
    """

    base: str = "auto"
    dtype: str = "auto"
    rows: int = ROWS
    tolerance: float | None = None
    verify: bool = True
    overwrite: bool = False
    quantize: str | None = None
    overrides: tuple[str, ...] = ()
    announce: Callable[[MemoryReport], None] = lambda planned: None


DEFAULTS = MergeOptions()


def merge(folder: Path, out: Path, options: MergeOptions = DEFAULTS) -> MergeReport:
    """Write a run's trained model to `out` as a plain transformers folder, and return what it is.

    The folder is loaded again by transformers alone and compared with the trained model. Raises StorageError, and
    leaves nothing, where the difference is too large, or where a tensor of the run is lost.
    """
    refuse_output(out, folder, options.overwrite, RECORD, "a merged model")
    # The tolerance is that of the result: a plain merge before it has its own.
    plain = options if options.quantize is None else replace(options, tolerance=None)
    with merged_beside(folder, out, plain) as merged:
        report = merged.report
        if options.quantize is not None:
            values = quantize_merged(merged.folder, merged.work, options.quantize, options.tolerance)
            report = report.model_copy(update=values)
        serve = _serve_commands(merged.work.recipe.task, out)
        report = report.model_copy(update={"folder": str(out), "serve": serve})
        write_atomically(merged.folder / RECORD, report.model_dump_json(indent=2) + "\n")
        write_card(
            merged.folder,
            merged.work.recipe,
            merged.directory,
            loads="plain",
            agreement=report.quantized or report.agreements.get(report.base),
            place=out.name,
        )
        put_in_place(merged.folder, out)
    return report


def _serve_commands(task: Task, folder: Path) -> dict[str, str]:
    """Return the command of each server that takes a merged folder; none takes a task that continues no text."""
    if not task.generates or task.encodes_prompt:
        return {}
    return {name: f"{command} {shlex.quote(str(folder))}" for name, command in SERVERS.items()}


@dataclass(frozen=True)
class Merged:
    """A merged model in a temporary folder, which its maker moves or leaves to be removed."""

    directory: RunDirectory
    folder: Path
    report: MergeReport
    work: Merging

    @property
    def gate(self) -> Gate | None:
        """What other forms of the model are compared with; None where nothing is compared."""
        return self.work.gate


def _refuse_added(recipe: Recipe, labels: Sequence[str] | None) -> None:
    """Raise MethodError where a method added parameters for which the plain model's class has no place."""
    method = recipe.method
    sites = method.added_parameters(read_shape(recipe, list(labels) if labels else None))
    if left := [site.name for site in sites if not method.merges_away(site.name)]:
        raise MethodError(
            f"{method.title} cannot be merged here: a plain model has no {left[0]} ({len(left)} such parameters were "
            "added); use the run's folder `weights` with peftlab"
        )


@contextmanager
def merged_beside(folder: Path, out: Path, options: MergeOptions = DEFAULTS) -> Iterator[Merged]:
    """Yield a run's trained model, merged and compared, in a temporary folder beside `out`."""
    quiet_libraries()
    if options.dtype not in ("auto", *DTYPES):
        raise UsageError(f"--dtype {options.dtype}: there are auto, {', '.join(DTYPES)}")
    directory, recipe = open_run(folder, options.overrides, options.verify, CARD_PARTS)
    recipe.method.refuse_merge()
    if recipe.model.trust_remote_code:
        raise ModelError(
            f"{recipe.model.name} ships code of its own, which no merged folder has; use the run's folder `weights` "
            "with peftlab"
        )
    bases = list_bases(recipe.method, options.base, compared=options.rows > 0)
    world = open_world(recipe.run.device)
    types = resolve_types(recipe.model.dtype, recipe.training.precision, world.device)
    context = {"base_model": identify_base(recipe.model)}  # shards are merged without loading the trained model
    labels = read_manifest(directory.weights, recipe.method, context).context.get("labels")
    _refuse_added(recipe, labels)
    shards = {name: open_shards(recipe, directory.weights, name, labels) for name in bases}
    dtype = DTYPES.get(options.dtype, types.weights)
    planned = predict_merge(recipe, directory.read_result(), shards, dtype, options.rows)
    if planned is not None:
        options.announce(planned)
    meter = MergeMeter(held=sum(one.stored_bytes for one in shards.values() if one is not None))
    work = Merging(recipe, directory.weights, dtype, shards, meter)
    with launched(world), temporary_folder(out) as temporary:
        if options.rows or not all(shards.values()):
            with meter.phase("load"):
                work.load(open_bench(directory, recipe, world, options.rows), options.rows)
        report = work.write_best(temporary, options.tolerance)
        memory = {"measured": meter.report()} | ({} if planned is None else {"predicted": planned})
        yield Merged(directory, temporary, report.model_copy(update={"run": str(folder), "memory": memory}), work)
