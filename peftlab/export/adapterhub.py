"""`--to adapters`: bottleneck adapters, and a new head, in the format of AdapterHub's library `adapters`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from peftlab.errors import MethodError, listed
from peftlab.export.job import Job
from peftlab.files import read_json
from peftlab.models.build import build_meta, head_names
from peftlab.models.load import load_saved_tokenizer
from peftlab.reports import ExportReport
from peftlab.runs.reopen import run_labels

# The release whose names and equations these are (adapters/methods/bottleneck.py, adapters/methods/modeling.py).
VERSION = "adapters.1.3.0"
CONFIG, WEIGHTS = "adapter_config.json", "adapter.safetensors"
HEAD_CONFIG, HEAD_WEIGHTS = "head_config.json", "model_head.safetensors"
# The names of a bottleneck's layers: here, and in that library.
LAYERS = {"down": "adapter_down.0", "up": "adapter_up"}
TENSOR = re.compile(r"(?P<module>.+)\.adapter\.(?P<layer>down|up)\.(?P<kind>weight|bias)")


@dataclass(frozen=True)
class Layer:
    """A family's layer in that library: its adapters by the module that they follow here.

    `parallel` says that a parallel adapter reads there what the feed-forward reads. It reads the residual stream, which
    is the same thing unless a norm stands between the two.
    """

    adapters: Mapping[str, str]
    parallel: bool = False

    def place(self, module: str) -> str | None:
        """Return the name of the adapters that follow a module; None for a module that has none there."""
        for exit, own in sorted(self.adapters.items(), key=lambda entry: -len(entry[0])):
            if module.endswith(f".{exit}"):
                return f"{module.removesuffix(exit)}{own}"
        return None


_AFTER_ATTENTION, _AFTER_FEED_FORWARD = "attention_adapters.adapters", "output_adapters.adapters"
_BERT = Layer({"attention.output.dropout": "attention.output.adapters", "output.dropout": "output.adapters"}, True)
_LLAMA = Layer({"self_attn.o_proj": _AFTER_ATTENTION, "mlp": _AFTER_FEED_FORWARD})
_BART = {
    "self_attn.out_proj": _AFTER_ATTENTION,
    "encoder_attn.out_proj": "cross_attention_adapters.adapters",
    "fc2": _AFTER_FEED_FORWARD,
}
_T5 = Layer({f"layer.{number}.dropout": f"layer.{number}.adapters" for number in range(3)})

FAMILIES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), _BERT),
    "distilbert": Layer({"attention.out_lin": _AFTER_ATTENTION, "ffn": _AFTER_FEED_FORWARD}, True),
    "gpt2": Layer({"attn.resid_dropout": _AFTER_ATTENTION, "mlp": _AFTER_FEED_FORWARD}),
    **dict.fromkeys(("llama", "mistral"), _LLAMA),
    "bart": Layer(_BART, True),
    "mbart": Layer(_BART),
    **dict.fromkeys(("t5", "mt5"), _T5),
}


def export_adapters(job: Job) -> ExportReport:
    """Write the run's bottlenecks and its head under the run's name, with the tokenizer.

    Raises MethodError for what that library cannot compute.
    """
    weights = job.directory.weights
    model, _ = build_meta(job.recipe.model, run_labels(weights, job.directory.read_result()))
    counts = write_adapters(job.recipe.method.read_stored(weights), model, job.recipe.method, job.out, job.name)
    load_saved_tokenizer(weights, job.recipe.model).save_pretrained(job.out)
    _suit_earlier_transformers(job.out)
    note = (
        "not compared with the trained model: the library adapters needs transformers 4 and an environment of its own; "
        "there, load_adapter(FOLDER, set_active=True, use_safetensors=True)"
    )
    return ExportReport(run=str(job.run), folder="", to="adapters", dtype="float32", tensors=counts, notes=[note])


def _suit_earlier_transformers(folder: Path) -> None:
    """Rewrite the settings of a saved tokenizer as transformers 4 reads them; tokenizer.json is the same in both.

    It knows no class TokenizersBackend, its classes of families change what tokenizer.json says, and its extra tokens
    have another name.
    """
    path = folder / "tokenizer_config.json"
    if not (folder / "tokenizer.json").is_file():
        return
    settings = read_json(path)
    if isinstance(more := settings.pop("extra_special_tokens", None), list):
        settings["additional_special_tokens"] = more
    elif more is not None:
        settings["extra_special_tokens"] = more
    for name in ("backend", "is_local", "local_files_only"):
        settings.pop(name, None)
    _write(path, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})


def write_adapters(
    stored: Mapping[str, Tensor], model: PreTrainedModel, method: Any, folder: Path, run: str
) -> dict[str, int]:
    """Write the stored tensors of bottlenecks beside `model`, which needs no weights; return how many are what.

    Raises MethodError for what that library has no name for, or computes otherwise.
    """
    name, model_type = re.sub(r"\W", "_", run), model.config.model_type
    refuse_inexpressible(method, model_type, stored)
    named = {own: _rename(own, FAMILIES[model_type], name) for own in stored}
    adapters = {new: stored[own].contiguous() for own, new in named.items() if new is not None}
    rest = {own: stored[own].contiguous() for own, new in named.items() if new is None}
    _refuse_others(rest, model)
    width = next(len(one) for own, one in adapters.items() if own.endswith("adapter_down.0.bias"))
    _write(folder / CONFIG, _describe(model, name, configure(method, model.config, width)))
    save_file(adapters, folder / WEIGHTS, metadata={"format": "pt"})
    if rest:
        labels = {"label2id": model.config.label2id, "num_labels": model.config.num_labels}
        _write(folder / HEAD_CONFIG, _describe(model, None, None) | labels)
        save_file(rest, folder / HEAD_WEIGHTS, metadata={"format": "pt"})
    return {"of adapters": len(adapters)} | ({"of the head": len(rest)} if rest else {})


def refuse_inexpressible(method: Any, model_type: str, stored: Mapping[str, Tensor]) -> None:
    """Raise MethodError, in one line, where that library has no such adapters."""
    if not any(TENSOR.fullmatch(name) for name in stored):
        raise MethodError(f"{method.title} has no bottleneck adapters; --to peft is for LoRA, QLoRA and prefixes")
    reasons = {
        f"it has no adapters in {model_type} models; it has them in {listed(sorted(FAMILIES))}": (
            model_type not in FAMILIES
        ),
        "method.modules puts them where it has none": bool(method.modules),
    }
    if found := next((reason for reason, is_there in reasons.items() if is_there), None):
        raise MethodError(f"AdapterHub's library cannot have these adapters: {found}")
    if method.placement == "parallel" and not FAMILIES[model_type].parallel:
        raise MethodError(
            f"AdapterHub's library computes placement: parallel otherwise: in {model_type} models it reads what comes "
            "before the norm of the feed-forward, these adapters read what comes after it"
        )


def _rename(own: str, layer: Layer, name: str) -> str | None:
    """Return the name of an adapter's tensor in that library; None for another tensor."""
    found = TENSOR.fullmatch(own)
    place = found and layer.place(found["module"])
    return f"{place}.{name}.{LAYERS[found['layer']]}.{found['kind']}" if found and place else None


def _refuse_others(rest: Mapping[str, Tensor], model: PreTrainedModel) -> None:
    """Raise MethodError where the run trained more than adapters and a head."""
    others = sorted(rest.keys() - head_names(model))
    if others:
        raise MethodError(
            f"AdapterHub's format has a place for adapters and a head alone, and this run trained {others[0]} too "
            f"({len(others)} such tensors)"
        )


def configure(method: Any, config: Any, width: int) -> dict[str, Any]:
    """Return the adapters' configuration: a bottleneck of `width` on a sub-layer's output, before its residual.

    The library divides: the width is the whole part of hidden size / reduction_factor.
    """
    size = config.hidden_size
    after_attention = method.placement == "houlsby"
    return {
        "mh_adapter": after_attention,
        "cross_adapter": after_attention and bool(config.is_encoder_decoder),
        "output_adapter": True,
        "reduction_factor": size / (width if size % width == 0 else width + 0.5),
        "non_linearity": method.activation,
        "is_parallel": method.placement == "parallel",
        "original_ln_before": False,
        "original_ln_after": True,
        "ln_before": False,
        "ln_after": False,
        "residual_before_ln": True,
        "adapter_residual_before_ln": False,
        "scaling": 1.0,
        "use_gating": False,
        "dropout": 0.0,
        "phm_layer": False,
        "leave_out": [],
        "inv_adapter": None,
        "inv_adapter_reduction_factor": None,
        "init_weights": "bert",
    }


def _describe(model: PreTrainedModel, name: str | None, config: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "config": config,
        "hidden_size": model.config.hidden_size,
        "model_class": type(model).__name__,
        "model_name": "",
        "model_type": model.config.model_type,
        "name": name,
        "version": VERSION,
    }


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
