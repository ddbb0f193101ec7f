"""PEFT adapter folders: what PEFT's own loader must find there for the same outputs.

Heads and unfrozen base parameters train in place. In the file they have the names that they have in the
wrapped model, and `PeftModel.from_pretrained` puts each where it belongs: into its own copy for the head of a
classifier (`modules_to_save`, which its task type implies), in place for all others, as it does for biases.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.methods.new_tokens import list_indices
from peftlab.shapes import ModelShape, ParameterSite
from peftlab.tasks import TASKS, Task

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn

WEIGHTS = "adapter_model.safetensors"


def base_tensors(wrapped: PeftModel, task: Task) -> dict[str, Tensor]:
    """Return what must be stored of the base: what trained, and all of a classifier's head."""
    trained = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    heads = _head_prefixes(wrapped, task)
    base = ("base_model.model.", "base_model.")[wrapped.active_peft_config.is_prompt_learning]
    return {
        name: parameter
        for name, parameter in wrapped.named_parameters()
        if name.startswith(base) and (name in trained or name.startswith(heads))
    }


def _head_prefixes(wrapped: PeftModel, task: Task) -> tuple[str, ...]:
    return tuple(f"{name}." for name, _ in wrapped.named_modules() if name.endswith(task.head_names))


def stored_head(sites: list[ParameterSite], shape: ModelShape) -> list[ParameterSite]:
    """Return a saved copy's sites, with those of a classifier's head, which a folder contains even if frozen."""
    known, heads = {site.name for site in sites}, TASKS[shape.task].head_names
    return [*sites, *(site for site in shape.parameters if site.name not in known and _in_head(site.name, heads))]


def _in_head(name: str, heads: tuple[str, ...]) -> bool:
    return any(module.endswith(heads) for module in name.split(".")[:-1])


def write_config(wrapped: PeftModel, folder: Path, task: Task, context: dict[str, Any]) -> None:
    """Write `adapter_config.json` for inference with PEFT."""
    from copy import deepcopy

    config = deepcopy(wrapped.active_peft_config)
    config.inference_mode = True
    config.task_type = task.peft_type
    if indices := list_indices(wrapped.get_base_model()):
        config.trainable_token_indices = indices
    config.modules_to_save = list(task.head_names) or None
    source = context.get("base_model") or {}
    config.base_model_name_or_path = source.get("name") or config.base_model_name_or_path
    config.revision = source.get("revision") or config.revision
    for name, value in vars(config).items():
        if isinstance(value, set):  # PEFT would write it in an order that differs from process to process
            setattr(config, name, sorted(value))
    config.save_pretrained(str(folder))


@functools.cache
def names_of_experts(model_type: str) -> tuple[str, ...]:
    """Return the endings of names (`.down_proj`) that PEFT takes for a mixture's fused weights, in this family.

    peft 0.21 translates targets of transformers 4, where experts were dense layers. It does so for every layer of
    such a name, also for those before the first mixture, and again whoever reads the folder.
    """
    from peft.utils import transformers_weight_conversion as conversion

    if conversion.get_checkpoint_conversion_mapping(model_type) is None:
        return ()
    patterns = getattr(conversion, "_MODEL_TO_CONVERSION_PATTERN", {})
    mapping = getattr(conversion, "_MOE_TARGET_MODULE_MAPPING", {})
    return tuple(f".{name}" for name in mapping.get(patterns.get(model_type), ()))


@functools.cache
def is_renamed(model_type: str, module: str) -> bool:
    """Return whether PEFT renames the saved update of a module when it reads it, so that no module gets it.

    peft 0.21 takes an adapter's names for those of a checkpoint that transformers converts, and some of transformers'
    patterns match the names after the conversion too.
    """
    renamings, converters = _conversions(model_type)
    if not renamings:
        return False
    from transformers.core_model_loading import rename_source_key

    name = f"base_model.model.{module}.lora_A.weight"
    renamed, converted = rename_source_key(name, renamings, converters)
    return converted is None and not name.endswith(renamed.replace(".default", ""))


@functools.cache
def _conversions(model_type: str) -> tuple[list[Any], list[Any]]:
    """Return the renamings and the other conversions by which PEFT reads an adapter of this family."""
    from peft import LoraConfig
    from peft.utils import transformers_weight_conversion as conversion
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    known = conversion.get_checkpoint_conversion_mapping(model_type)
    if known is None:
        return [], []
    found = conversion.build_peft_weight_mapping(known, adapter_name="default", peft_config=LoraConfig())
    renamings = [one for one in found if isinstance(one, WeightRenaming)]
    return renamings, [one for one in found if isinstance(one, WeightConverter)]


def unwrap_heads(wrapped: nn.Module) -> None:
    """Put the modules that PEFT set aside for saving back in place, so that they train there."""
    from peft.utils import ModulesToSaveWrapper

    for name, module in list(wrapped.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, leaf = name.rpartition(".")
            setattr(wrapped.get_submodule(parent), leaf, module.original_module)
