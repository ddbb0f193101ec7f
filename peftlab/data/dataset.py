"""All data of a recipe: rows chosen by the seed, tokenised, with a report of what was read and cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from peftlab.data.chat import ChatSettings, ChatTemplate, EncodedChat, encode_chats
from peftlab.data.examples import content_key, fingerprint, read_examples
from peftlab.data.sources import read_source
from peftlab.data.token_rows import TokenRow
from peftlab.data.tokens import MARKER, REASON, STOP, cut_chat_prompt, cut_prompt, encode_prompt, split_prompt
from peftlab.errors import DataError, listed, one_line
from peftlab.recipe.schema import Data
from peftlab.tasks import Task, find_format, tasks_taking
from peftlab.tasks.base import Tokenising
from peftlab.tasks.formats import CHAT, TEXT, Chat, Completion, Example, Text

Part = Literal["evaluation", "test", "general"]
# What a random order is for: each has its own, whatever else is drawn. 4 is the order of an epoch.
HELD_OUT, TRAIN_ROWS, EVALUATION_ROWS, HELD_OUT_TEST, TEST_ROWS = 1, 2, 3, 5, 6


@dataclass(frozen=True)
class Examples:
    """The rows of a recipe before any tokenizer: enough to know the labels, and so to build the model."""

    section: Data
    task: Task
    train: list[Example]
    evaluation: list[Example]
    labels: list[str] | None
    test: list[Example] = field(default_factory=list)
    general: list[Text] = field(default_factory=list)


@dataclass(frozen=True)
class Prompt:
    """What text is generated from, and the texts that would be right (all rows with this same prompt).

    `lead` is how many tokens at the beginning a cut keeps (the opening token, and the system text of a chat), `cut`
    how many tokens `data.max_length` removed after them.
    """

    text: str
    input_ids: list[int]
    references: tuple[str, ...]
    lead: int = 0
    cut: int = 0


@dataclass(frozen=True)
class Dataset:
    """Tokenised rows. `labels` are the classes in the order of their numbers (None: a task without classes).

    `evaluation` rows choose (the best step, a learning rate), `test` rows only report, `general` text shows forgetting.
    """

    task: Task
    train: list[TokenRow]
    evaluation: list[TokenRow]
    labels: list[str] | None
    prompts: list[Prompt]
    pad_id: int
    report: dict[str, Any]
    test: list[TokenRow] = field(default_factory=list)
    test_prompts: list[Prompt] = field(default_factory=list)
    general: list[TokenRow] = field(default_factory=list)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The special tokens that end what is supervised in training, at which generation stops."""
        return tuple(self.report["train"].get("stop_ids", ()))

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The end markers of training that are plain text, at which generation stops too."""
        return tuple(self.report["train"].get("stop_texts", ()))

    def held_out(self, part: Part) -> tuple[list[TokenRow], list[Prompt]]:
        """Return the rows of one part and its prompts."""
        parts = {
            "evaluation": (self.evaluation, self.prompts),
            "test": (self.test, self.test_prompts),
            "general": (self.general, []),
        }
        return parts[part]

    @property
    def all_held_out(self) -> list[TokenRow]:
        return [*self.evaluation, *self.test, *self.general]


def load_data(section: Data, tokenizer: Any, task: Task, seed: int, vocabulary: int | None = None) -> Dataset:
    """Read, choose and tokenise a recipe's data; see `load_examples` and `tokenise`. Raises DataError."""
    return tokenise(load_examples(section, task, seed), tokenizer, vocabulary)


def load_examples(section: Data, task: Task, seed: int) -> Examples:
    """Read a recipe's rows, hold out and draw by `seed`, and list the labels of the whole training source."""
    if not task.takes(section.format):
        taken, owners = (" or ".join(names) for names in ((f.name for f in task.formats), tasks_taking(section.format)))
        raise DataError(
            f"data.format {section.format} does not suit model.task {task.name}: it belongs to task {owners}, and "
            f"{task.name} needs format {taken}"
        )
    train = read_examples(read_source(section.train, "train"), section)
    labels = task.list_labels(train)
    if labels is not None and len(labels) < task.fewest_labels:
        found = f"{one_line(labels[0], 60)!r} is the only label" if labels else "no row has a label"
        needed = "at least two" if task.fewest_labels == 2 else "at least one"
        raise DataError(f"{section.train}: {found}; a classifier needs {needed}")
    train, evaluation = _set_aside(train, section, "evaluation", task, labels, seed, HELD_OUT)
    train, test = _set_aside(train, section, "test", task, labels, seed, HELD_OUT_TEST)
    return Examples(
        section,
        task,
        _draw(train, section.train_rows, seed, TRAIN_ROWS),
        _draw(evaluation, section.evaluation_rows, seed, EVALUATION_ROWS),
        labels,
        _draw(test, section.test_rows, seed, TEST_ROWS),
        _read_general(section.general),
    )


def tokenise(examples: Examples, tokenizer: Any, vocabulary: int | None = None) -> Dataset:
    """Tokenise rows and report on them. `vocabulary` is the model's: an id beyond it raises DataError."""
    section = examples.section
    train, train_report = _tokenise_part(examples, examples.train, tokenizer, "train")
    evaluation, evaluation_report = _tokenise_part(examples, examples.evaluation, tokenizer, "evaluation")
    test, test_report = _tokenise_part(examples, examples.test, tokenizer, "test")
    general, general_report = _tokenise_part(examples, examples.general, tokenizer, "general")
    _check_vocabulary([*train, *evaluation, *test, *general], vocabulary)
    seen = {content_key(example) for example in examples.train}
    report: dict[str, Any] = {
        "format": section.format,
        "train": train_report,
        "evaluation": evaluation_report,
        "overlap": sum(content_key(example) in seen for example in examples.evaluation),
    }
    if test:
        report |= {"test": test_report, "test_overlap": sum(content_key(example) in seen for example in examples.test)}
    if general:
        report["general"] = general_report
    if examples.labels is not None:
        report["labels"] = examples.labels
    if section.format == CHAT.name and ChatTemplate(tokenizer, section.template_kwargs).calls(
        "strftime_now", examples.train[0].messages, examples.train[0].tools
    ):
        report["dated"] = True
    prompts, test_prompts = (
        list_prompts(part, tokenizer, section.max_length, **_options(section))
        for part in (examples.evaluation, examples.test)
    )
    for name, found in (("evaluation", prompts), ("test", test_prompts)):
        if cut := sum(prompt.cut > 0 for prompt in found):
            report[name]["prompts_cut"] = cut
    return Dataset(
        examples.task,
        train,
        evaluation,
        examples.labels,
        prompts,
        find_pad_id(tokenizer),
        report,
        test,
        test_prompts,
        general,
    )


def find_pad_id(tokenizer: Any) -> int:
    """Return an id to pad with; any would do, since masks come from lengths."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(i for i in ids if i is not None)


def list_prompts(
    examples: Sequence[Example], tokenizer: Any, max_length: int, chat: ChatSettings | None = None
) -> list[Prompt]:
    """Return the distinct prompts of completions and chats in their order, each with all its references.

    A chat's last supervised answer is the reference, the tokens of its row before it the prompt. Texts and labelled
    texts have none.
    """
    if examples and isinstance(examples[0], Chat):
        encoded = encode_chats(examples, tokenizer, chat or ChatSettings())
        found = [_chat_prompt(one, tokenizer, max_length) for one in encoded if one.turns and one.turns[-1].message]
    else:
        found = [_text_prompt(one, tokenizer, max_length) for one in examples if isinstance(one, Completion)]
    merged: dict[tuple[int, ...], Prompt] = {}
    for prompt in found:
        key = tuple(prompt.input_ids)
        known = merged[key].references if key in merged else ()
        merged[key] = replace(merged.get(key, prompt), references=known + prompt.references)
    return list(merged.values())


def _text_prompt(example: Completion, tokenizer: Any, max_length: int) -> Prompt:
    prompt, completion = split_prompt(example)
    whole = encode_prompt(tokenizer, prompt)
    lead = int(len(whole) > 0 and whole[0] == tokenizer.bos_token_id)
    ids = cut_prompt(whole, lead, max_length)
    return Prompt(prompt, ids, (completion.strip(),), lead, len(whole) - len(ids))


def _chat_prompt(chat: EncodedChat, tokenizer: Any, max_length: int) -> Prompt:
    """Return what is before a chat's last supervised answer, with that answer as generated text would be decoded."""
    pieces, turn = chat.last_answer, chat.turns[-1]
    supervised = [token for piece in pieces for token in chat.ids[piece.first : piece.last].tolist()]
    answer = tokenizer.decode(supervised, skip_special_tokens=True).strip()
    reference = answer.removesuffix("" if turn.stop is not None else turn.marker).strip()
    ids = cut_chat_prompt(chat, max_length)
    return Prompt(chat.prompt, ids, (reference,), chat.lead, pieces[0].first - len(ids))


def _options(section: Data) -> dict[str, Any]:
    """Return what the format's own tokenising needs."""
    if section.format != CHAT.name:
        return {}
    return {"chat": ChatSettings(section.supervise, section.thinking, section.template_kwargs)}


def tokenising(examples: Examples, tokenizer: Any, counts: Counter[str]) -> Tokenising:
    """Return how a recipe's examples become rows; `counts` gains what happens to them."""
    section = examples.section
    return Tokenising(tokenizer, section.max_length, counts, examples.labels or (), _options(section))


def _tokenise_part(
    examples: Examples, part: Sequence[Example], tokenizer: Any, name: str
) -> tuple[list[TokenRow], dict[str, Any]]:
    if not part:
        return [], {"rows": 0}
    counts = Counter[str]()
    rows = examples.task.tokenise(part, tokenising(examples, tokenizer, counts))
    _refuse_dropped(len(part), counts, examples.section, name)
    lengths = [len(row.input_ids) for row in rows]
    return rows, {
        "rows": len(rows),
        "tokens": sum(lengths),
        "supervised": sum(row.supervised for row in rows),
        "longest": max(lengths),
        **{key: int(counts[key]) for key in ("truncated", "lost_supervised", "straddling", "unaligned", "dropped")},
        **_describe_ends(counts),
        "sha256": fingerprint(part),
    }


def _describe_ends(counts: Counter[str]) -> dict[str, Any]:
    """Return what a report says of rows that are unclear or carry special tokens, and of where answers end."""
    found: dict[str, Any] = {key: counts[key] for key in ("unclear", "carried", "unended", "unprompted") if counts[key]}
    lists = {
        "reasons": _named(counts, REASON),
        "stop_ids": sorted(int(token) for token in _named(counts, STOP)),
        "stop_texts": list(_named(counts, MARKER)),
    }
    return found | {key: value for key, value in lists.items() if value}


def _named(counts: Counter[str], beginning: str) -> dict[str, int]:
    return {key.removeprefix(beginning): number for key, number in counts.items() if key.startswith(beginning)}


def _refuse_dropped(rows: int, counts: Counter[str], section: Data, name: str) -> None:
    """Raise DataError where more rows than allowed are dropped: most likely a wrong column, role or limit."""
    dropped = counts["dropped"]
    remedy = f"raise data.max_length ({section.max_length}) or {find_format(section.format).remedy}"
    if counts["unclear"]:
        reason = max(_named(counts, REASON).items(), key=lambda pair: pair[1])[0]
        remedy = f"{reason} ({counts['unclear']} rows); use another chat template, or format completion with a template"
    if dropped == rows:
        raise DataError(f"data.{name}: none of {rows} rows has a supervised token; {remedy}")
    if dropped > section.allow_dropped * rows:
        raise DataError(
            f"data.{name}: {dropped} of {rows} rows have no supervised token, more than data.allow_dropped"
            f" ({section.allow_dropped:g}); {remedy}, or set data.allow_dropped"
        )


def _permute(n: int, seed: int, purpose: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([purpose, seed]))).permutation(n)


def _set_aside(
    rows: list[Example], section: Data, part: str, task: Task, labels: list[str] | None, seed: int, purpose: int
) -> tuple[list[Example], list[Example]]:
    """Return what stays for training, and a part that is read from its own source or taken from `rows`."""
    wanted = getattr(section, part)
    if wanted is None:
        return rows, []
    if isinstance(wanted, str):
        aside = read_examples(read_source(wanted, "test"), section)
        _check_labels(aside, task, labels, wanted)
        return rows, aside
    count = wanted if isinstance(wanted, int) else max(1, round(wanted * len(rows)))
    if count >= len(rows):
        raise DataError(f"data.{part}: holding out {wanted} leaves no training row of {len(rows)}")
    order = _permute(len(rows), seed, purpose)
    return [rows[i] for i in order[count:]], [rows[i] for i in order[:count]]


def _read_general(source: str | None) -> list[Text]:
    if source is None:
        return []
    return read_examples(read_source(source, "test"), Data.model_validate({"train": source, "format": TEXT.name}))


def _draw(rows: list[Example], count: int | None, seed: int, purpose: int) -> list[Example]:
    if count is None or count >= len(rows):
        return rows
    return [rows[i] for i in _permute(len(rows), seed, purpose)[:count]]


def _check_labels(examples: Sequence[Example], task: Task, labels: list[str] | None, source: str) -> None:
    known = labels or []
    for row, example in enumerate(examples, start=1):
        if unknown := [label for label in task.labels_of(example) if label not in known]:
            fault = f"label {one_line(unknown[0], 60)!r} never occurs in training; known labels: {listed(known)}"
            raise DataError(f"{source}: row {row}: {fault}")


def _check_vocabulary(rows: Sequence[TokenRow], vocabulary: int | None) -> None:
    largest = max(int(row.input_ids.max()) for row in rows)
    if vocabulary is not None and largest >= vocabulary:
        raise DataError(
            f"token id {largest} is beyond the model's vocabulary of {vocabulary}:"
            " the tokenizer belongs to another model"
        )
