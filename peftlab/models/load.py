"""Loading a model with its weights, plain or quantised, on its device, ready for a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedConfig, PreTrainedModel

from peftlab.models.build import attention_argument, check_body, from_config, random_fresh
from peftlab.models.checkpoint import fingerprint
from peftlab.models.config import auto_class, hub_arguments, one_line_errors, read_config
from peftlab.models.dividing import reading_parts
from peftlab.models.gguf import forget_parsed
from peftlab.models.hub import cached_commit
from peftlab.models.new_tokens import add_new_tokens
from peftlab.models.quantize import make_quantizer, replace_dense_
from peftlab.models.quantizer import Quantizer
from peftlab.models.reference import Reference, resolve
from peftlab.models.tokenizer import fit_tokenizer, load_saved_tokenizer, load_tokenizer
from peftlab.parameters.divided import divide_, move_
from peftlab.parameters.gathering import gather_where_computed
from peftlab.parameters.trainable import named_parameters
from peftlab.recipe.schema import Model
from peftlab.tasks import TASKS
from peftlab.world.dtypes import resolve_types
from peftlab.world.hardware import return_freed_memory

__all__ = ["LoadedModel", "fit_tokenizer", "load_model", "load_saved_tokenizer", "load_tokenizer"]


@dataclass(frozen=True)
class LoadedModel:
    """A model, the names of its fresh parameters (absent from the checkpoint), and its source."""

    model: PreTrainedModel
    fresh: frozenset[str]
    source: dict[str, Any]


def load_model(
    section: Model,
    *,
    precision: str = "auto",
    base_format: str = "plain",
    double_quantization: bool = True,
    compute_dtype: str = "auto",
    device: torch.device | str = "cpu",
    labels: Sequence[str] | None = None,
    seen: Callable[[nn.Module], None] = lambda model: None,
    mesh: DeviceMesh | None = None,
) -> LoadedModel:
    """Return the recipe's model on `device`; `labels` name the classes of a new classification head.

    `precision` is the recipe's `training.precision`, which types that are `auto` follow. Random weights depend on
    torch's seed. `requires_grad` is unchanged: a method sets it. `seen` is called with the model after reading, and
    again at the end. With a `mesh` of processes each keeps its rows of every weight, and a forward pass gathers them;
    all must call it together. Raises ModelError if it cannot be found, read or built.
    """
    device = torch.device(device)
    reference = resolve(section.name, section.revision)
    config = read_config(section, reference, labels)
    types = resolve_types(section.dtype, precision, device)
    quantizer = None
    if base_format != "plain":
        quantizer = make_quantizer(base_format, double_quantization, types.unpacked(compute_dtype), device, mesh)
    if section.init == "random":
        with device:  # drawing on the CPU takes ten nanoseconds a weight
            model = from_config(section, reference, config, types.weights)
        fresh = random_fresh(model, section)
    else:
        with reading_parts(mesh, quantizer, seen):
            model, fresh = _from_checkpoint(section, reference, config, types.weights)
    add_new_tokens(model, section)
    if mesh is not None:
        divide_(model, mesh)  # what no file filled
    seen(model)
    if quantizer is not None:
        replace_dense_(model, quantizer)
    move_(model, device)
    if mesh is not None:
        gather_where_computed(model)
    if mesh is not None or quantizer is not None:
        return_freed_memory()
    seen(model)
    return LoadedModel(model, fresh, _source(section, reference, model, quantizer))


def _from_checkpoint(
    section: Model, reference: Reference, config: PreTrainedConfig, dtype: torch.dtype
) -> tuple[PreTrainedModel, frozenset[str]]:
    arguments = hub_arguments(reference, section) | attention_argument(section, config)
    with one_line_errors(reference, "loaded"):
        # A classifier of another size becomes fresh; `check_body` refuses any other tensor of the wrong size.
        model, found = auto_class(TASKS[section.task]).from_pretrained(
            reference.source,
            config=config,
            dtype=dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **arguments,
        )
    forget_parsed()
    lacking = set(found["missing_keys"]) | {entry[0] for entry in found["mismatched_keys"]}
    lacking &= set(named_parameters(model))
    check_body(model, lacking, reference)
    _unmark_gguf(model)
    return model, frozenset(lacking)


def _unmark_gguf(model: Any) -> None:
    """Remove the marks of the GGUF format: the weights are plain now, but transformers would refuse to train them.

    `Any`, because transformers sets these attributes without declaring them.
    """
    if getattr(model.config, "quantization_config", None) is not None and model.hf_quantizer is not None:
        if model.hf_quantizer.quantization_config.quant_method == "gguf":
            del model.config.quantization_config
            model.hf_quantizer = None
            model.is_quantized = False


def _source(
    section: Model, reference: Reference, model: PreTrainedModel, quantizer: Quantizer | None
) -> dict[str, Any]:
    """Return what identifies the base model: name, class, type, and a fingerprint of its content."""
    return _identity(section, reference) | {
        "init": section.init,
        "class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": None if quantizer is None else quantizer.describe(),
    }


def identify_base(section: Model) -> dict[str, Any]:
    """Return what identifies a base without loading it: name, commit, and a fingerprint of its content.

    Raises ModelError where it is not found.
    """
    return _identity(section, resolve(section.name, section.revision))


def _identity(section: Model, reference: Reference) -> dict[str, Any]:
    return {
        "name": section.name,
        "revision": cached_commit(reference),
        "fingerprint": _fingerprint(reference),
    }


def _fingerprint(reference: Reference) -> str | None:
    # A hub model is identified by its commit.
    if reference.folder is None:
        return None
    return fingerprint(reference.folder, [reference.gguf_file] if reference.gguf_file else None)
