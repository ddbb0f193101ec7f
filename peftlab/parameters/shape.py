"""The sizes of a built model on any device, as a `ModelShape`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from peftlab.architectures import role_of
from peftlab.parameters.kinds import (
    find_new_tokens,
    fixed_parameters,
    module_layers,
    module_places,
    parameter_sites,
)
from peftlab.parameters.passage import pass_text
from peftlab.parameters.trainable import canonical_in, find_base, is_quantized
from peftlab.shapes import KeyValues, LinearSite, ModelShape, ParameterSite


def shape_of(model: nn.Module, fresh: frozenset[str] = frozenset(), task: str = "causal-lm") -> ModelShape:
    """Return the sizes of `model`; `fresh` names the parameters that are absent from the checkpoint.

    Works on the meta device and on quantised models, whose sizes are those of the plain ones. A module without a
    config has hidden size, key width and vocabulary 0.
    """
    _, base = find_base(model)
    sites = tuple(site for site, _ in parameter_sites(model, fresh))
    config: Any = getattr(base, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    model_type = getattr(config, "model_type", "")
    kept = _key_values(config)
    return ModelShape(
        model_type=model_type,
        task=task,
        hidden_size=getattr(config, "hidden_size", 0),
        layers=_count_layers(config, sites),
        kv_width=kept.width,
        kv_heads=kept.heads,
        vocabulary=_vocabulary(base, config),
        parameters=sites,
        linears=linear_sites(model, model_type, {site.name: site for site in sites}),
        fresh=fresh & {site.name for site in sites},
        positions=count_positions(base),
        new_tokens=find_new_tokens(model),
        pass_text=partial(pass_text, base),
        fixed=fixed_parameters(model),
    )


def count_positions(model: nn.Module) -> int:
    """Return the longest row that a model takes; 0 where it has no limit (None or -1 in a config).

    A model that counts positions from its padding token (RoBERTa) uses those of its table that come after that token.
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = max(getattr(config, "max_position_embeddings", None) or 0, 0)
    tables = [table for table in padded_positions(model) if len(table.weight) == limit]
    return min((limit - 1 - table.padding_idx for table in tables), default=limit)


def padded_positions(model: nn.Module) -> list[Any]:
    """Return the position tables of a model that have a row for padding: what it counts begins after that row."""
    tables = (module for name, module in model.named_modules() if "position" in name and hasattr(module, "weight"))
    return [table for table in tables if getattr(table, "padding_idx", None) is not None]


def linear_sites(model: nn.Module, model_type: str, sites: dict[str, ParameterSite]) -> tuple[LinearSite, ...]:
    """Return the dense projections of the plain model, without those of adapters."""
    canonical, layers, places = canonical_in(model), module_layers(model), module_places(model)
    found = []
    for own_name, module in model.named_modules():
        sizes = _dense_sizes(module)
        if sizes is None:
            continue
        name = canonical(own_name)
        site = sites.get(f"{name}.weight")
        # A weight that is tied to the embedding has no site of its own: this layer is the output head.
        kind = site.kind if site else "head"
        if kind != "adapter":
            layer = layers[own_name]
            inside = name.partition(f".{places[own_name]}.")[2] or name
            role = "head" if kind == "head" else role_of(model_type, inside)
            found.append(LinearSite(name, *sizes, module.bias is not None, role, layer))
    return tuple(found)


def _dense_sizes(module: nn.Module) -> tuple[int, int] | None:
    """Return (n_in, n_out) of an `nn.Linear` (bitsandbytes' among them) or of GPT-2's Conv1D; None for others."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear) and not computes_otherwise(module):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return None


def computes_otherwise(layer: Any) -> bool:
    """Whether a model's own subclass returns something else than n_out numbers, as a router that chooses experts.

    Others compute W·x + b in a way of their own (Falcon's).
    """
    if type(layer).forward is nn.Linear.forward or is_quantized(layer.weight):
        return False
    weights = {name: torch.empty_like(one, device="meta") for name, one in layer.named_parameters(recurse=False)}
    inputs = torch.empty(1, layer.in_features, dtype=layer.weight.dtype, device="meta")
    try:
        output = functional_call(layer, weights, (inputs,))
    except Exception:  # it takes other inputs than a dense layer
        return True
    return not isinstance(output, torch.Tensor) or output.shape != (1, layer.out_features)


def _key_values(config: Any) -> KeyValues:
    """Return a layer's keys as most configurations say it; of width 0 where layers differ or it does not say.

    Keys made of a latent are of another size than their values, or of other sizes than the configuration's heads.
    """
    try:
        heads: int | None = getattr(config, "num_attention_heads", None)
        if not heads or getattr(config, "kv_lora_rank", None):
            return KeyValues(1, 0)
        size: int = getattr(config, "head_dim", None) or config.hidden_size // heads
        return KeyValues(getattr(config, "num_key_value_heads", None) or heads, size)
    except (AttributeError, TypeError, RuntimeError, ValueError):  # Gemma 4 raises for what differs by layer
        return KeyValues(1, 0)


def _vocabulary(base: Any, config: Any) -> int:
    try:
        embedding: Any = base.get_input_embeddings() if hasattr(base, "get_input_embeddings") else None
    except NotImplementedError:  # CANINE hashes characters
        embedding = None
    return getattr(embedding, "num_embeddings", 0) or getattr(config, "vocab_size", 0) or 0


def find_decoder_start(config: Any) -> int | None:
    """Return the id with which a decoder beside an encoder begins: the model's own, or its decoder's opening token."""
    own = getattr(config, "decoder_start_token_id", None)
    return getattr(getattr(config, "decoder", None), "bos_token_id", None) if own is None else own


def _count_layers(config: Any, sites: tuple[ParameterSite, ...]) -> int:
    """Return the layers that a config names, or where it names those of an encoder alone, all that have parameters."""
    named = None if getattr(config, "is_encoder_decoder", False) else getattr(config, "num_hidden_layers", None)
    return named or len({site.layer for site in sites if site.layer is not None})
