"""All data of a recipe as tokens, with a report of what was read, cut and left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np

from peftlab.data.chat import ChatTemplate
from peftlab.data.examples import fingerprint
from peftlab.data.fingerprints import RowDigest
from peftlab.data.leakage import count_leaks
from peftlab.data.orders import Mixture, Order, Shuffled
from peftlab.data.prompts import Prompt, merge_prompts
from peftlab.data.splits import Examples, load_examples
from peftlab.data.stream import Stream, StreamedSources
from peftlab.data.token_arrays import JoinedRows, ListedRows, sizes_of
from peftlab.data.token_rows import TokenRow
from peftlab.data.tokens import MARKER, REASON, STOP
from peftlab.errors import DataError
from peftlab.models.tokenizer import find_pad_id
from peftlab.recipe.schema import Data
from peftlab.tasks import Task, find_format
from peftlab.tasks.base import Tokenised, Tokenising
from peftlab.tasks.formats import CHAT, TEXT, Example, Format

__all__ = ["Dataset", "Examples", "Part", "Prompt", "find_pad_id", "load_data", "load_examples", "tokenise"]

Part = Literal["evaluation", "test", "general"]
# What a report always says of a part, and what only where it is not zero.
ALWAYS = ("truncated", "lost_supervised", "straddling", "unaligned", "dropped")
# Memory for this many examples and their tokens is needed at a time.
EXAMPLES_AT_ONCE = 4096
WHERE_ANY = (
    "cut_tokens cut_text lost_tokens cut_turns chunked skipped unclear carried unended unprompted prompts_cut".split()
)


@dataclass(frozen=True)
class Dataset:
    """Tokenised rows. `labels` are the classes in the order of their numbers (None: a task without classes).

    `evaluation` rows choose (the best step, a learning rate), `test` rows only report, `general` text shows forgetting.
    """

    task: Task
    train: Sequence[TokenRow]
    evaluation: Sequence[TokenRow]
    labels: list[str] | None
    prompts: Sequence[Prompt]
    pad_id: int
    report: dict[str, Any]
    test: Sequence[TokenRow] = field(default_factory=list)
    test_prompts: Sequence[Prompt] = field(default_factory=list)
    general: Sequence[TokenRow] = field(default_factory=list)
    mixture: Mixture | None = None
    stream: Stream | None = None

    def order(self, seed: int) -> Order:
        """Return the order in which training takes the rows."""
        return Shuffled(seed, len(self.train)) if self.mixture is None else self.mixture.order(seed)

    @property
    def longest_train(self) -> Sequence[TokenRow]:
        """The training rows, or rows as long as any of a stream can be."""
        return self.train if self.stream is None else self.stream.longest_rows()

    @property
    def format(self) -> Format:
        """The format of the rows, but for general text."""
        return find_format(self.report["format"])

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The special tokens that end what is supervised in training, at which generation stops."""
        return tuple(self.report["train"].get("stop_ids", ()))

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The end markers of training that are plain text, at which generation stops too."""
        return tuple(self.report["train"].get("stop_texts", ()))

    def held_out(self, part: Part) -> tuple[Sequence[TokenRow], Sequence[Prompt]]:
        """Return the rows of one part and its prompts."""
        parts: dict[Part, tuple[Sequence[TokenRow], Sequence[Prompt]]] = {
            "evaluation": (self.evaluation, self.prompts),
            "test": (self.test, self.test_prompts),
            "general": (self.general, []),
        }
        return parts[part]

    @property
    def all_held_out(self) -> Sequence[TokenRow]:
        return JoinedRows([self.evaluation, self.test, self.general])


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


def load_data(section: Data, tokenizer: Any, task: Task, seed: int, vocabulary: int | None = None) -> Dataset:
    """Read, choose and tokenise a recipe's data; see `load_examples` and `tokenise`. Raises DataError."""
    return tokenise(load_examples(section, task, seed), tokenizer, vocabulary)


def tokenise(
    examples: Examples, tokenizer: Any, vocabulary: int | None = None, trained: dict[str, Any] | None = None
) -> Dataset:
    """Tokenise rows and report on them. `vocabulary` is the model's: an id beyond it raises DataError.

    `trained` is what an earlier report says of the training rows, for a run that is only used: it has none here.
    """
    parts = {}
    for name, part, layout in list_parts(examples):
        rows = ListedRows()
        found = tokenise_part(examples, part, layout, tokenizer, name, rows.extend)
        parts[name] = replace(found, rows=rows)
    return assemble(examples, parts, describe_examples(examples, tokenizer), tokenizer, vocabulary, trained)


def list_parts(examples: Examples) -> list[tuple[str, Sequence[Example], Format]]:
    """Return name, examples and format of every part."""
    layout = examples.format
    return [
        ("train", examples.train, layout),
        ("evaluation", examples.evaluation, layout),
        ("test", examples.test, layout),
        ("general", examples.general, TEXT),
    ]


def assemble(
    examples: Examples,
    parts: Mapping[str, TokenisedPart],
    described: dict[str, Any],
    tokenizer: Any,
    vocabulary: int | None = None,
    trained: dict[str, Any] | None = None,
) -> Dataset:
    """Return the data set of tokenised parts; `described` is what `describe_examples` returned. Raises DataError."""
    for name, part in parts.items():
        _check_vocabulary(part.largest_id, vocabulary, tokenizer, name)
    report: dict[str, Any] = {"format": examples.format.name} | {name: part.report for name, part in parts.items()}
    report = {name: part for name, part in report.items() if name in ("train", "evaluation") or part != {"rows": 0}}
    if trained is not None:
        report["train"] = trained
    report |= described
    mixture, stream = None, None
    if examples.mixture is not None:
        mixture = replace(examples.mixture, sizes=_rows_by_source(examples.mixture, parts["train"]))
        report["mixture"] = mixture.describe()
    if examples.streamed is not None:
        stream = _open_stream(examples, examples.streamed, parts["train"].rows, tokenizer, vocabulary)
        hashes = {key: _hash_stream(report["train"][key], examples.streamed) for key in ("sha256", "tokens_sha256")}
        report["train"] = report["train"] | hashes
    return Dataset(
        examples.task,
        parts["train"].rows,
        parts["evaluation"].rows,
        examples.labels,
        parts["evaluation"].prompts,
        find_pad_id(tokenizer, vocabulary),
        report,
        parts["test"].rows,
        parts["test"].prompts,
        parts["general"].rows,
        mixture,
        stream,
    )


def _rows_by_source(mixture: Mixture, train: TokenisedPart) -> tuple[int, ...]:
    """Return how many rows each source of a mixture gives. Raises DataError for one that gives none."""
    for name, rows in zip(mixture.names, train.by_source, strict=True):
        if not rows:
            raise DataError(f"{name}: gives no training row, so none can be drawn by its weight; remove the source")
    return train.by_source


def _open_stream(
    examples: Examples, streamed: StreamedSources, sample: Sequence[TokenRow], tokenizer: Any, vocabulary: int | None
) -> Stream:
    how = tokenising(examples, tokenizer, Counter())

    def tokenise_one(example: Example) -> list[TokenRow]:
        found = examples.task.tokenise([example], how)
        _check_vocabulary(find_largest(found), vocabulary, tokenizer, "train")
        return found.rows

    section = examples.section
    return Stream(streamed, tokenise_one, sample, section.max_length, section.target_limit)


def _hash_stream(sample: str, streamed: StreamedSources) -> str:
    """Return what identifies a stream: its first rows, and the sizes of its files."""
    return sha256(f"{sample} {streamed.fingerprint()}".encode()).hexdigest()


def describe_examples(examples: Examples, tokenizer: Any) -> dict[str, Any]:
    """Return what a report says of the rows before any tokenizer: labels, what parts share, how they were split."""
    parts = {"train": examples.train, "evaluation": examples.evaluation, "test": examples.test}
    found: dict[str, Any] = {"leaks": count_leaks(parts, examples.format)}
    if examples.repeated:
        found["split"] = {"repeated": examples.repeated, "together": examples.kept_together}
    if examples.labels is not None:
        found["labels"] = examples.labels
    chats = next((part for part in parts.values() if len(part)), ())
    if (
        len(chats)
        and examples.format == CHAT
        and examples.section.date is None
        and ChatTemplate(tokenizer, examples.section.template_kwargs).calls(
            "strftime_now", chats[0].messages, chats[0].tools
        )
    ):
        found["dated"] = True
    return found


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
        "stop_ids": sorted(int(token) for token in _named(counts, STOP)),
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


def _check_vocabulary(largest: int, vocabulary: int | None, tokenizer: Any, name: str) -> None:
    """Raise DataError for a token that the model's embedding has no row for."""
    if vocabulary is not None and largest >= vocabulary:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise DataError(
            f"data.{name}: rows use the token {token!r} with id {largest}, but the model's vocabulary is {vocabulary}:"
            " use the model's own tokenizer, or name new tokens in model.add_tokens"
        )
