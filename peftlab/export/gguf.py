"""GGUF: the merged model as one file that is read back and compared, or the LoRA alone as an adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig

from peftlab.errors import MethodError, ModelError, StorageError, UsageError
from peftlab.export.converter import convert, find_converter
from peftlab.export.gguf_families import as_read, find_family, refuse_uncomputable
from peftlab.export.gguf_model import TYPES, need_gguf, other_sizes, write_adapter, write_model
from peftlab.export.job import Job
from peftlab.export.weights import read_gguf
from peftlab.methods.storage import read_tensors
from peftlab.models.reference import resolve
from peftlab.reports import ExportReport
from peftlab.runs.directory import RunDirectory
from peftlab.runs.gate import TOLERANCES, Gate
from peftlab.runs.merge import merged_beside
from peftlab.runs.requests import takes_chats

DEFAULT = "float16"


def export_model(job: Job) -> ExportReport:
    """Merge the run, write the result as `NAME-TYPE.gguf`, and compare what transformers reads of it."""
    need_gguf()
    dtype = DEFAULT if job.options.dtype == "auto" else job.options.dtype
    if dtype not in TYPES:
        raise UsageError(f"--dtype {dtype}: GGUF has {', '.join(TYPES)} here")
    _refuse_other_task(job, "gguf")
    refuse_uncomputable(config := _base_config(job))
    if find_converter() is None:
        find_family(config)
    file = f"{job.name}-{dtype}.gguf"
    with merged_beside(job.run, job.out / "merged", replace(job.options, dtype="float32", tolerance=None)) as merged:
        counts, notes = _write(merged.folder, job.out / file, dtype, job)
        config = AutoConfig.from_pretrained(merged.folder, local_files_only=True)
        if wrong := other_sizes(job.out / file, config):
            raise StorageError(f"{file}: read back, {', '.join(wrong)} differ from the model's; nothing was written")
        report = ExportReport(run=str(job.run), folder="", to="gguf", dtype=dtype, tensors=counts, notes=notes)
        if merged.gate is None:
            return report
        model = read_gguf(job.out / file, as_read(config), job.recipe.task)
        return report.model_copy(update=_compare(merged.gate, model, dtype, job.options.tolerance))


def _refuse_other_task(job: Job, to: str) -> None:
    """Raise ModelError where the task is not that of a causal language model."""
    if job.recipe.model.task != "causal-lm":
        raise ModelError(
            f"--to {to}: llama.cpp serves language models, not {job.recipe.task.name}; use `peftlab merge`"
        )


def _write(folder: Path, path: Path, dtype: str, job: Job) -> tuple[dict[str, int], list[str]]:
    """Write a folder as GGUF, by llama.cpp's converter where that is needed and here; return its tensors and notes."""
    program = find_converter()
    try:
        return write_model(folder, path, dtype, job.name, chats=takes_chats(job.recipe))
    except ModelError:
        if program is None:
            raise
    path.unlink(missing_ok=True)
    return convert(program, folder, path, dtype), [f"written by llama.cpp's converter, {program}"]


def _base_config(job: Job) -> Any:
    reference = resolve(job.recipe.model.name, job.recipe.model.revision)
    return AutoConfig.from_pretrained(reference.source, **reference.arguments)


def _compare(gate: Gate, model: nn.Module, dtype: str, tolerance: float | None) -> dict[str, Any]:
    """Return the figures of the comparison. Raises StorageError for another model than the trained one."""
    found, limit = gate.compare(model), gate.limit(TOLERANCES[dtype], tolerance)
    remedy = f"Try --dtype float32 (here {dtype}), or allow more with --tolerance, a part of what training changed"
    gate.check(found, limit, "the GGUF file's model", remedy)
    return {"part": gate.part, "effect": gate.effect, "limit": limit, "agreement": found}


def export_adapter(job: Job) -> ExportReport:
    """Write the run's LoRA as `NAME-lora.gguf`, for `llama-server --lora` beside the base in GGUF."""
    need_gguf()
    _refuse_other_task(job, "gguf-adapter")
    updates = read_updates(job.directory, job.recipe.method)
    config = _base_config(job)
    method: Any = job.recipe.method
    alpha = method.alpha * method.rank**0.5 if method.rslora else method.alpha
    file = job.out / f"{job.name}-lora.gguf"
    count = write_adapter(updates, config, file, alpha=alpha, name=job.name)
    _check_adapter(file, updates, config)
    note = f"the base must be in GGUF too: {job.recipe.model.name}, in the type that the adapter was trained beside"
    return ExportReport(
        run=str(job.run), folder="", to="gguf-adapter", dtype="float32", tensors={"updates": count}, notes=[note]
    )


def read_updates(directory: RunDirectory, method: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A and B of every update by the name of its weight. Raises MethodError where the run trained more."""
    if not hasattr(method, "merge_tensor") or "rank" not in type(method).model_fields:
        raise MethodError(f"a GGUF adapter contains a LoRA only, not {method.title}; use --to gguf if it can be merged")
    if method.dora or not method.keeps_base:
        what = "DoRA" if method.dora else f"init: {method.init}"
        raise MethodError(f"llama.cpp's adapters have no {what}; use --to gguf, which merges")
    stored = {
        name.removeprefix("base_model.model."): one
        for name, one in read_tensors(directory.weights / method.weights_file).items()
    }
    if others := sorted(name for name in stored if not name.endswith((".lora_A.weight", ".lora_B.weight"))):
        raise MethodError(
            f"this run trained {others[0]} too ({len(others)} tensors beside the updates), which llama.cpp's adapters "
            "have no place for; use --to gguf, which merges"
        )
    names = sorted(name.removesuffix(".lora_A.weight") for name in stored if name.endswith(".lora_A.weight"))
    return {f"{name}.weight": (stored[f"{name}.lora_A.weight"], stored[f"{name}.lora_B.weight"]) for name in names}


def _check_adapter(path: Path, updates: dict[str, tuple[Tensor, Tensor]], config: Any) -> None:
    """Raise StorageError unless the file has the tensors of all updates, as another reader finds them."""
    gguf = need_gguf()
    found = {tensor.name for tensor in gguf.GGUFReader(path).tensors}
    if len(found) != 2 * len(updates):
        raise StorageError(f"{path.name}: read back, it has {len(found)} tensors instead of {2 * len(updates)}")
