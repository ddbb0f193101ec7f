"""Models without weights, on the meta device, from their configuration alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from peftlab.errors import ModelError
from peftlab.models.checkpoint import stored_shapes
from peftlab.models.config import auto_class, one_line_errors, read_config
from peftlab.models.new_tokens import add_new_tokens
from peftlab.models.reference import Reference, resolve
from peftlab.parameters.kinds import parameter_sites
from peftlab.recipe.schema import Model
from peftlab.tasks import TASKS
from peftlab.world.dtypes import resolve_types


def build_meta(section: Model, labels: Sequence[str] | None = None) -> tuple[PreTrainedModel, frozenset[str]]:
    """Return the model on the meta device and the names of its fresh parameters.

    Needs a `config.json` (a GGUF file's metadata, a hub's config), no weights. A parameter of the head is
    fresh if the local checkpoint does not contain it, or if there is no local checkpoint. Raises ModelError.
    """
    reference = resolve(section.name, section.revision)
    config = read_config(section, reference, labels)
    with torch.device("meta"):
        model = from_config(
            section, reference, config, resolve_types(section.dtype, "auto", torch.device("cpu")).weights
        )
        fresh = _expected_fresh(model, section, reference)
        add_new_tokens(model, section)
    return model, fresh


def from_config(section: Model, reference: Reference, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model of this configuration with random weights, on the current default device."""
    with one_line_errors(reference, "built"):
        return auto_class(TASKS[section.task]).from_config(
            config,
            dtype=dtype,
            trust_remote_code=section.trust_remote_code,
            **attention_argument(section, config),
        )


def attention_argument(section: Model, config: PreTrainedConfig) -> dict[str, str]:
    """Return the keyword argument that selects the attention implementation.

    torch's SDPA does not cap the scores of a model like Gemma 2, and some versions of transformers use it nevertheless,
    without a word. Raises ModelError where a recipe asks for that.
    """
    if _caps_scores(config) and section.attention in ("auto", "sdpa"):
        if section.attention == "sdpa":
            raise ModelError(
                f"model.attention: {config.model_type} caps its attention scores (attn_logit_softcapping), which sdpa "
                "does not do; use auto or eager"
            )
        return {"attn_implementation": "eager"}
    return {} if section.attention == "auto" else {"attn_implementation": section.attention}


def _caps_scores(config: PreTrainedConfig) -> bool:
    """Whether a model, or one of its parts, caps the scores of its attention."""
    parts = [part for name in config.sub_configs if isinstance(part := getattr(config, name, None), PreTrainedConfig)]
    return bool(getattr(config, "attn_logit_softcapping", None)) or any(map(_caps_scores, parts))


def describe_part(model: nn.Module) -> list[str]:
    """Return a line where a model is only the decoder of what its checkpoint contains."""
    config: Any = getattr(model, "config", None)
    if config is None or config.is_encoder_decoder or not getattr(type(config)(), "is_encoder_decoder", False):
        return []
    return [f"model: {type(model).__name__} is the decoder alone; the encoder is not loaded, counted or trained"]


def head_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters outside the model's body."""
    return frozenset(site.name for site, _ in parameter_sites(model) if site.kind == "head")


def check_body(model: nn.Module, lacking: Iterable[str], reference: Reference) -> None:
    """Raise ModelError if a checkpoint lacks parameters outside the head."""
    body = sorted(set(lacking) - head_names(model))
    if body:
        raise ModelError(
            f"model {reference.label!r}: the checkpoint lacks {len(body)} parameters of {type(model).__name__} "
            f"or has them in other sizes ({body[0]}, ...); use a complete checkpoint of this model"
        )


def random_fresh(model: PreTrainedModel, section: Model) -> frozenset[str]:
    """Return the fresh parameters where no checkpoint is at hand: all outside the body, with a new head."""
    if not TASKS[section.task].head_names:
        return frozenset()
    prefix = model.base_model_prefix + "."
    return frozenset(name for name, _ in model.named_parameters() if not name.startswith(prefix))


def _expected_fresh(model: PreTrainedModel, section: Model, reference: Reference) -> frozenset[str]:
    stored = stored_shapes(reference) if section.init == "pretrained" else None
    if stored is None:
        return random_fresh(model, section)
    prefix = model.base_model_prefix + "."
    parameters = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return frozenset(
        name
        for name in head_names(model)
        if parameters[name] not in (stored.get(name), stored.get(name.removeprefix(prefix)))
    )
