"""`--to sentence-transformers`: a run's encoder without its head, with the pooling that makes one vector of a text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, PreTrainedModel

from peftlab.errors import ModelError, StorageError, listed
from peftlab.export.gguf_model import read_tensors
from peftlab.export.job import Job
from peftlab.family_traits import ENCODERS
from peftlab.files import read_json
from peftlab.models.reference import resolve
from peftlab.parameters.shape import count_positions
from peftlab.reports import ExportReport
from peftlab.runs.merge import merged_beside

MODULES, SETTINGS, LENGTH = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
POOLING = "1_Pooling"
TOKENIZER = "tokenizer_config.json"
WEIGHTS = "model.safetensors"
# What is written anew for the encoder alone; everything else of a merged folder is the tokenizer's.
NOT_COPIED = {"config.json", "generation_config.json", "model.safetensors.index.json"}


def export_sentences(job: Job) -> ExportReport:
    """Merge the run and write its encoder; every tensor of it is that of the merged model, which was compared.

    The pooling is the base's own where the base is a model of sentence-transformers, else the mean of the tokens.
    Raises ModelError where the model is not an encoder.
    """
    with merged_beside(job.run, job.out / "merged", job.options) as merged:
        config = AutoConfig.from_pretrained(merged.folder, local_files_only=True)
        if config.model_type not in ENCODERS or getattr(config, "is_decoder", False):
            raise ModelError(
                f"--to sentence-transformers: {config.model_type} models are not encoders here, and a vector of a text "
                "is made of tokens that read both sides; use `peftlab merge`"
            )
        for file in merged.folder.iterdir():
            if file.is_file() and file.suffix != ".safetensors" and file.name not in NOT_COPIED:
                shutil.copy(file, job.out)
        with torch.device("meta"):
            body = AutoModel.from_config(config)
        counts = _write_body(merged.folder, job.out, body)
        report = merged.report
    pooling = _write_pooling(job, config)
    _write_length(job.out, body)
    return ExportReport(
        run=str(job.run),
        folder="",
        to="sentence-transformers",
        dtype=report.dtype,
        tensors=counts,
        part=report.part,
        effect=report.effect,
        limit=report.limit,
        agreement=report.agreements.get(report.base),
        notes=[f"pooling: {pooling}", "the comparison is the merged model's, with its head; the encoder is its own"],
    )


def _write_body(merged: Path, folder: Path, body: PreTrainedModel) -> dict[str, int]:
    """Write the tensors inside the encoder, by the names that it has alone; return how many were kept and dropped.

    Raises StorageError if the encoder needs one that is not there; a pooler, which no pooling here reads, may lack.
    """
    wanted, prefix = set(body.state_dict()), f"{body.base_model_prefix}."
    stored = dict(read_tensors(merged))
    kept = {name.removeprefix(prefix): one for name, one in stored.items() if name.removeprefix(prefix) in wanted}
    if lacking := sorted(name for name in wanted - kept.keys() if not name.startswith("pooler.")):
        raise StorageError(f"the merged model has no {listed(lacking[:3])} for its encoder; nothing was written")
    body.config.architectures = [type(body).__name__]
    body.config.save_pretrained(folder)
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    dropped = len(stored) - len(kept)
    return {"of the encoder": len(kept)} | ({"of the head left out": dropped} if dropped else {})


def _write_pooling(job: Job, config: Any) -> str:
    """Write what follows the encoder, and return what it is."""
    base = resolve(job.recipe.model.name, job.recipe.model.revision).folder
    if base is not None and (base / MODULES).is_file():
        return _copy_pooling(base, job.out)
    kinds = ("Transformer", "Pooling")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, ("", POOLING), strict=True))
    ]
    _write(job.out / MODULES, modules)
    (job.out / POOLING).mkdir()
    how = {"word_embedding_dimension": config.hidden_size, "pooling_mode_mean_tokens": True}
    _write(job.out / POOLING / "config.json", how)
    return f"the mean of the tokens, as the base has no pooling of its own ({POOLING}/config.json)"


def _write_length(folder: Path, body: PreTrainedModel) -> None:
    """Say how many tokens the encoder takes where that library would take more from its config (RoBERTa)."""
    positions, path = count_positions(body), folder / LENGTH
    if positions == body.config.max_position_embeddings or not positions:
        return
    known = read_json(path) if path.is_file() else {}
    limits = (positions, known.get("max_seq_length"), read_json(folder / TOKENIZER).get("model_max_length"))
    _write(path, known | {"max_seq_length": min(int(one) for one in limits if one)})


def _copy_pooling(base: Path, folder: Path) -> str:
    modules = read_json(base / MODULES)
    if not isinstance(modules, list) or not all(
        isinstance(one, dict) and {"path", "type"} <= set(one) for one in modules
    ):
        raise StorageError(f"{base / MODULES}: is damaged: it is not a list of modules with path and type")
    for file in (MODULES, SETTINGS, LENGTH):
        if (base / file).is_file():
            shutil.copy(base / file, folder / file)
    for module in modules:
        if module["path"] and (base / module["path"]).is_dir():
            shutil.copytree(base / module["path"], folder / module["path"])
    return "the base's own, " + ", ".join(module["type"].rpartition(".")[2] for module in modules[1:])


def _write(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
