"""The sizes of a model, without its weights and without torch: the input of counting and planning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

KINDS = ("attention", "feed-forward", "norm", "bias", "embedding", "head", "adapter", "convolution", "other")


@dataclass(frozen=True)
class ParameterSite:
    """One parameter tensor: canonical name, logical shape, kind (one of `KINDS`), layer (None outside layers)."""

    name: str
    shape: tuple[int, ...]
    kind: str
    layer: int | None = None

    @property
    def count(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class LinearSite:
    """One dense projection (nn.Linear or GPT-2's Conv1D) of `n_in` inputs and `n_out` outputs.

    `role` is its function in a layer: query, key, value, query-key-value, attention-output, feed-forward-input,
    feed-forward-gate, feed-forward-output, head, or other.
    """

    name: str
    n_in: int
    n_out: int
    bias: bool
    role: str
    layer: int | None = None


@dataclass(frozen=True)
class NewTokens:
    """Ids of tokens that no checkpoint has, and the tables with a row for each.

    A table is named by the modules that use it, the first one its owner: a tied output head has the input's.
    """

    ids: tuple[int, ...]
    tables: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class KeyValues:
    """What a model keeps of each token in every layer: keys and values of `heads` heads of `head_size` numbers."""

    heads: int
    head_size: int

    @property
    def width(self) -> int:
        return self.heads * self.head_size


@dataclass(frozen=True)
class Passage:
    """What one pass of a text through a model shows; everything is empty where it cannot be made without weights.

    `idle` are modules with parameters that the text does not reach, `towers` those of them that are whole parts of
    the model (a vision tower, a decoder's attention to an encoder that it does not have). `read` are dense layers
    whose weight others read without calling the layer, or its type. `key_values` is the cache, the same in every
    layer, and `no_prefix` says why nothing can be put before it. `takes_embeddings` is false where the text passes as
    ids alone.
    """

    known: bool = False
    idle: frozenset[str] = frozenset()
    towers: tuple[str, ...] = ()
    read: frozenset[str] = frozenset()
    key_values: KeyValues | None = None
    no_prefix: str = ""
    takes_embeddings: bool = True


UNKNOWN_PASSAGE = Passage()


@dataclass(frozen=True)
class ModelShape:
    """All sizes of one model. A tied parameter appears once, under its first name.

    `kv_width` is the width of one layer's keys (`kv_heads` heads times their size), `positions` the longest row that
    the model accepts (0: no limit), `fresh` the names of parameters that the checkpoint does not contain (a new
    classification head), `new_tokens` the rows of the embeddings that it does not contain. `pass_text` makes one pass
    of a text, which is made only where a method asks for it, `fixed` are the parameters that are
    computed and never learned (sinusoids of positions).
    """

    model_type: str
    task: str
    hidden_size: int
    layers: int
    kv_width: int
    vocabulary: int
    parameters: tuple[ParameterSite, ...]
    linears: tuple[LinearSite, ...]
    fresh: frozenset[str] = frozenset()
    positions: int = 0
    new_tokens: NewTokens | None = None
    kv_heads: int = 1
    pass_text: Callable[[], Passage] = field(default=Passage, compare=False, repr=False)

    fixed: frozenset[str] = frozenset()

    @cached_property
    def passage(self) -> Passage:
        """What one pass of a text shows."""
        return self.pass_text()

    @cached_property
    def idle_parameters(self) -> frozenset[str]:
        """The names of the parameters in parts of the model that a text does not reach."""
        prefixes = tuple(f"{tower}." for tower in self.passage.towers)
        return frozenset(site.name for site in self.parameters if prefixes and site.name.startswith(prefixes))

    @cached_property
    def fused_experts(self) -> tuple[ParameterSite, ...]:
        """The weights of experts that are one tensor a layer: no dense layers."""
        wide = (site for site in self.parameters if len(site.shape) == 3 and min(site.shape) > 1)
        return tuple(site for site in wide if site.kind == "feed-forward")

    @cached_property
    def by_name(self) -> dict[str, ParameterSite]:
        return {site.name: site for site in self.parameters}

    @property
    def total(self) -> int:
        return sum(site.count for site in self.parameters)
