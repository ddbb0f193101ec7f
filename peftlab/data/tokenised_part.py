"""The examples of one part as tokens, with a report of what was cut and left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from peftlab.data.examples import fingerprint
from peftlab.data.fingerprints import RowDigest
from peftlab.data.prompts import Prompt, merge_prompts
from peftlab.data.splits import Examples
from peftlab.data.token_arrays import sizes_of
from peftlab.data.token_rows import TokenRow
from peftlab.data.tokens import INNER, MARKER, REASON, STOP
from peftlab.errors import DataError
from peftlab.tasks.base import Tokenised, Tokenising
from peftlab.tasks.formats import Example, Format

# What a report always says of a part, and what only where it is not zero.
ALWAYS = ("truncated", "lost_supervised", "straddling", "unaligned", "dropped")
# Memory for this many examples and their tokens is needed at a time.
EXAMPLES_AT_ONCE = 4096
WHERE_ANY = (
    "cut_tokens cut_text lost_tokens cut_turns chunked skipped unclear carried unended unprompted prompts_cut"
    " unwritten_tools unwritten_messages unwritten_reasoning".split()
)


@dataclass(frozen=True)
class TokenisedPart:
    """The rows and prompts of one part, and what is said of them; how many rows each source of a mixture gave.

    `largest_id` is the largest token in them, -1 without any.
    """

    rows: Sequence[TokenRow]
    prompts: Sequence[Prompt]
    report: dict[str, Any]
    largest_id: int = -1
    by_source: tuple[int, ...] = ()


def tokenising(
    examples: Examples, tokenizer: Any, counts: Counter[str], layout: Format | None = None, *, prompts: bool = False
) -> Tokenising:
    """Return how a recipe's examples become rows; `counts` gains what happens to them."""
    layout = layout or examples.format
    return Tokenising(tokenizer, examples.section, layout, counts, examples.labels or (), prompts)


def tokenise_part(
    examples: Examples,
    part: Sequence[Example],
    layout: Format,
    tokenizer: Any,
    name: str,
    collect: Callable[[list[TokenRow]], None],
) -> TokenisedPart:
    """Tokenise the examples of one part piece by piece; `collect` is given the rows, which the result does not have.

    Raises DataError where too many have nothing to learn from.
    """
    if not len(part):
        return TokenisedPart([], [], {"rows": 0}, by_source=_count_by_source(examples, name, []))
    counts, digest = Counter[str](), RowDigest()
    how = tokenising(examples, tokenizer, counts, layout, prompts=name in ("evaluation", "test"))
    prompts: list[Prompt] = []
    ends, largest, tokens, supervised, longest, made = [], -1, 0, 0, 0, 0
    for piece in _pieces(len(part), examples.mixture.sizes if examples.mixture and name == "train" else ()):
        found = examples.task.tokenise(part[piece], how)
        collect(found.rows)
        digest.add(found.rows)
        prompts += found.prompts
        sizes = sizes_of(found.rows)
        made += len(found.rows)
        tokens, supervised = tokens + int(sizes.tokens.sum()), supervised + int(sizes.supervised.sum())
        longest, largest = max(longest, int(sizes.tokens.max(initial=0))), max(largest, find_largest(found))
        ends.append((piece.stop, made))
    _refuse_dropped(len(part), made, counts, how, name)
    prompts = merge_prompts(prompts)
    counts["prompts_cut"] = sum(prompt.cut > 0 for prompt in prompts)
    report = {
        "rows": made,
        "tokens": tokens,
        "supervised": supervised,
        "longest": longest,
        **{key: counts[key] for key in ALWAYS},
        **{key: counts[key] for key in WHERE_ANY if counts[key]},
        **_describe_ends(counts),
        **examples.read.get(name, {}),
        "sha256": fingerprint(part),
        "tokens_sha256": digest.hexdigest(),
    }
    return TokenisedPart([], prompts, report, largest, _count_by_source(examples, name, ends))


def _pieces(count: int, sizes: Sequence[int]) -> Iterator[slice]:
    """Yield parts of at most `EXAMPLES_AT_ONCE` of `count` examples; one ends wherever a source of `sizes` ends."""
    borders = {*range(0, count, EXAMPLES_AT_ONCE), count, *accumulate(sizes)}
    for first, last in pairwise(sorted(borders)):
        yield slice(first, last)


def _count_by_source(examples: Examples, name: str, ends: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Return how many rows each source of a mixture gave; `ends` are numbers of examples, and of their rows."""
    if examples.mixture is None or name != "train":
        return ()
    rows_before = {0: 0, **dict(ends)}
    borders = [0, *accumulate(examples.mixture.sizes)]
    return tuple(rows_before[last] - rows_before[first] for first, last in pairwise(borders))


def find_largest(found: Tokenised) -> int:
    """Return the largest id of rows and prompts, -1 without any."""
    rows = int(np.concatenate([row.tokens for row in found.rows]).max(initial=-1)) if found.rows else -1
    return max(rows, *(max(prompt.input_ids, default=-1) for prompt in found.prompts), -1)


def _describe_ends(counts: Counter[str]) -> dict[str, Any]:
    """Return why rows are unclear, and where answers end."""
    lists = {
        "reasons": _named(counts, REASON),
        "stop_ids": sorted(int(token) for token in _named(counts, STOP) if not counts[INNER + token]),
        "stop_texts": list(_named(counts, MARKER)),
    }
    return {key: value for key, value in lists.items() if value}


def _named(counts: Counter[str], beginning: str) -> dict[str, int]:
    return {key.removeprefix(beginning): number for key, number in counts.items() if key.startswith(beginning)}


def _refuse_dropped(examples: int, rows: int, counts: Counter[str], how: Tokenising, name: str) -> None:
    """Raise DataError where more rows than allowed are dropped: most likely a wrong column, role or limit."""
    dropped, section = counts["dropped"], how.section
    remedy = f"raise data.max_length ({section.max_length}) or {how.format.remedy}"
    if counts["unclear"]:
        reason = max(_named(counts, REASON).items(), key=lambda pair: pair[1])[0]
        remedy = f"{reason} ({counts['unclear']} rows); use another chat template, or format completion with a template"
    if not rows and counts["skipped"]:
        raise DataError(
            f"data.{name}: no row is left: {counts['skipped']} of {examples} are too long and skipped; {remedy}"
        )
    if not rows:
        raise DataError(f"data.{name}: none of {examples} rows has a supervised token; {remedy}")
    if dropped > section.allow_dropped * examples:
        raise DataError(
            f"data.{name}: {dropped} of {examples} rows have no supervised token, more than data.allow_dropped"
            f" ({section.allow_dropped:g}); {remedy}, or set data.allow_dropped"
        )


def check_vocabulary(largest: int, vocabulary: int | None, tokenizer: Any, name: str) -> None:
    """Raise DataError for a token that the model's embedding has no row for."""
    if vocabulary is not None and largest >= vocabulary:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise DataError(
            f"data.{name}: rows use the token {token!r} with id {largest}, but the model's vocabulary is {vocabulary}:"
            " use the model's own tokenizer, or name new tokens in model.add_tokens"
        )
