"""What torch's attention of rows of several lengths computes, by its documentation, on the CPU: token by token."""

from __future__ import annotations

import torch


def varlen_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Queries are (tokens, heads, width); the last query of a row is at its last key. Windows count from a token."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert int(cu_seq_q[-1]) == len(query) and int(cu_seq_k[-1]) == len(key)
    assert max_q == int(cu_seq_q.diff().max()) and max_k == int(cu_seq_k.diff().max())
    heads, groups = query.shape[1], query.shape[1] // key.shape[1]
    assert groups == 1 or enable_gqa
    scale, (left, right), outputs = scale or query.shape[-1] ** -0.5, window_size, []
    for row in range(len(cu_seq_q) - 1):
        (q0, q1), (k0, k1) = (cu[row : row + 2].tolist() for cu in (cu_seq_q, cu_seq_k))
        for place in range(q0, q1):
            at = k1 - (q1 - place)
            first = k0 if left < 0 else max(k0, at - left)
            last = k1 if right < 0 else min(k1, at + right + 1)
            parts = []
            for head in range(heads):
                seen, values = (one[first:last, head // groups].float() for one in (key, value))
                shares = (seen @ query[place, head].float() * scale).softmax(0)
                parts.append(shares @ values)
            outputs.append(torch.stack(parts))
    return torch.stack(outputs).to(query.dtype)
