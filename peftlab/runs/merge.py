"""A run's result as one plain model, which is compared with the trained one before it is kept."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from peftlab.errors import StorageError, UsageError, listed
from peftlab.evaluation.agreement import Outputs, compare_outputs, rms
from peftlab.files import sync_files, write_atomically
from peftlab.methods import Method
from peftlab.methods.storage import read_manifest
from peftlab.models.config import auto_class
from peftlab.models.load import load_model, load_saved_tokenizer
from peftlab.parameters.trainable import is_quantized, named_parameters
from peftlab.recipe.schema import Recipe
from peftlab.reports import AgreementReport, MergeReport
from peftlab.runs.bench import Bench, prepare
from peftlab.runs.card import write_card
from peftlab.runs.directory import RunDirectory
from peftlab.runs.launch import launched
from peftlab.runs.loading import fill_trained
from peftlab.runs.merge_shards import Shards, open_shards
from peftlab.runs.observer import Observer
from peftlab.runs.reopen import reopen_bench
from peftlab.runs.save import save_tokenizer
from peftlab.runs.use import open_run
from peftlab.tasks.base import Task
from peftlab.world.base import World
from peftlab.world.dtypes import resolve_types
from peftlab.world.open import open_world
from peftlab.world.quiet import quiet_libraries

RECORD = "merge.json"
GENERATION = "generation_config.json"
ROWS = 64
# The commands of servers of language models that take a folder of transformers, which is their argument.
SERVERS = {"vLLM": "vllm serve", "transformers": "transformers serve"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The largest difference that passes, as a part of what training changed: rounding to the type takes less.
TOLERANCES = {torch.float32: 0.01, torch.float16: 0.03, torch.bfloat16: 0.1}
# Below this many units of rounding of the logits, a difference is none, however little training changed.
ROUNDINGS = 2


def merge(
    folder: Path,
    out: Path,
    *,
    base: str = "auto",
    dtype: str = "auto",
    rows: int = ROWS,
    tolerance: float | None = None,
    overwrite: bool = False,
    verify: bool = True,
) -> MergeReport:
    """Write a run's trained model to `out` as a plain transformers folder, and return what it is.

    `base` says which weights a run with a quantised base gets its updates added to: `dequantised` (those that were
    trained on), `original` (the checkpoint's) or `auto`, the one that is nearer to the trained model. The folder is
    loaded again by transformers alone and compared with the trained model on the run's first `rows` held-out rows (0:
    not compared). Raises StorageError, and leaves nothing, where the difference is above `tolerance`, a part of
    what training changed (None: by the type), or where a tensor of the run is lost.
    """
    _refuse_output(out, folder, overwrite)
    options = {"base": base, "dtype": dtype, "rows": rows, "tolerance": tolerance, "verify": verify}
    with merged_beside(folder, out, **options) as merged:  # type: ignore[arg-type]  # each option has its own type
        serve = _serve_commands(merged.work.recipe.task, out)
        report = merged.report.model_copy(update={"folder": str(out), "serve": serve})
        write_atomically(merged.folder / RECORD, report.model_dump_json(indent=2) + "\n")
        write_card(
            merged.folder,
            merged.work.recipe,
            merged.directory.read_result(),
            loads="plain",
            agreement=report.agreements.get(report.base),
            place=out.name,
        )
        put_in_place(merged.folder, out)
    return report


def _serve_commands(task: Task, folder: Path) -> dict[str, str]:
    """Return the command of each server that takes a merged folder; none takes a task that continues no text."""
    if not task.generates or task.encodes_prompt:
        return {}
    return {name: f"{command} {shlex.quote(str(folder))}" for name, command in SERVERS.items()}


@contextmanager
def merged_beside(
    folder: Path,
    out: Path,
    *,
    base: str = "auto",
    dtype: str = "auto",
    rows: int = ROWS,
    tolerance: float | None = None,
    verify: bool = True,
) -> Iterator[Merged]:
    """Yield a run's trained model, merged and compared, in a temporary folder beside `out`; the options of `merge`."""
    quiet_libraries()
    directory, recipe = open_run(folder, (), verify)
    recipe.method.refuse_merge()
    bases = _list_bases(recipe.method, base, compared=rows > 0)
    world = open_world(recipe.run.device)
    labels = read_manifest(directory.weights, recipe.method, None).context.get("labels")
    work = _Merging(
        recipe,
        directory.weights,
        DTYPES.get(dtype) or resolve_types(recipe.model.dtype, recipe.training.precision, world.device).weights,
        {name: open_shards(recipe, directory.weights, name, labels) for name in bases},
    )
    with launched(world), temporary_folder(out) as temporary:
        if rows or not all(work.shards.values()):
            work.load(open_bench(directory, recipe, world, rows), rows)
        report = work.write_best(bases, temporary, tolerance)
        yield Merged(directory, temporary, report.model_copy(update={"run": str(folder)}), work)


@dataclass(frozen=True)
class Merged:
    """A merged model in a temporary folder, which its maker moves or leaves to be removed."""

    directory: RunDirectory
    folder: Path
    report: MergeReport
    work: _Merging

    def compare(self, model: nn.Module) -> AgreementReport | None:
        """Return how far another model is from the trained one on the same rows; None where there are none."""
        return self.work.compare(model)


def put_in_place(temporary: Path, out: Path) -> None:
    """Move a finished temporary folder to `out`, and replace what is there."""
    sync_files(temporary)
    if out.exists():
        shutil.rmtree(out)
    temporary.rename(out)


def open_bench(directory: RunDirectory, recipe: Recipe, world: World, rows: int) -> Bench:
    """Return the run's bench, with the rows that it kept."""
    bench = reopen_bench(directory, recipe, world)
    if rows and not (bench.dataset.train or bench.dataset.evaluation or bench.dataset.test):
        return prepare(recipe, world)  # a run of an earlier version keeps no rows
    return bench


def _list_bases(method: Method, base: str, *, compared: bool) -> list[str]:
    """Return the bases to try: one, but for a quantised base of which the better is to be found."""
    if method.base_format == "plain":
        if base not in ("auto", "original"):
            raise UsageError(f"--base {base}: {method.title} was trained on plain weights; remove this option")
        return ["original"]
    if base != "auto":
        return [base]
    return ["dequantised", "original"] if compared else ["dequantised"]


def _refuse_output(out: Path, run: Path, overwrite: bool) -> None:
    refuse_output(out, run, overwrite, RECORD, "a merged model")


def refuse_output(out: Path, run: Path, overwrite: bool, record: str, what: str) -> None:
    """Raise UsageError for a folder that may not be written: only `what` has a file called `record`."""
    if out.resolve() == run.resolve() or run.resolve() in out.resolve().parents:
        raise UsageError(f"{out} is inside the run; choose another folder")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out} is not a folder; choose another one")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / record).is_file():
        raise UsageError(f"{out} contains files that are not {what} of peftlab; choose another folder")
    if not overwrite:
        raise UsageError(f"{out} already contains {what}; --overwrite replaces it")


@contextmanager
def temporary_folder(out: Path) -> Iterator[Path]:
    """Yield a folder beside `out`, which is removed unless it was renamed."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        temporary.chmod(0o755)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written: {error.strerror or error}") from None
    try:
        yield temporary
    except OSError as error:
        raise StorageError(f"{out}: cannot be written: {error.strerror or error}; free some space") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass
class _Merging:
    """A run's merging, by shards where that is possible.

    The bench and the outputs of base and trained model are there where models are built.
    """

    recipe: Recipe
    weights: Path
    dtype: torch.dtype
    shards: dict[str, Shards | None]
    bench: Bench | None = None
    observer: Observer | None = None
    model: nn.Module | None = None
    base: Outputs | None = None
    trained: Outputs | None = None

    def load(self, bench: Bench, rows: int) -> None:
        """Build the trained model, and observe base and trained model on `rows` rows."""
        self.bench, self.observer = bench, Observer(bench, rows, bench.precision) if rows else None
        self.base = self.observer.observe(bench.base.model) if self.observer else None
        self.model = fill_trained(self.recipe, bench.base, self.weights, bench.device)
        self.trained = self.observer.observe(self.model) if self.observer else None

    def compare(self, model: nn.Module) -> AgreementReport | None:
        """Return how far another model is from the trained one on the same rows; None where there are none."""
        if self.observer is None or self.trained is None:
            return None
        return compare_outputs(self.trained, self.observer.observe(model))

    def write_best(self, bases: Sequence[str], folder: Path, tolerance: float | None) -> MergeReport:
        """Write the merged model whose outputs are nearest to the trained one's, checked against its limit."""
        agreements: dict[str, AgreementReport] = {}
        tensors: dict[str, dict[str, int]] = {}
        for base in bases:
            tensors[base] = self._write(base, folder / base)
            if self.trained and (found := self.compare(self._read(folder / base))):
                agreements[base] = found
        best = min(agreements, key=lambda name: agreements[name].rms) if agreements else bases[0]
        effect, limit = self._limit(tolerance)
        if limit is not None and not agreements[best].rms <= limit:
            raise StorageError(_refusal(agreements[best], effect, limit, self.dtype))
        for base in bases:
            if base == best:
                for file in (folder / base).iterdir():
                    file.rename(folder / file.name)
            shutil.rmtree(folder / base)
        return MergeReport(
            run="",
            folder="",
            dtype=_name(self.dtype),
            base=best,
            tensors=tensors[best],
            part=self.observer.part if self.observer else None,
            effect=effect,
            limit=limit,
            agreements=agreements,
        )

    def _limit(self, tolerance: float | None) -> tuple[float | None, float | None]:
        """Return what training changed, and the largest difference that passes, both of logits (rms)."""
        if self.trained is None or self.base is None:
            return None, None
        effect = rms(self.trained.logits - self.base.logits)
        rounding = torch.finfo(self.dtype).eps * rms(self.trained.logits)
        share = TOLERANCES[self.dtype] if tolerance is None else tolerance
        return effect, max(share * effect, ROUNDINGS * rounding if tolerance is None else 0.0)

    def _write(self, base: str, folder: Path) -> dict[str, int]:
        """Write one merged model and return how many of its tensors were merged, trained, copied or unpacked."""
        folder.mkdir()
        shards = self.shards[base]
        counts = self._write_whole(base, folder) if shards is None else shards.write(folder, self.dtype)
        save_tokenizer(load_saved_tokenizer(self.weights, self.recipe.model), folder)
        if (ends := self.weights / GENERATION).is_file():
            shutil.copy(ends, folder / GENERATION)
        return counts

    def _write_whole(self, base: str, folder: Path) -> dict[str, int]:
        assert self.bench is not None and self.model is not None, "a model that is not merged by shards is built"
        method, plain = self.recipe.method, None
        if base == "original" and method.base_format != "plain":
            section, labels = self.recipe.model, self.bench.dataset.labels
            plain = load_model(section, device=self.bench.device, labels=labels).model
        merged = cast(PreTrainedModel, method.merge(self.model, plain))
        counts = _account(self.model, merged, method)
        # A run that recomputed activations has the cache off, which no use of the result should inherit.
        merged.config.use_cache = True
        _cast(merged, self.dtype).save_pretrained(folder)
        return counts

    def _read(self, folder: Path) -> nn.Module:
        """Return the folder's model as transformers alone reads it. Raises StorageError where tensors do not fit."""
        loaded: Any = auto_class(self.recipe.task).from_pretrained(
            folder, dtype=self.dtype, local_files_only=True, output_loading_info=True
        )
        model, found = loaded
        wrong = sorted({*found["missing_keys"], *found["unexpected_keys"], *map(str, found["mismatched_keys"])})
        if wrong:
            raise StorageError(
                f"the merged folder is not a plain {type(model).__name__}: {listed(wrong[:3])} would be lost; use the "
                "run's folder `weights` with peftlab"
            )
        assert self.bench is not None, "a folder is read to be observed"
        return model.to(self.bench.device)


def _refusal(found: AgreementReport, effect: float | None, limit: float, dtype: torch.dtype) -> str:
    return (
        f"the merged model is not the trained one: its logits differ by {found.rms:.3g} (rms), more than {limit:.3g}; "
        f"training changed them by {effect:.3g}. Nothing was written. Try --dtype float32 (here {_name(dtype)}), or "
        "allow more with --tolerance, a part of what training changed"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _account(trained: nn.Module, merged: nn.Module, method: Method) -> dict[str, int]:
    """Return how many tensors of `merged` became what. Raises StorageError if a tensor of the run is lost."""
    before, after = named_parameters(trained), named_parameters(merged)
    updated = method.updated_weights(before)
    kinds = {name: _kind(before.get(name), tensor, name in updated) for name, tensor in after.items()}
    lost = {name for name in before if before[name].requires_grad and not method.merges_away(name)} - kinds.keys()
    lost |= {name for name in updated if kinds.get(name) != "merged"}
    if lost:
        raise StorageError(f"merging lost what was trained of {listed(sorted(lost)[:3])}; nothing was written")
    return {kind: list(kinds.values()).count(kind) for kind in dict.fromkeys(kinds.values())}


def _kind(before: nn.Parameter | None, after: nn.Parameter, updated: bool) -> str:
    if before is None:
        return "added"
    if before.requires_grad:
        return "trained"
    if is_quantized(before):
        return "merged" if updated else "unpacked"
    return "copied" if torch.equal(before, after) else "merged"


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    model.to(dtype)  # type: ignore[arg-type]  # transformers wraps `to` so that mypy takes `dtype` for `self`
    model.config.dtype = dtype
    return model
