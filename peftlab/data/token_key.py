"""What the tokens of a recipe's data depend on, as one key: the sources' content, the tokenizer, settings, versions."""

from __future__ import annotations

import inspect
import json
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from peftlab.data.fingerprints import fingerprint_template, fingerprint_tokenizer
from peftlab.data.sources import Source, read_source
from peftlab.data.token_store import cache_folder
from peftlab.errors import PeftlabError
from peftlab.recipe.schema import Data, list_sources
from peftlab.tasks.base import Task

PACKAGE = Path(__file__).parent.parent
# Everything that decides how text becomes rows and what is reported of them: a changed line is another key.
CODE = ("data/**/*.py", "tables/*.py", "tasks/*.py", "models/tokenizer.py", "recipe/schema.py", "files.py", "errors.py")
LIBRARIES = ("transformers", "tokenizers", "jinja2", "numpy", "datasets", "pyarrow")
# Settings of a tokenizer that say where it came from, not what it does.
PLACES = {"name_or_path", "tokenizer_file", "vocab_file", "merges_file", "chat_template", "special_tokens_map_file"}
# Attributes that decide about tokens, and that a program may have set since the tokenizer was loaded.
ATTRIBUTES = ("truncation_side", "split_special_tokens", "clean_up_tokenization_spaces")
DATE_CALL = re.compile(r"strftime_now\s*\(\s*(?:(['\"])(?P<format>[^'\"]*)\1\s*\))?")
# Of a date's format: year, month, day, week and weekday. Any other says the time, which changes within a day.
DAYS = re.compile(r"%-?[aAbBdejmuUVwWxyYG%]")


State = tuple[str, int, int, int, int]
"""A file: its path, size, times of its last changes, and number."""


class Uncacheable(Exception):
    """Rows whose tokens cannot be kept, with the reason as its text."""


@dataclass(frozen=True)
class TokenKey:
    """`digest` names the tokens; `sources` are how people call them. `opened` are the sources, as they were read."""

    digest: str
    sources: tuple[str, ...]
    opened: dict[tuple[str, str], Source] = field(repr=False, compare=False)
    states: tuple[Any, ...] = field(repr=False)
    day: str | None = None

    def open(self, text: str, part_default: str) -> Source:
        """Return the source that was looked at for the key, or read one."""
        return self.opened.get((text, part_default)) or read_source(text, part_default)

    def is_still_true(self) -> bool:
        """Return whether no file changed, and no day began, since the key was made."""
        try:
            return self.states == tuple(_states(self.opened.values())) and self.day in (None, date.today().isoformat())
        except OSError:
            return False


def find_key(section: Data, task: Task, seed: int, tokenizer: Any, known_labels: Sequence[str] = ()) -> TokenKey:
    """Return the key of a recipe's tokens; every file of its sources is read for it, at the speed of the disk.

    Raises Uncacheable where the same key could mean other tokens, and DataError for sources that are not there.
    """
    if section.streaming:
        raise Uncacheable("rows of a stream are tokenised while training takes them")
    opened = {place: read_source(*place) for place in _list_places(section)}
    states = tuple(_states(opened.values()))
    _refuse_larger_than_disk(states)
    day = _day_of(section, tokenizer)
    content = {
        "section": section.model_dump(mode="json"),
        "task": task.name,
        "seed": seed,
        "known_labels": list(known_labels),
        "sources": [[list(place), _describe_source(source)] for place, source in opened.items()],
        "tokenizer": _describe_tokenizer(tokenizer),
        "code": [_digest_of_code(), *_foreign_code(type(task)), *_foreign_code(type(tokenizer))],
        "libraries": _versions(),
        "day": day,
    }
    digest = sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return TokenKey(digest, tuple(dict.fromkeys(text for text, _ in opened)), opened, states, day)


def _refuse_larger_than_disk(states: Iterable[State]) -> None:
    """Raise Uncacheable for files that are larger than the room for their tokens: reading them would take hours."""
    place = next(path for path in (cache_folder(), *cache_folder().parents) if path.exists())
    size, free = sum(state[1] for state in states), shutil.disk_usage(place).free
    if size > free:
        raise Uncacheable(f"the files have {size:,} bytes, and {free:,} are free in {place}")


def _list_places(section: Data) -> Iterator[tuple[str, str]]:
    """Yield every source of rows, and the part whose split it has where it names none."""
    for part, default in (("train", "train"), ("evaluation", "evaluation"), ("test", "test"), ("general", "test")):
        found = getattr(section, part)
        if isinstance(found, str | tuple):
            yield from ((entry.source, default) for entry in list_sources(found))


def _states(sources: Iterable[Source]) -> Iterator[State]:
    for source in sources:
        for piece in source.pieces:
            for path in piece.files():
                found = path.stat()
                # A program can set a file's mtime back, and not its ctime.
                yield str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _describe_source(source: Source) -> list[Any]:
    pieces = []
    for piece in source.pieces:
        digest = piece.digest()
        if digest is None:
            raise Uncacheable(f"{piece.name} has no files that tell when it changed")
        pieces.append([piece.name, digest])
    return [pieces, list(source.bounds)]


def _describe_tokenizer(tokenizer: Any) -> list[Any]:
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise Uncacheable(f"{type(tokenizer).__name__} does not say all that its tokens depend on")
    settings = {key: _plain(value) for key, value in tokenizer.init_kwargs.items() if key not in PLACES}
    return [
        type(tokenizer).__qualname__,
        fingerprint_tokenizer(tokenizer),
        fingerprint_template(tokenizer),
        list(tokenizer.model_input_names),
        [getattr(tokenizer, name, None) for name in ATTRIBUTES],
        settings,
    ]


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; of an object its class and its text where that names no address."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return [type(value).__name__, re.sub(r" at 0x[0-9a-f]+", "", repr(value))]


def _day_of(section: Data, tokenizer: Any) -> str | None:
    """Return the present day where the chat template may write it and the recipe names none.

    Raises Uncacheable where it may write the time.
    """
    templates = getattr(tokenizer, "chat_template", None) or ""
    text = "\n".join(map(str, templates.values())) if isinstance(templates, dict) else str(templates)
    if section.date or section.format not in (None, "chat") or "strftime_now" not in text:
        return None
    for call in DATE_CALL.finditer(text):
        if call["format"] is None or re.search(r"%[^%]", DAYS.sub("", call["format"])):
            raise Uncacheable("the chat template writes the time, or a date in a form that is not known before")
    return date.today().isoformat()


@lru_cache(maxsize=1)
def _digest_of_code() -> str:
    digest, found = sha256(), sorted({path for pattern in CODE for path in PACKAGE.glob(pattern)})
    if len(found) < len(CODE):
        raise Uncacheable("the source files of peftlab are not there to tell its version")
    for path in found:
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _foreign_code(kind: type) -> list[str]:
    """Return digests of the modules of a class and its bases that are of neither peftlab nor transformers."""
    modules = {base.__module__ for base in kind.__mro__} - {"builtins", "abc", "typing"}
    own = [name for name in sorted(modules) if name.partition(".")[0] not in ("peftlab", "transformers")]
    return [_digest_of_module(name) for name in own]


def _digest_of_module(name: str) -> str:
    try:
        return sha256(inspect.getsource(sys.modules[name]).encode()).hexdigest()
    except (OSError, TypeError, KeyError):
        raise Uncacheable(f"the code of {name} is not there to tell its version") from None


def _versions() -> list[str]:
    return [platform.python_version(), *(f"{name} {_version(name)}" for name in LIBRARIES)]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"


def try_key(section: Data, task: Task, seed: int, tokenizer: Any, known_labels: Sequence[str] = ()) -> TokenKey | str:
    """Return the key, or the reason why there is none; what is wrong with the sources is left to who reads them."""
    try:
        return find_key(section, task, seed, tokenizer, known_labels)
    except Uncacheable as reason:
        return str(reason)
    except (PeftlabError, OSError, ValueError):
        return "the sources cannot be read"
