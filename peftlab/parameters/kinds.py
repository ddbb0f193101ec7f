"""What kind of thing each parameter is and which layer it belongs to, for any `nn.Module`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

from peftlab.parameters.trainable import canonical_in, find_base, logical_shape
from peftlab.shapes import ParameterSite

ADAPTER = re.compile(r"(?:^|\.)(?:lora_|prompt_encoder|prefix|[^.]*adapter)")
ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
FEED_FORWARD = re.compile(
    r"mlp|ffn|feed_?forward|expert|intermediate|(?:^|\.)fc\d|(?:^|\.)output\.dense", re.IGNORECASE
)
BIAS = re.compile(r"(?:^|[._])bias(?:_|$)")


@dataclass(frozen=True)
class _Anatomy:
    """Where a model's layers and its head are, in the model's own (not canonical) names."""

    layer_lists: tuple[str, ...]
    body: str | None
    heads: tuple[str, ...]

    def layer_of(self, name: str) -> int | None:
        for path in self.layer_lists:
            if name.startswith(path + "."):
                return int(name[len(path) + 1 :].partition(".")[0])
        return None

    def is_head(self, name: str) -> bool:
        if self.body is not None and not name.startswith(self.body):
            return True
        return any(name.startswith(head + ".") for head in self.heads)


def module_layers(model: nn.Module) -> dict[str, int | None]:
    """Return the layer of every module, by the module's own name; None outside the layers."""
    anatomy = _anatomy(model)
    return {name: anatomy.layer_of(name) for name, _ in model.named_modules()}


def parameter_sites(
    model: nn.Module, fresh: frozenset[str] = frozenset()
) -> Iterator[tuple[ParameterSite, nn.Parameter]]:
    """Yield every parameter with its canonical name, logical shape, kind and layer; a tied one once.

    Fresh parameters are of the kind `head`. PEFT's set-aside copies are left out.
    """
    anatomy, canonical, modules = _anatomy(model), canonical_in(model), dict(model.named_modules())
    for own_name, parameter in model.named_parameters():
        if ".original_module." in f".{own_name}":
            continue
        name = canonical(own_name)
        kind = "head" if name in fresh else _kind(own_name, name, modules, anatomy)
        yield ParameterSite(name, logical_shape(parameter), kind, anatomy.layer_of(own_name)), parameter


def _kind(own_name: str, name: str, modules: dict[str, nn.Module], anatomy: _Anatomy) -> str:
    path, _, leaf = own_name.rpartition(".")
    owner = modules[path]
    owner_class = type(owner).__name__
    if ADAPTER.search(name):
        return "adapter"
    if anatomy.is_head(own_name):
        return "head"
    if "Norm" in owner_class:
        return "norm"
    if BIAS.search(leaf):
        return "bias"
    if isinstance(owner, nn.Embedding) or "Embedding" in owner_class or "embed" in name:
        return "embedding"
    if isinstance(owner, _ConvNd):
        return "convolution"
    if ATTENTION.search(name) or "Attention" in owner_class:
        return "attention"
    if FEED_FORWARD.search(name) or (anatomy.body is None and isinstance(owner, nn.Linear)):
        return "feed-forward"
    return "other"


def _anatomy(model: nn.Module) -> _Anatomy:
    path, base = find_base(model)
    prefix = path + "." if path else ""
    body_name = getattr(base, "base_model_prefix", "")
    body = getattr(base, body_name, None) if body_name else None
    return _Anatomy(
        layer_lists=_outermost_lists(model),
        body=f"{prefix}{body_name}." if isinstance(body, nn.Module) else None,
        heads=_pooler(model, prefix) if body_name else _last_dense(model),
    )


def _outermost_lists(model: nn.Module) -> tuple[str, ...]:
    """Return the module lists that lie in no other: a transformer's layers, not the experts within one."""
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(path + ".") for path in found):
            found.append(name)
    return tuple(found)


def _pooler(model: nn.Module, prefix: str) -> tuple[str, ...]:
    """BERT's pooler lies inside the body but belongs to the classification head that reads it."""
    names = (name for name, _ in model.named_modules() if name.startswith(prefix))
    return tuple(name for name in names if name.rpartition(".")[2] == "pooler")


def _last_dense(model: nn.Module) -> tuple[str, ...]:
    """Return the last dense layer of a model that is not a transformers one, unless attention owns it."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    owners = {name: type(model.get_submodule(name.rpartition(".")[0])).__name__ for name in names[-1:]}
    return tuple(name for name, owner in owners.items() if "Attention" not in owner and not ADAPTER.search(name))
