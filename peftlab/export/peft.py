"""`--to peft`: the adapter as a folder of PEFT alone, compared with the trained model, and what servers take of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from shlex import quote
from typing import Any

from peft import PeftModel

from peftlab.errors import MethodError
from peftlab.export.job import Job
from peftlab.methods.peft_folder import WEIGHTS
from peftlab.models.load import load_saved_tokenizer
from peftlab.models.reference import resolve
from peftlab.reports import ExportReport
from peftlab.runs.gate import Tolerance, open_bench, open_gate
from peftlab.runs.launch import launched
from peftlab.runs.loading import load_base
from peftlab.world.open import open_world

CONFIG = "adapter_config.json"
# The ranks that vLLM can be started for (vllm/config/lora.py).
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
TOLERANCE = Tolerance(1e-3, 1e-6)


def export_peft(job: Job) -> ExportReport:
    """Copy what PEFT reads, with the tokenizer; PEFT alone must give the trained model's outputs."""
    weights = job.directory.weights
    if not (weights / CONFIG).is_file():
        raise MethodError(f"{job.recipe.method.title} is not a method of PEFT; LoRA, QLoRA and prefixes are")
    config = json.loads((weights / CONFIG).read_text(encoding="utf-8"))
    reference = resolve(job.recipe.model.name, job.recipe.model.revision)
    if reference.folder is not None:
        config["base_model_name_or_path"] = str(reference.folder.resolve() / (reference.gguf_file or ""))
    (job.out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.copy(weights / WEIGHTS, job.out / WEIGHTS)
    load_saved_tokenizer(weights, job.recipe.model).save_pretrained(job.out)
    refused = refusals(config, job.out)
    if reference.gguf_file is not None and not refused:
        refused = [f"the base is one file ({reference.gguf_file}), beside which vLLM serves no adapter: merge the run"]
    serve = {} if refused else {"vLLM": _vllm(config, job)}
    report = ExportReport(run=str(job.run), folder="", to="peft", notes=refused, serve=serve)
    return _compare(report, job) if job.options.rows else report


def refusals(config: dict[str, Any], folder: Path) -> list[str]:
    """Return what vLLM refuses of an adapter, a line each; empty where it takes it."""
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, "pt") as opened:
        others = sorted(name for name in opened.keys() if ".lora_A." not in name and ".lora_B." not in name)
    wrong = {
        "not a LoRA": config.get("peft_type") != "LORA",
        "DoRA": bool(config.get("use_dora")),
        "trained biases": config.get("bias", "none") != "none",
        "new tokens": bool(config.get("trainable_token_indices")),
        "modules_to_save (a head)": bool(config.get("modules_to_save")),
        f"tensors beside A and B ({others[0] if others else ''})": bool(others),
    }
    found = [name for name, is_there in wrong.items() if is_there]
    if not found:
        return []
    return [f"vLLM and other servers of LoRA refuse it ({', '.join(found)}): merge the run for them (peftlab merge)"]


def _vllm(config: dict[str, Any], job: Job) -> str:
    rank = next((one for one in RANKS if one >= config["r"]), config["r"])
    base, name = (_quote(text) for text in (config["base_model_name_or_path"], job.name))
    return f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}={{folder}}"


def _quote(text: str) -> str:
    """Return a word of a command of the shell, in which braces are no places to fill."""
    return quote(text).replace("{", "{{").replace("}", "}}")


def _compare(report: ExportReport, job: Job) -> ExportReport:
    """Return the report with the comparison. Raises StorageError where PEFT's model is another one."""
    world = open_world(job.recipe.run.device)
    with launched(world):
        bench = open_bench(job.directory, job.recipe, world, job.options.rows)
        gate, _ = open_gate(bench, job.directory.weights, job.options.rows)
        plain = load_base(job.recipe, bench.device, bench.dataset.labels).model
        found = gate.compare(PeftModel.from_pretrained(plain, job.out).to(bench.device))
    limit = gate.limit(TOLERANCE, job.options.tolerance)
    gate.check(found, limit, "PEFT's model", "Allow more with --tolerance, a part of what training changed")
    return report.model_copy(update={"part": gate.part, "effect": gate.effect, "limit": limit, "agreement": found})
