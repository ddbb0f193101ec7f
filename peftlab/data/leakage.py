"""What occurs in two parts of the data: whole rows, prompts alone, and rows that are nearly the same."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import combinations
from typing import Any

import numpy as np

from peftlab.data.kept_examples import choose
from peftlab.data.keys import Keys
from peftlab.tasks.formats import Example, Format

# Two texts are near duplicates where this share (Jaccard) of their runs of GRAM characters is in both.
NEAR, GRAM = 0.7, 8
# A shorter text is compared exactly only, and what more than a tenth of the rows contain says nothing.
LEAST_GRAMS, COMMON_ROWS, COMMON_SHARE = 30, 20, 0.1
# Up to this many characters the search takes seconds.
MOST_CHARACTERS = 10_000_000
# Of a longer text its beginning is compared.
LONGEST_TEXT = 10_000
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def normalise(text: str) -> str:
    """Return a text in one form of Unicode, without case, and with single spaces for all whitespace."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def row_key(example: Example) -> str:
    """Return a text that is equal for examples that differ in case and whitespace only."""
    return json.dumps(_normalised(_content(example)), sort_keys=True, default=repr)


def prompt_key(layout: Format) -> Callable[[Example], str] | None:
    """Return the function from an example to its normalised prompt; None for a format without one."""
    input_of = layout.input_of
    return None if input_of is None else lambda example: normalise(input_of(example))


def count_leaks(parts: Mapping[str, Sequence[Example]], layout: Format) -> dict[str, dict[str, int | None]]:
    """Return for every two parts, as `first/second`, how many rows of the second are in the first too.

    `rows` counts equal rows, `prompts` equal prompts (or texts that are labelled), `near` rows that are nearly the same
    but not equal. Case and whitespace do not count. `prompts` is missing where the format has none, `near` is None
    where the rows are too many to look at.
    """
    parts = {name: part for name, part in parts.items() if len(part)}
    if len(parts) < 2:
        return {}
    keys = {name: Keys.of(map(row_key, part)) for name, part in parts.items()}
    of = prompt_key(layout)
    prompts = {name: Keys.of(map(of, part)) for name, part in parts.items()} if of is not None else {}
    found: dict[str, dict[str, int | None]] = {}
    for first, second in combinations(keys, 2):
        same = keys[second].among(keys[first])
        leaks: dict[str, int | None] = {"rows": int(same.sum())}
        if prompts:
            leaks["prompts"] = int(prompts[second].among(prompts[first]).sum())
        leaks["near"] = count_near(parts[first], choose(parts[second], np.flatnonzero(~same)))
        found[f"{first}/{second}"] = leaks
    return found


def count_near(known: Sequence[Example], others: Sequence[Example]) -> int | None:
    """Return how many of `others` are nearly the same as one of `known`; None where that would take long."""
    texts: list[list[str]] = [[], []]
    characters = 0
    for part, found in zip((known, others), texts, strict=True):
        for one in part:
            found.append(normalise(_beginning(one)))
            characters += len(found[-1])
            if characters > MOST_CHARACTERS:
                return None
    index = _Index(texts[0])
    return sum(index.has_near(text) for text in texts[1])


def grams(text: str) -> np.ndarray:
    """Return the distinct hashes of a text's runs of `GRAM` characters, sorted, as uint64."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)
    if len(codes) < GRAM:
        return np.zeros(0, np.uint64)
    hashes = np.zeros(len(codes) - GRAM + 1, np.uint64)
    for place in range(GRAM):
        hashes = hashes * MULTIPLIER + codes[place : place + len(hashes)]
    return np.unique(hashes)


class _Index:
    """The rows in which each run of characters occurs, without the runs that are common to many rows."""

    def __init__(self, texts: Sequence[str]) -> None:
        found = [grams(text) for text in texts]
        hashes = np.concatenate([*found, np.zeros(0, np.uint64)])
        rows = np.repeat(np.arange(len(found)), [len(one) for one in found])
        order = np.argsort(hashes, kind="stable")
        hashes, rows = hashes[order], rows[order]
        values, counts = np.unique(hashes, return_counts=True)
        common = counts > max(COMMON_ROWS, COMMON_SHARE * len(texts))
        self.common = values[common]
        kept = np.repeat(~common, counts)
        self.hashes, self.rows = hashes[kept], rows[kept]
        self.sizes = np.bincount(self.rows, minlength=len(texts))

    def has_near(self, text: str) -> bool:
        own = np.setdiff1d(grams(text), self.common, assume_unique=True)
        if len(own) < LEAST_GRAMS:
            return False
        begins, ends = (np.searchsorted(self.hashes, own, side=side) for side in ("left", "right"))
        counts = ends - begins
        places = np.repeat(begins - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        both = np.bincount(self.rows[places], minlength=len(self.sizes))
        return bool((both >= NEAR * (len(own) + self.sizes - both)).any())


def _beginning(example: Example) -> str:
    return " ".join(text[:LONGEST_TEXT] for text in _strings(_content(example)))[:LONGEST_TEXT]


def _content(example: Example) -> dict[str, Any]:
    return {one.name: getattr(example, one.name) for one in fields(example)}


def _normalised(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _normalised(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normalised(item) for item in value]
    return normalise(value) if isinstance(value, str) else value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
