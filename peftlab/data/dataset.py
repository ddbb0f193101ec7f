"""All data of a recipe as tokens, with a report of what was read, cut and left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal

from peftlab.data.chat import ChatTemplate
from peftlab.data.leakage import count_leaks
from peftlab.data.orders import Mixture, Order, Shuffled
from peftlab.data.prompts import Prompt
from peftlab.data.splits import Examples, load_examples
from peftlab.data.stream import Stream, StreamedSources
from peftlab.data.token_arrays import JoinedRows, ListedRows
from peftlab.data.token_rows import TokenRow
from peftlab.data.tokenised_part import TokenisedPart, check_vocabulary, find_largest, tokenise_part, tokenising
from peftlab.errors import DataError
from peftlab.models.tokenizer import find_pad_id
from peftlab.recipe.schema import Data
from peftlab.tasks import Task, find_format
from peftlab.tasks.formats import CHAT, TEXT, Example, Format

Part = Literal["evaluation", "test", "general"]


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
        check_vocabulary(part.largest_id, vocabulary, tokenizer, name)
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
        check_vocabulary(find_largest(found), vocabulary, tokenizer, "train")
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
