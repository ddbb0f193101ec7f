"""What kind of thing each parameter is and which layer it belongs to, for any `nn.Module`.

A method says it of what it adds (`note_added`), PEFT's types of what PEFT added without us, and for the plain model
its classes and names are read.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

from peftlab.errors import MethodError
from peftlab.parameters.trainable import canonical_in, find_base, logical_shape, named_parameters
from peftlab.shapes import KINDS, NewTokens, ParameterSite

ADDED = "_peftlab_added"
NEW_TOKENS = "_peftlab_new_tokens"
ADAPTER = re.compile(r"(?:^|\.)[^.]*adapter")
ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
FEED_FORWARD = re.compile(
    r"mlp|ffn|feed_?forward|expert|intermediate|DenseReluDense|(?:^|\.)fc\d|(?:^|\.)output\.dense", re.IGNORECASE
)
BIAS = re.compile(r"(?:^|[._])bias(?:_|$)")


@dataclass(frozen=True)
class _Anatomy:
    """Where a model's layers, its head and what was added are, in the model's own (not canonical) names.

    `layer_lists` gives the number of each list's first layer: a decoder's layers are counted after its encoder's.
    """

    layer_lists: dict[str, int]
    body: str | None
    heads: tuple[str, ...]
    additions: frozenset[str]

    def layer_of(self, name: str) -> int | None:
        path, place = self.place_of(name)
        return None if place is None else self.layer_lists[path] + place

    def place_of(self, name: str) -> tuple[str, int | None]:
        """Return the list of layers that a name is in, and its layer's place there."""
        for path in self.layer_lists:
            if name.startswith(path + "."):
                return path, int(name[len(path) + 1 :].partition(".")[0])
        return "", None

    def is_head(self, name: str) -> bool:
        if self.body is not None and not name.startswith(self.body):
            return True
        return any(name.startswith(head + ".") for head in self.heads)


def note_added(model: nn.Module, sites: Iterable[ParameterSite]) -> None:
    """Keep on the plain model inside `model` what the last method added, so that copies of it know it too.

    Raises MethodError for a kind that is not one of `KINDS`.
    """
    added = {site.name: site for site in sites}
    for site in added.values():
        if site.kind not in KINDS:
            raise MethodError(f"{site.name} has the unknown kind {site.kind!r}; known: {', '.join(KINDS)}")
    # Not on each parameter: a deep copy of a parameter loses its attributes, one of a module keeps them.
    vars(find_base(model)[1])[ADDED] = added


def added_sites(model: nn.Module) -> dict[str, ParameterSite]:
    """Return by canonical name what the method said of the parameters that it added to `model`."""
    return next((vars(module)[ADDED] for module in model.modules() if ADDED in vars(module)), {})


def kept_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that a saved copy contains: what trains, and what the method added, frozen or not."""
    added = added_sites(model)
    return {one for name, one in named_parameters(model).items() if one.requires_grad or name in added}


def note_new_tokens(model: nn.Module, tokens: NewTokens) -> None:
    """Keep on the plain model inside `model` which rows of its embeddings are new."""
    vars(find_base(model)[1])[NEW_TOKENS] = tokens


def find_new_tokens(model: nn.Module) -> NewTokens | None:
    """Return which rows of a model's embeddings are new; None where there are none."""
    return vars(find_base(model)[1]).get(NEW_TOKENS)


def module_layers(model: nn.Module) -> dict[str, int | None]:
    """Return the layer of every module, by the module's own name; None outside the layers."""
    anatomy = _anatomy(model)
    return {name: anatomy.layer_of(name) for name, _ in model.named_modules()}


def module_places(model: nn.Module) -> dict[str, int | None]:
    """Return the place of every module's layer in its own list of layers; None outside the layers."""
    anatomy = _anatomy(model)
    return {name: anatomy.place_of(name)[1] for name, _ in model.named_modules()}


def layer_lists(model: nn.Module) -> list[str]:
    """Return the paths of the module lists that are inside no other: layers, an encoder's before a decoder's."""
    return list(_anatomy(model).layer_lists)


def layer_titles(model: nn.Module) -> dict[int, str]:
    """Return each layer's name in reports: `layers.0`, or `encoder.layers.0` beside a decoder."""
    lists = _anatomy(model).layer_lists
    whole = len(set(lists.values())) > 1
    return {
        first + place: f"{path.split('.')[-2] + '.' if whole else ''}layers.{place}"
        for path, first in lists.items()
        for place in range(len(model.get_submodule(path)))  # type: ignore[arg-type]  # a ModuleList
    }


def fixed_parameters(model: nn.Module) -> frozenset[str]:
    """Return the names of parameters that are computed and never get a gradient: sinusoids of positions (Marian)."""
    canonical = canonical_in(model)
    return frozenset(
        canonical(f"{path}.{name}")
        for path, module in model.named_modules()
        if "Sinusoidal" in type(module).__name__
        for name, _ in module.named_parameters(recurse=False)
    )


def parameter_sites(
    model: nn.Module, fresh: frozenset[str] = frozenset()
) -> Iterator[tuple[ParameterSite, nn.Parameter]]:
    """Yield every parameter with its canonical name, logical shape, kind and layer; a tied one once.

    Fresh parameters are of the kind `head`. PEFT's set-aside copies are not counted.
    """
    anatomy, canonical, modules = _anatomy(model), canonical_in(model), dict(model.named_modules())
    added = added_sites(model)
    for own_name, parameter in model.named_parameters():
        if ".original_module." in f".{own_name}":
            continue
        name = canonical(own_name)
        if name in added:
            kind, layer = added[name].kind, added[name].layer
        else:
            kind, layer = _kind(own_name, name, modules, anatomy), anatomy.layer_of(own_name)
        yield ParameterSite(name, logical_shape(parameter), "head" if name in fresh else kind, layer), parameter


def _kind(own_name: str, name: str, modules: dict[str, nn.Module], anatomy: _Anatomy) -> str:
    path, _, leaf = own_name.rpartition(".")
    owner = modules[path]
    owner_class = type(owner).__name__
    if _is_within(own_name, anatomy.additions) or ADAPTER.search(name):
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
    additions = frozenset(_additions_of_peft(model))
    heads = (*_pooler(model, prefix), *_output_head(base, body, prefix)) if body_name else _last_dense(model, additions)
    return _Anatomy(
        layer_lists=_layer_lists(model, base),
        body=f"{prefix}{body_name}." if isinstance(body, nn.Module) else None,
        heads=heads,
        additions=additions,
    )


def _additions_of_peft(model: nn.Module) -> Iterator[str]:
    """Yield the paths of what PEFT put into layers, and next to the plain model (a prompt's encoder)."""
    if "peft" not in sys.modules:  # then it wrapped nothing; to import it takes seconds
        return
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

    for path, module in model.named_modules():
        prefix = path + "." if path else ""
        if isinstance(module, BaseTunerLayer):
            yield from (prefix + name for name in module.adapter_layer_names)
        elif isinstance(module, PeftModel):
            yield from (prefix + name for name, _ in module.named_children() if name != "base_model")
        elif isinstance(module, BaseTuner):
            yield from (prefix + name for name, _ in module.named_children() if name != "model")


def _is_within(name: str, paths: frozenset[str]) -> bool:
    """Whether a dotted name is one of the paths or inside one."""
    parts = name.split(".")
    return any(".".join(parts[:length]) in paths for length in range(1, len(parts) + 1))


def _outermost_lists(model: nn.Module) -> tuple[str, ...]:
    """Return the module lists that are inside no other: a transformer's layers, not the experts within one."""
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(path + ".") for path in found):
            found.append(name)
    return tuple(found)


def _layer_lists(model: nn.Module, base: nn.Module) -> dict[str, int]:
    lists = _outermost_lists(model)
    if not getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        return dict.fromkeys(lists, 0)
    sizes = [len(model.get_submodule(path)) for path in lists]  # type: ignore[arg-type]  # ModuleLists
    return {path: sum(sizes[:number]) for number, path in enumerate(lists)}


def _output_head(base: nn.Module, body: object, prefix: str) -> tuple[str, ...]:
    """Return the module that makes logits of a model without a body of its own (T5), where everything else is one."""
    find = getattr(base, "get_output_embeddings", None)
    head = find() if find is not None and not isinstance(body, nn.Module) else None
    return tuple(prefix + name for name, module in base.named_modules() if module is head and head is not None)


def _pooler(model: nn.Module, prefix: str) -> tuple[str, ...]:
    """Return BERT's pooler: it is inside the body but belongs to the classification head that reads it."""
    names = (name for name, _ in model.named_modules() if name.startswith(prefix))
    return tuple(name for name in names if name.rpartition(".")[2] == "pooler")


def _last_dense(model: nn.Module, additions: frozenset[str]) -> tuple[str, ...]:
    """Return the last dense layer of a model that is not a transformers one, unless attention owns it."""
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not _is_within(name, additions)
    ]
    owners = {name: type(model.get_submodule(name.rpartition(".")[0])).__name__ for name in names[-1:]}
    return tuple(name for name, owner in owners.items() if "Attention" not in owner and not ADAPTER.search(name))
