"""Attention of rows that are laid end to end as one: no row sees another, and no mask of all tokens is made.

transformers calls `rows_attention` while `attention_of_rows` is open, and makes no masks for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn
from torch.nn import functional

from peftlab.data.batches import RowGroup
from peftlab.parameters.trainable import find_base
from peftlab.speed.row_kernel import attend_rows, suits

# The name in transformers' registry of attention functions. None is registered for its masks: all masks are None.
NAME = "peftlab_rows"
# Implementations that find out from the position ids where rows begin.
READS_POSITIONS = "flash_attention"
# Arguments of attention that only some families pass, with which keys are chosen in ways that are not known here.
UNKNOWN = frozenset({"position_bias", "indices", "block_indices", "sinks", "cache"})

_lines: dict[int, Line] = {}
_calls: list[Call] | None = None
_one_call: WeakSet[nn.Module] = WeakSet()
_configs: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()


class RowsError(NotImplementedError):
    """Attention that cannot be computed for rows laid end to end."""


class Line(NamedTuple):
    """Rows that are laid end to end, and whether one call may compute them all."""

    groups: tuple[RowGroup, ...] = ()
    one_call: bool = False


class Call(NamedTuple):
    """What an attention layer was given: its number, where it has one, whether it has a window, and is causal.

    `by_length` is what keeps rows of several lengths from being one call of torch's kernel, if anything does.
    """

    layer: int | None
    has_window: bool
    causal: bool
    by_length: str


class Pattern(NamedTuple):
    """Which keys a query sees, and how: what an attention layer says of itself."""

    causal: bool
    window: int | None = None
    scaling: float | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    dropout: float = 0.0


@contextmanager
def attention_of_rows(model: nn.Module, groups: Sequence[RowGroup] | None) -> Iterator[None]:
    """While the context is open, the model's input is one line of rows in these groups, which see only themselves.

    It must be open in the backward pass too, where layers may be computed again. With None nothing changes.
    """
    if groups is None:
        yield
        return
    configs, line = _switchable(model), Line(tuple(groups), find_base(model)[1] in _one_call)
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            _set_implementation(config, NAME)
            _lines[id(config)] = line
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            _set_implementation(config, name)
            _lines.pop(id(config), None)


@contextmanager
def watch_calls() -> Iterator[list[Call]]:
    """While the context is open, add each call of the attention to the list."""
    global _calls
    _calls = []
    try:
        yield _calls
    finally:
        _calls = None


def use_one_call(model: nn.Module, wanted: bool) -> None:
    """Compute rows of several lengths of `model`, wrapped or not, in one call where that can be; or do not."""
    (_one_call.add if wanted else _one_call.discard)(find_base(model)[1])


def rows_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention's output, (1, tokens, heads, width), of queries (1, heads, tokens, width).

    Keys and values may have fewer heads, and may begin with a prefix, which every row sees. Raises RowsError for
    arguments with a meaning that is not known here.
    """
    if attention_mask is not None or any(others.get(name) is not None for name in UNKNOWN):
        raise RowsError("its attention takes a mask of its own")
    groups, one_call = _lines.get(id(getattr(module, "config", None)), Line())
    if query.shape[0] != 1 or query.shape[2] != sum(length * rows for length, rows in groups):
        raise RowsError("its attention does not get the tokens of all rows")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    pattern = Pattern(bool(causal), sliding_window, scaling, softcap, s_aux, dropout)
    by_length = _why_by_length(pattern, query, key, value)
    if _calls is not None:
        _calls.append(Call(getattr(module, "layer_idx", None), sliding_window is not None, bool(causal), by_length))
    if one_call and len(groups) > 1 and not by_length:
        lengths = [length for length, rows in groups for _ in range(rows)]
        return attend_rows(query, key, value, lengths, pattern.causal, pattern.window, pattern.scaling), None
    return attend_by_length(pattern, query, key, value, groups), None


def attend_by_length(
    pattern: Pattern, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, groups: Sequence[RowGroup]
) -> torch.Tensor:
    """Return attention within rows, (1, tokens, heads, width), by one call for neighbours of one length."""
    return _join(_attend(pattern, *part) for part in _split(query, key, value, groups))


def _why_by_length(pattern: Pattern, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> str:
    if pattern.softcap is not None:
        return "soft-capped scores"
    if pattern.sinks is not None:
        return "sinks"
    if pattern.dropout:
        return "dropout"
    return "" if suits(query, key, value) else "heads that torch's kernel does not take"


Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _split(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, groups: Sequence[RowGroup]) -> Iterator[Heads]:
    """Yield queries, keys and values of neighbours of one length, (rows, heads, length, width), without a copy."""
    sizes = [length * rows for length, rows in groups]
    ahead = key.shape[2] - query.shape[2]
    prefix = [part[:, :, :ahead] for part in (key, value)]
    queries = _pieces(query, sizes)
    keys, values = (_pieces(part[:, :, ahead:], sizes) for part in (key, value))
    for (_, rows), q, k, v in zip(groups, queries, keys, values, strict=True):
        stacked = [_stack(part, rows) for part in (q, k, v)]
        if ahead:
            stacked[1:] = [
                torch.cat([first.expand(rows, -1, -1, -1), part], 2)
                for first, part in zip(prefix, stacked[1:], strict=True)
            ]
        yield stacked[0], stacked[1], stacked[2]


def _pieces(part: torch.Tensor, sizes: Sequence[int]) -> Sequence[torch.Tensor]:
    """Return the tokens of each group; all of them as they are for one group, whose gradient then needs no copy."""
    return part.split(list(sizes), 2) if len(sizes) > 1 else (part,)


def _stack(part: torch.Tensor, rows: int) -> torch.Tensor:
    """Return (rows, heads, length, width) of (1, heads, rows · length, width), as a view whose gradient is one too."""
    return part.unflatten(2, (rows, -1)).squeeze(0).transpose(0, 1)


def _join(parts: Iterator[torch.Tensor]) -> torch.Tensor:
    """Return (1, tokens, heads, width) of parts (rows, heads, length, width)."""
    lines = [part.transpose(1, 2).flatten(0, 1) for part in parts]
    return (lines[0] if len(lines) == 1 else torch.cat(lines))[None]


def _attend(pattern: Pattern, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    if pattern.softcap is not None or pattern.sinks is not None:
        return _attend_by_scores(pattern, query, key, value)
    mask = None if _is_plain(pattern, query, key) else _visible(pattern, query, key)
    grouped = key.shape[1] != query.shape[1]
    if grouped and mask is not None and query.is_cuda:  # its kernels take grouped heads without a mask only
        key, value, grouped = *_repeated(query, key, value), False
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        mask,
        pattern.dropout,
        is_causal=pattern.causal and mask is None,
        scale=pattern.scaling,
        enable_gqa=grouped,
    )


def _is_plain(pattern: Pattern, query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether no key is hidden but by causality."""
    fits = pattern.window is None or key.shape[2] <= pattern.window
    return fits and (not pattern.causal or key.shape[2] == query.shape[2])


def _visible(pattern: Pattern, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return which keys each query sees, (queries, keys) of booleans; the last query is at the last key."""
    places = torch.arange(key.shape[2], device=query.device)
    distance = places[key.shape[2] - query.shape[2] :, None] - places
    seen = distance >= 0 if pattern.causal else torch.ones_like(distance, dtype=torch.bool)
    return seen if pattern.window is None else seen & (distance.abs() < pattern.window)


def _attend_by_scores(pattern: Pattern, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attend with soft-capped scores, or with a sink for each head, which no fused kernel of torch has."""
    key, value = _repeated(query, key, value)
    scaling = query.shape[-1] ** -0.5 if pattern.scaling is None else pattern.scaling
    scores = query @ key.transpose(2, 3) * scaling
    if pattern.softcap is not None:
        scores = torch.tanh(scores / pattern.softcap) * pattern.softcap
    if pattern.causal or not _is_plain(pattern, query, key):
        scores = scores.masked_fill(~_visible(pattern, query, key), float("-inf"))
    if pattern.sinks is not None:
        sinks = pattern.sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores.dtype)
        scores = torch.cat([scores, sinks], -1)
    shares = scores.softmax(-1, dtype=torch.float32).to(value.dtype)[..., : key.shape[2]]
    return functional.dropout(shares, pattern.dropout) @ value


def _repeated(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys and values with as many heads as the queries have."""
    times = query.shape[1] // key.shape[1]
    if times == 1:
        return key, value
    return key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)


def _switchable(model: nn.Module) -> list[Any]:
    """Return the configurations by which the model's layers choose their attention, but for those that need none."""
    if model not in _configs:
        found = {id(config): config for module in model.modules() if (config := _config_of(module)) is not None}
        _configs[model] = list(found.values())
    return [config for config in _configs[model] if READS_POSITIONS not in str(config._attn_implementation)]


def _config_of(module: nn.Module) -> Any:
    config = getattr(module, "config", None)
    return config if hasattr(config, "_attn_implementation") else None


def _set_implementation(config: Any, name: str | None) -> None:
    """Set the attention of one configuration; transformers' own setter would set those inside it too."""
    config._attn_implementation_internal = name


def register() -> None:
    """Enter the function in transformers' registry."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, rows_attention)


register()
