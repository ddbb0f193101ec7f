"""The sizes of a model, without its weights and without torch: the input of counting and planning."""

from __future__ import annotations

from dataclasses import dataclass
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
class ModelShape:
    """All sizes of one model. A tied parameter appears once, under its first name.

    `kv_width` is the width of one layer's keys (key/value heads times head size), `positions` the longest row that
    the model accepts (0: no limit), `fresh` the names of parameters that the checkpoint does not contain (a new
    classification head), `new_tokens` the rows of the embeddings that it does not contain.
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

    @cached_property
    def by_name(self) -> dict[str, ParameterSite]:
        return {site.name: site for site in self.parameters}

    @property
    def total(self) -> int:
        return sum(site.count for site in self.parameters)
