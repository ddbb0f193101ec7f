"""A recipe's rows as tokens, made once: what is read, tokenised and found out is kept, and mapped by every later start.

A start from kept tokens gives the same data set as a new one, and keeps no rows in memory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

from peftlab.data.dataset import (
    Dataset,
    assemble,
    describe_examples,
    list_parts,
    tokenise,
)
from peftlab.data.kept_examples import UNWRITABLE, SpooledExamples
from peftlab.data.orders import Mixture
from peftlab.data.prompts import Prompt
from peftlab.data.records import Records, write_records
from peftlab.data.splits import Examples, load_examples
from peftlab.data.token_arrays import Layout, RowWriter, map_rows
from peftlab.data.token_key import TokenKey, try_key
from peftlab.data.token_rows import TokenRow
from peftlab.data.token_store import DamagedEntry, Entry, TokenStore
from peftlab.data.tokenised_part import TokenisedPart, tokenise_part
from peftlab.errors import one_line
from peftlab.files import why
from peftlab.recipe.schema import Data
from peftlab.tasks import Task, find_format
from peftlab.tasks.formats import TEXT, Example

# Training rows that stay as text, on which a merged model may be compared with the trained one.
TRAIN_EXAMPLES = 64
OFF = "switched off by the recipe"

Check = Callable[[Examples], int | None]
"""Looks at rows before they are tokenised; returns the size of the model's vocabulary, and raises to refuse them."""


@dataclass(frozen=True)
class TokenOrigin:
    """Where tokens are from: `made` and kept now, `read` from what an earlier start kept, or `not kept`, for a reason.

    `seconds` are those of reading or making them, `size` the bytes that are kept.
    """

    state: Literal["made", "read", "not kept"]
    seconds: float
    size: int = 0
    reason: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenData:
    """A recipe's rows before and after the tokenizer. The examples of training rows are the first ones alone."""

    examples: Examples
    dataset: Dataset
    origin: TokenOrigin


def read_data(
    section: Data,
    task: Task,
    seed: int,
    tokenizer: Any,
    store: TokenStore | None,
    check: Check = lambda examples: None,
    known_labels: Sequence[str] = (),
) -> TokenData:
    """Return a recipe's data as tokens, from `store` where they are, else made, and kept there where they can be.

    `known_labels` are those of `load_examples`. Raises DataError, and what `check` raises.
    """
    began = time.monotonic()
    key = OFF if store is None else try_key(section, task, seed, tokenizer, known_labels)
    reason, notes = key if isinstance(key, str) else None, list[str]()
    if store is not None and isinstance(key, TokenKey):
        try:
            return _Keeper(store, key, section, task, seed, tokenizer, check, notes, began, known_labels).read()
        except _Unkept as failed:
            reason = str(failed)
            notes.append(f"tokens are not kept for the next start: {reason}")
    examples = load_examples(section, task, seed, known_labels=known_labels)
    dataset = tokenise(examples, tokenizer, check(examples))
    origin = TokenOrigin("not kept", time.monotonic() - began, reason=reason, notes=tuple(notes))
    return TokenData(examples, dataset, origin)


class _Unkept(Exception):
    """Tokens could not be written or read again, with the reason as its text."""


@contextmanager
def _writing(*also: type[Exception]) -> Iterator[None]:
    """Raise `_Unkept` for what goes wrong with the disk, and for `also`."""
    try:
        yield
    except OSError as error:
        raise _Unkept(why(error)) from None
    except also as error:
        raise _Unkept(one_line(error)) from None


class _Spool(SpooledExamples):
    def append(self, example: Example, /) -> None:
        with _writing(*UNWRITABLE):
            super().append(example)


@dataclass
class _Keeper:
    """Finds the entry of a key, or makes it."""

    store: TokenStore
    key: TokenKey
    section: Data
    task: Task
    seed: int
    tokenizer: Any
    check: Check
    notes: list[str]
    began: float
    known_labels: Sequence[str] = ()

    def read(self) -> TokenData:
        entry = self._find()
        if entry is None:
            with ExitStack() as stack:
                with _writing():
                    stack.enter_context(self.store.locked(self.key.digest))
                entry = self._find()  # another process may have made it while this one waited
                if entry is None:
                    with _writing():
                        folder = stack.enter_context(self.store.building(self.key.digest))
                    return self._make(folder)
        examples, parts, described = self._map(entry)
        return self._assemble(examples, parts, described, self.check(examples), "read", entry.size)

    def _find(self) -> Entry | None:
        try:
            return self.store.find(self.key.digest)
        except DamagedEntry as damage:
            self.notes.append(f"kept tokens are damaged ({damage}): they are made again")
            self.store.remove(self.key.digest)
            return None

    def _make(self, folder: Path) -> TokenData:
        """Read and tokenise the rows and keep them, but for files that changed meanwhile: then for this start alone."""
        with closing(_Spools(folder)) as spools:
            examples = load_examples(self.section, self.task, self.seed, spools.open, self.key.open, self.known_labels)
            vocabulary = self.check(examples)
            content = _write_entry(folder, examples, self.tokenizer)
        about = {"sources": list(self.key.sources), "task": self.task.name}
        with _writing():
            entry = self.store.publish(
                folder, self.key.digest if self.key.is_still_true() else None, content | {"about": about}
            )
        return self._assemble(*self._map(entry), vocabulary, "made", entry.size)

    def _map(self, entry: Entry) -> tuple[Examples, dict[str, TokenisedPart], dict[str, Any]]:
        try:
            return _map_entry(entry, self.section, self.task)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _Unkept(f"they cannot be read again ({type(error).__name__}: {one_line(error)})") from None

    def _assemble(
        self,
        examples: Examples,
        parts: dict[str, TokenisedPart],
        described: dict[str, Any],
        vocabulary: int | None,
        state: Literal["made", "read"],
        size: int,
    ) -> TokenData:
        dataset = assemble(examples, parts, described, self.tokenizer, vocabulary)
        return TokenData(
            examples, dataset, TokenOrigin(state, time.monotonic() - self.began, size, notes=tuple(self.notes))
        )


class _Spools:
    """The temporary files of one start."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._opened = folder, list[_Spool]()

    def open(self) -> _Spool:
        self._opened.append(_Spool(self._folder))
        return self._opened[-1]

    def close(self) -> None:
        for one in self._opened:
            one.close()


def _write_entry(folder: Path, examples: Examples, tokenizer: Any) -> dict[str, Any]:
    """Tokenise all parts into files of a folder, and return what else has to be kept of them."""
    parts = {}
    for name, part, layout in list_parts(examples):
        with _writing(), closing(RowWriter(partial(_open_array, folder, name))) as rows:
            collect = partial(_collect, rows, examples.task.row_class)
            found = tokenise_part(examples, part, layout, tokenizer, name, collect)
        kept = part[:TRAIN_EXAMPLES] if name == "train" else part
        _write_records(folder, f"{name}.examples", map(_fields, kept))
        _write_records(folder, f"{name}.prompts", map(_prompt_fields, found.prompts))
        parts[name] = {
            "layout": list(rows.layout),
            "report": found.report,
            "largest_id": found.largest_id,
            "by_source": list(found.by_source),
        }
    mixture = None if examples.mixture is None else asdict(examples.mixture)
    content = {
        "parts": parts,
        "described": describe_examples(examples, tokenizer),
        "examples": {
            "format": examples.section.format,
            "labels": examples.labels,
            "repeated": examples.repeated,
            "kept_together": examples.kept_together,
            "read": examples.read,
            "mixture": mixture,
        },
    }
    return _as_json(content)


def _collect(rows: RowWriter, row_class: type[TokenRow], found: list[TokenRow]) -> None:
    with _writing(ValueError):
        if any(type(row) is not row_class for row in found):
            raise ValueError(f"a row is not a {row_class.__name__}")
        rows.extend(found)


def _as_json(content: dict[str, Any]) -> dict[str, Any]:
    """Return a report as it will be read again, where that is the same."""
    with _writing(TypeError, ValueError):
        again: dict[str, Any] = json.loads(json.dumps(content))
        for name in ("described", "parts"):
            if again[name] != content[name]:
                raise ValueError("a report has a value that JSON does not keep as it is")
    return again


def _write_records(folder: Path, name: str, values: Iterable[Any]) -> None:
    lines, ends = _record_files(folder, name)
    with _writing(TypeError, ValueError), lines.open("wb") as file, ends.open("wb") as places:
        write_records(values, file, places)


def _array_file(folder: Path, part: str, array: str) -> Path:
    return folder / f"{part}.{array}"


def _open_array(folder: Path, part: str, array: str) -> BinaryIO:
    return _array_file(folder, part, array).open("wb")


def _record_files(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.jsonl", folder / f"{name}.ends"


def _fields(example: Example) -> list[Any]:
    return [getattr(example, one.name) for one in fields(example)]


def _prompt_fields(prompt: Prompt) -> list[Any]:
    return [prompt.text, list(prompt.input_ids), list(prompt.references), prompt.lead, prompt.cut]


def _make_prompt(kept: list[Any]) -> Prompt:
    text, input_ids, references, lead, cut = kept
    return Prompt(text, input_ids, tuple(references), lead, cut)


def _map_entry(entry: Entry, section: Data, task: Task) -> tuple[Examples, dict[str, TokenisedPart], dict[str, Any]]:
    """Return what an entry has: the examples, the parts as tokens, and what is said of the examples."""
    folder, kept = entry.folder, entry.content["examples"]
    section = section.model_copy(update={"format": kept["format"]})
    parts, texts = {}, {}
    for name, found in entry.content["parts"].items():
        example = (TEXT if name == "general" else find_format(kept["format"])).example
        texts[name] = Records(*_record_files(folder, f"{name}.examples"), partial(_make_example, example))
        parts[name] = TokenisedPart(
            map_rows(task.row_class, Layout(*found["layout"]), partial(_array_file, folder, name)),
            Records(*_record_files(folder, f"{name}.prompts"), _make_prompt),
            found["report"],
            found["largest_id"],
            tuple(found["by_source"]),
        )
    examples = Examples(
        section,
        task,
        texts["train"],
        texts["evaluation"],
        kept["labels"],
        texts["test"],
        texts["general"],
        kept["repeated"],
        kept["kept_together"],
        kept["read"],
        None if kept["mixture"] is None else _make_mixture(kept["mixture"]),
    )
    return examples, parts, entry.content["described"]


def _make_example(example: type, kept: list[Any]) -> Example:
    return example(*kept)


def _make_mixture(kept: dict[str, Any]) -> Mixture:
    return Mixture(tuple(kept["names"]), tuple(kept["sizes"]), tuple(kept["weights"]), kept["all_exhausted"])
