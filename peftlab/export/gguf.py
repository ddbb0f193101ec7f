"""GGUF: the merged model as one file that is read back and compared, or the LoRA alone as an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig

from peftlab.errors import MethodError, ModelError, StorageError, UsageError
from peftlab.evaluation.agreement import rms
from peftlab.export.gguf_families import find_family
from peftlab.export.gguf_model import need_gguf, same_sizes, write_adapter, write_model
from peftlab.export.job import Job
from peftlab.export.weights import read_gguf
from peftlab.methods.storage import read_tensors
from peftlab.models.reference import resolve
from peftlab.reports import AgreementReport, ExportReport
from peftlab.runs.directory import RunDirectory
from peftlab.runs.merge import Merged, merged_beside

# The largest difference of logits that passes, as a part of what training changed.
TOLERANCES = {"float32": 0.01, "float16": 0.03, "bfloat16": 0.1, "q8_0": 0.3}
# Rounding of one weight, as a part of it: below two such roundings of the logits a difference is none.
ROUNDING = {"float32": 2**-23, "float16": 2**-10, "bfloat16": 2**-7, "q8_0": 2**-7}
DEFAULT = "float16"


def export_model(job: Job) -> ExportReport:
    """Merge the run, write the result as `NAME-TYPE.gguf`, and compare what transformers reads of it."""
    need_gguf()
    dtype = job.dtype or DEFAULT
    if dtype not in TOLERANCES:
        raise UsageError(f"--dtype {dtype}: GGUF has {', '.join(TOLERANCES)} here")
    if job.recipe.model.task != "causal-lm":
        raise ModelError(
            f"--to gguf: llama.cpp serves language models, not {job.recipe.task.name}; use `peftlab merge`"
        )
    file = f"{job.name}-{dtype}.gguf"
    options: dict[str, Any] = {"base": job.base, "rows": job.rows, "verify": job.verify}
    with merged_beside(job.run, job.out / "merged", dtype="float32", **options) as merged:
        counts = write_model(merged.folder, job.out / file, dtype, job.name)
        config = AutoConfig.from_pretrained(merged.folder, local_files_only=True)
        if wrong := same_sizes(job.out, file, config):
            raise StorageError(f"{file}: read back, {', '.join(wrong)} differ from the model's; nothing was written")
        report = ExportReport(run=str(job.run), folder="", to="gguf", dtype=dtype, tensors=counts)
        if merged.work.trained is None:
            return report
        model = read_gguf(job.out / file, find_family(config).read_as(config), job.recipe.task)
        agreement = merged.compare(model)
        assert agreement is not None, "rows were observed"
        effect, limit = _limit(merged, dtype, job.tolerance)
        _refuse_far(agreement, effect, limit, dtype)
    return report.model_copy(
        update={"part": merged.report.part, "effect": effect, "limit": limit, "agreement": agreement}
    )


def _limit(merged: Merged, dtype: str, tolerance: float | None) -> tuple[float, float]:
    """Return what training changed, and the largest difference that passes."""
    assert merged.work.trained and merged.work.base, "rows were observed"
    effect = rms(merged.work.trained.logits - merged.work.base.logits)
    if tolerance is not None:
        return effect, tolerance * effect
    return effect, max(TOLERANCES[dtype] * effect, 2 * ROUNDING[dtype] * rms(merged.work.trained.logits))


def _refuse_far(found: AgreementReport, effect: float, limit: float, dtype: str) -> None:
    if not found.rms <= limit:
        raise StorageError(
            f"the GGUF file is not the trained model: its logits differ by {found.rms:.3g} (rms), more than "
            f"{limit:.3g} ({dtype}); training changed them by {effect:.3g}. Nothing was written. Try --dtype float32, "
            "or allow more with --tolerance, a part of what training changed"
        )


def export_adapter(job: Job) -> ExportReport:
    """Write the run's LoRA as `NAME-lora.gguf`, for `llama-server --lora` beside the base in GGUF."""
    need_gguf()
    updates = read_updates(job.directory, job.recipe.method)
    reference = resolve(job.recipe.model.name, job.recipe.model.revision)
    config = AutoConfig.from_pretrained(reference.source, **reference.arguments)
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
        raise MethodError(f"a GGUF adapter is a LoRA, and {method.title} is none; use --to gguf if it can be merged")
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
