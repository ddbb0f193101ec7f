"""Attention of rows of several lengths in one call: torch's flash attention for variable lengths, on CUDA.

`torch.nn.attention.varlen.varlen_attn`, from torch 2.11 on: https://docs.pytorch.org/docs/2.12/nn.attention.varlen.html
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch

TYPES = (torch.float16, torch.bfloat16)
LARGEST_WIDTH = 256


@functools.cache
def find_kernel() -> Callable[..., torch.Tensor] | str:
    """Return torch's function; why there is none that does what is needed."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return f"torch {torch.__version__} has no attention of rows of several lengths"
    if not {"scale", "window_size"} <= inspect.signature(varlen_attn).parameters.keys():
        return f"torch {torch.__version__} has no windows in its attention of rows of several lengths"
    return varlen_attn  # type: ignore[return-value]  # one tensor, unless it is asked for more


def suits(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Return whether the kernel takes such heads, (1, heads, tokens, width)."""
    width = query.shape[-1]
    same = query.dtype == key.dtype == value.dtype and key.shape[-1] == value.shape[-1] == width
    return query.is_cuda and query.dtype in TYPES and same and width <= LARGEST_WIDTH and width % 8 == 0


def attend_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    causal: bool,
    window: int | None,
    scaling: float | None,
) -> torch.Tensor:
    """Return attention within rows, (1, tokens, heads, width), of queries (1, heads, tokens, width).

    Keys and values may have fewer heads. Where they begin with a prefix, every row sees it, and a row's last query is
    at its last key.
    """
    kernel = find_kernel()
    assert callable(kernel), "asked for where there is one"
    ahead = key.shape[2] - query.shape[2]
    keys, values = (_with_prefix(one, lengths, ahead) for one in (key, value))
    of_queries, of_keys = (_bounds(tuple(lengths), more, query.device) for more in (0, ahead))
    reach = -1 if window is None else window - 1
    options: dict[str, Any] = {"scale": scaling, "window_size": (reach, 0 if causal else reach)}
    if keys.shape[1] != query.shape[1]:
        if _takes_fewer_keys(kernel):
            options["enable_gqa"] = True
        else:
            keys, values = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (keys, values))
    lines = query[0].transpose(0, 1), keys, values
    longest = max(lengths)
    return kernel(*lines, of_queries, of_keys, longest, longest + ahead, **options)[None]


def _with_prefix(part: torch.Tensor, lengths: Sequence[int], ahead: int) -> torch.Tensor:
    """Return (tokens, heads, width) of (1, heads, prefix and tokens, width), the prefix before each row."""
    line = part[0].transpose(0, 1)
    if not ahead:
        return line
    prefix, rows = line[:ahead], line[ahead:].split(list(lengths))
    return torch.cat([one for row in rows for one in (prefix, row)])


@functools.lru_cache(maxsize=64)
def _bounds(lengths: tuple[int, ...], ahead: int, device: torch.device) -> torch.Tensor:
    """Return where rows begin and the last one ends; made once for all layers of a step."""
    ends = accumulate(length + ahead for length in lengths)
    return torch.tensor([0, *ends], dtype=torch.int32).to(device, non_blocking=True)


@functools.cache
def _takes_fewer_keys(kernel: Callable[..., torch.Tensor]) -> bool:
    return "enable_gqa" in inspect.signature(kernel).parameters
