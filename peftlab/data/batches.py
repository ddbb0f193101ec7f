"""Which rows make a batch, as pure functions of seed and step, and the tensors of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from peftlab.data.token_arrays import sizes_of
from peftlab.data.token_rows import TokenRow

EPOCH_ORDER = 4


@lru_cache(maxsize=2)
def _permutation(seed: int, n: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([EPOCH_ORDER, seed, epoch]))).permutation(n)


def row_at(seed: int, n: int, position: int) -> int:
    """Return which of `n` rows comes at `position` (0-based) of training; every epoch of n has its own order."""
    epoch, place = divmod(position, n)
    return int(_permutation(seed, n, epoch)[place])


def evaluation_batches(
    rows: Sequence[TokenRow], batch_size: int, *, process: int = 0, processes: int = 1
) -> list[tuple[int, list[int]]]:
    """Return (batch number, row numbers) of one process; over all processes every row comes once.

    Rows of like length share a batch, longest first, so that little is padded and a lack of memory shows at once.
    """
    order = np.argsort(-sizes_of(rows).tokens, kind="stable").tolist()
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [(number, batch) for number, batch in enumerate(batches) if number % processes == process]


def collate(rows: Sequence[TokenRow], pad_id: int, pad_to: int | None = None) -> dict[str, torch.Tensor]:
    """Return `input_ids` and `attention_mask`, padded at the right to the longest row or `pad_to`, and the targets.

    All int64, but for targets that are numbers. `targets` are what to predict; `positions`, where the rows have them,
    say where in the flat (rows, length) each is predicted. They are computed here on the CPU, where asking for them
    costs no synchronisation. Masks come from lengths: a pad id may well be the end-of-text id.
    """
    width = max(pad_to or 0, *(len(row.input_ids) for row in rows))
    batch = {
        "input_ids": _pad([row.input_ids for row in rows], width, pad_id),
        "attention_mask": _pad([np.ones(len(row.input_ids)) for row in rows], width, 0),
    }
    types = [row.token_type_ids for row in rows if row.token_type_ids is not None]
    if types:
        batch["token_type_ids"] = _pad(types, width, 0)
    return batch | {name: torch.from_numpy(values) for name, values in rows[0].stack(rows, width).items()}


def _pad(values: Sequence[np.ndarray], width: int, fill: int) -> torch.Tensor:
    padded = np.full((len(values), width), fill, dtype=np.int64)
    for line, value in zip(padded, values, strict=True):
        line[: len(value)] = value
    return torch.from_numpy(padded)
