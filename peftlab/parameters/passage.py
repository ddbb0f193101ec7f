"""One pass of a text through a copy of a model without weights: which modules it calls, what its cache keeps."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from peftlab.family_traits import CASTS_LAYERS
from peftlab.shapes import UNKNOWN_PASSAGE, KeyValues, Passage

TOKENS = 8
ATTENTIONS = ("sdpa", "eager")
PLAIN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)


def pass_text(base: nn.Module) -> Passage:
    """Return what a text passes in a model of the class and the configuration of `base`; its weights are not used."""
    if not isinstance(base, PreTrainedModel):
        return UNKNOWN_PASSAGE
    key = type(base), base.config.to_json_string(use_diff=False)
    if key not in _SEEN:
        _SEEN.clear()
        _SEEN[key] = _try_passage(base)
    return _SEEN[key]


_SEEN: dict[tuple[type[PreTrainedModel], str], Passage] = {}
"""The last passage: a run asks for its model's several times."""


def _try_passage(base: PreTrainedModel) -> Passage:
    refused, read, takes_embeddings = _refused_by_signature(base), set[str](), True
    for attention in ATTENTIONS:
        with contextlib.suppress(Exception):  # a model that reads weights while it is built, or lacks this attention
            twin = _without_weights(type(base), base.config, attention)
            readers = _note_reads(twin)
            readers |= _cast_layers(twin)
            seen = _calls(twin), _outputs(twin.base_model)
            with seen[0] as called, seen[1] as outputs, _routed_everywhere(), contextlib.suppress(Exception):
                # A path that depends on values cannot be taken without weights: a classifier's head often has one.
                outputs.append(_run(twin))
            if outputs:
                with _routed_everywhere(), contextlib.suppress(Exception):
                    _run(twin.train())  # Gemma 3n reads (and clips) some weights in training alone
                return _describe(twin, called, readers, outputs, refused)
            takes_embeddings &= not _returns(twin) or _returns(twin, embedded=True)
            read |= _names_of(readers, twin)
    return Passage(no_prefix=refused, read=frozenset(read), takes_embeddings=takes_embeddings)


def _returns(twin: PreTrainedModel, embedded: bool = False) -> bool:
    """Return whether a model's body returns something on some path; `embedded`: for embeddings in place of ids."""
    with _outputs(twin.base_model) as outputs, _routed_everywhere(), _AnyPath(), contextlib.suppress(Exception):
        outputs.append(_run(twin.eval(), embedded))
    return bool(outputs)


def _describe(
    twin: PreTrainedModel, called: set[nn.Module], read: set[nn.Module], outputs: list[Any], refused: str
) -> Passage:
    """Return what was seen: of the whole model if it returned something, else of its body."""
    body = "" if twin.base_model is twin or len(outputs) > 1 else f"{twin.base_model_prefix}."
    idle = frozenset(name for name, one in _own_parameters(twin) if one not in called and name.startswith(body))
    key_values, reason = _read_cache(outputs, twin.config)
    return Passage(
        known=True,
        idle=idle,
        towers=tuple(_towers(twin, idle)),
        read=frozenset(_names_of(read, twin)),
        key_values=key_values,
        no_prefix=refused or reason,
        takes_embeddings=_returns(twin, embedded=True),
    )


def _without_weights(kind: type[PreTrainedModel], config: Any, attention: str) -> PreTrainedModel:
    """Return a copy on the meta device, with an attention that every machine can run."""
    config, before = copy.deepcopy(config), torch.get_default_dtype()
    config._attn_implementation = attention
    # The only type for which torch knows the shapes of grouped products; a classifier makes its body of the config's.
    config.dtype = torch.bfloat16
    try:
        torch.set_default_dtype(config.dtype)
        with torch.device("meta"):
            return kind(config).eval()
    finally:
        torch.set_default_dtype(before)


def _routed_everywhere() -> contextlib.AbstractContextManager:
    """Return a context in which a router without values sends each token everywhere."""
    from torch.fx.experimental import _config

    settings: Any = _config
    if not hasattr(settings, "meta_nonzero_assume_all_nonzero"):
        return contextlib.nullcontext()
    return settings.patch(meta_nonzero_assume_all_nonzero=True)


@torch.no_grad()
def _run(twin: PreTrainedModel, embedded: bool = False) -> Any:
    ids = torch.ones(1, TOKENS, dtype=torch.int64, device="meta")
    names = inspect.signature(twin.forward).parameters
    more: dict[str, Any] = {"use_cache": True} if "use_cache" in names else {}
    if twin.config.is_encoder_decoder and "decoder_input_ids" in names:
        more["decoder_input_ids"] = ids
    if embedded:
        return twin(inputs_embeds=twin.get_input_embeddings()(ids), attention_mask=torch.ones_like(ids), **more)
    return twin(input_ids=ids, **more)


@contextmanager
def _calls(model: nn.Module) -> Iterator[set[nn.Module]]:
    """Collect the modules that are called while the context is open."""
    called: set[nn.Module] = set()
    handles = [module.register_forward_pre_hook(lambda one, _: called.add(one)) for module in model.modules()]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


def _note_reads(model: nn.Module) -> set[nn.Module]:
    """Return a set that gets each dense layer whose weight is read from outside the layer, from now on."""
    inside: set[nn.Module] = set()
    read: set[nn.Module] = set()

    def weight(layer: nn.Module) -> torch.Tensor | None:
        if layer not in inside:
            read.add(layer)
        return layer._parameters["weight"]

    for layer in [one for one in model.modules() if isinstance(one, nn.Linear)]:
        layer.register_forward_pre_hook(lambda one, _: inside.add(one))
        layer.register_forward_hook(lambda one, inputs, output: inside.discard(one))
        layer.__class__ = type(type(layer).__name__, (type(layer),), {"weight": property(weight)})
    return read


def _cast_layers(model: PreTrainedModel) -> set[nn.Module]:
    """Return the dense layers that the model converts to another type, which a packed weight does not have."""
    part = CASTS_LAYERS.get(model.config.model_type)
    return {one for name, one in model.named_modules() if isinstance(one, nn.Linear) and part in name.split(".")}


def _names_of(modules: set[nn.Module], model: nn.Module) -> set[str]:
    """Return the names of modules, and of those that have the same place in another module of a class of the model's.

    Where a path depends on values, one expert of several was reached, and its class reads what is in the others too.
    """
    named = dict(model.named_modules())
    places = {name: _place(name, named) for name in named}
    wanted = {places[name] for name, one in named.items() if one in modules}
    return {name for name, place in places.items() if place in wanted}


def _place(name: str, named: Mapping[str, nn.Module]) -> tuple[Any, str]:
    """Return the class that a module belongs to and its name there; within torch's containers, itself."""
    owner, _, own = name.rpartition(".")
    kind = type(named[owner])
    return (named[name], own) if kind.__module__.startswith("torch.") or not name else (kind, own)


class _AnyPath(TorchDispatchMode):
    """Answers what a model asks of values that it has not, so that it takes a path: masks are full, numbers are 1."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return args[0].dtype == torch.bool or 1
        return func(*args, **(kwargs or {}))


@contextmanager
def _outputs(body: nn.Module) -> Iterator[list[Any]]:
    """Collect what a model's body returns while the context is open: a classifier's own output has no cache."""
    outputs: list[Any] = []
    handle = body.register_forward_hook(lambda one, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


def _own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that have parameters of their own."""
    return ((name, one) for name, one in model.named_modules() if next(one.parameters(recurse=False), None) is not None)


def _towers(model: nn.Module, idle: frozenset[str]) -> Iterator[str]:
    """Yield the outermost modules of which several parts have parameters, none of them called.

    A single layer that is not called may be used through its weight (`torch.nn.MultiheadAttention`), a part of
    several is not.
    """
    owners = {name for name, _ in _own_parameters(model)}
    found: list[str] = []
    for name, _ in model.named_modules():
        inside = {owner for owner in owners if owner == name or owner.startswith(f"{name}.")}
        if name and len(inside) > 1 and inside <= idle and not name.startswith(tuple(f"{one}." for one in found)):
            found.append(name)
            yield name


def _refused_by_signature(base: PreTrainedModel) -> str:
    """Return why PEFT cannot give keys and values to a model or to its body; empty if it can."""
    if base.config.is_encoder_decoder and not base.can_generate():
        return "is an encoder-decoder that classifies, whose attention takes no keys from outside"
    takers = (inspect.signature(one.forward).parameters for one in (base, base.base_model))
    return "" if any("past_key_values" in names for names in takers) else "takes no keys and values from outside"


def _read_cache(outputs: Iterable[Any], config: Any) -> tuple[KeyValues | None, str]:
    """Return the keys and values of every layer, or why a prefix cannot stand before them; neither for an encoder."""
    values = (value for output in outputs if hasattr(output, "values") for value in output.values())
    cache: Any = next((value for value in values if isinstance(value, Cache)), None)
    if cache is None:
        return None, ""
    layers: list[Any] = list(getattr(cache, "self_attention_cache", cache).layers)
    if not config.is_encoder_decoder and len(layers) != config.get_text_config().num_hidden_layers:
        return None, "has layers that share their keys or keep none"
    if any(type(layer) not in PLAIN_LAYERS or layer.keys is None for layer in layers):
        return None, "has layers without keys and values (recurrent ones or of another kind)"
    sizes = {tuple(part.shape[1::2]) for layer in layers for part in (layer.keys, layer.values) if part.dim() == 4}
    if len(sizes) != 1:
        return None, "has keys and values of several sizes"
    if any(layer.keys.shape[2] != TOKENS for layer in layers):
        return None, f"keeps the keys of fewer than {TOKENS} tokens (a sliding window)"
    (heads, size) = sizes.pop()
    return KeyValues(int(heads), int(size)), ""
