"""A conversation with one or several runs on one loaded base: each has its own history."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peftlab.errors import StorageError, UsageError, listed, nearest
from peftlab.files import refuse_output_file, write_output
from peftlab.recipe.schema import Generation
from peftlab.runs.loaded import BASE, Bases, LoadedRun, base_key, open_writing_run
from peftlab.runs.requests import Request, ask, refuse_unreadable, takes_chats, with_system
from peftlab.tasks.formats import Chat
from peftlab.world.open import open_world
from peftlab.world.quiet import quiet_libraries

SETTINGS = ("max_new_tokens", "temperature", "top_p", "beams", "stop")
SEED = "seed"
Watch = Callable[[str, str], None]
"""Called with a run's name and the next piece of its answer."""


@dataclass(frozen=True)
class Reply:
    """One run's answer; `cut` is the number of the prompt's tokens for which the model had no positions."""

    run: str
    text: str
    ended: bool
    cut: int


@dataclass
class Conversation:
    """What is said to the active ones of several runs. Each run sees only its own messages."""

    runs: Mapping[str, LoadedRun]
    active: list[str]
    settings: Generation
    system: str | None = None
    seed: int = 0
    messages: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    turns: int = 0

    def use(self, names: Sequence[str]) -> None:
        """Answer with these runs from now on. Raises UsageError for a name that is not there."""
        if not names:
            raise UsageError(f"/use needs a name, or several: {listed(list(self.runs))}")
        for name in names:
            if name not in self.runs:
                raise UsageError(
                    f"no run is called {name!r}{nearest(name, self.runs)}; there are {listed(list(self.runs))}"
                )
        self.active = list(dict.fromkeys(names))

    def set_system(self, text: str | None) -> None:
        """Begin every chat with this text, or with none, from the next message on. Raises UsageError."""
        if text is not None and not any(takes_chats(run.recipe) for run in self.runs.values()):
            raise UsageError("these runs continue texts (data.format is not chat), so they have no system message")
        self.system = text

    def reset(self) -> None:
        """Forget what was said."""
        self.messages.clear()

    def change(self, assignments: Sequence[str]) -> None:
        """Set how answers are generated, as in `temperature=0.7`. Raises UsageError, and then changes nothing."""
        given: dict[str, Any] = {}
        for text in assignments:
            name, equals, value = text.partition("=")
            if not equals or name not in (*SETTINGS, SEED):
                raise UsageError(f"{text!r}: write NAME=VALUE with one of {', '.join((*SETTINGS, SEED))}")
            given[name] = [value] if name == "stop" and value else [] if name == "stop" else value
        seed = given.pop(SEED, self.seed)
        try:
            self.seed = int(seed)
            self.settings = Generation.model_validate({**self.settings.model_dump(), **given})
        except ValidationError as error:
            first = error.errors()[0]
            raise UsageError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        except ValueError:
            raise UsageError(f"seed: needs a whole number, not {seed!r}") from None

    def describe_settings(self) -> dict[str, Any]:
        """Return how answers are generated."""
        return {**{name: getattr(self.settings, name) for name in SETTINGS}, SEED: self.seed}

    def say(self, text: str, watch: Watch = lambda name, piece: None) -> list[Reply]:
        """Return the answers of the active runs, one after another, and remember them.

        Nothing is remembered of a message that a run did not answer. Raises UsageError for one that cannot be read.
        """
        refuse_unreadable(text)
        replies = [self._ask(self.runs[name], text, watch) for name in self.active]
        self.turns += 1
        for reply in replies:
            turn = [{"role": "user", "content": text}, {"role": "assistant", "content": reply.text}]
            self.messages.setdefault(reply.run, []).extend(turn)
        return replies

    def _ask(self, run: LoadedRun, text: str, watch: Watch) -> Reply:
        encoded = run.encode(self._request(run, text))
        # Another seed each turn, or a question asked again would be answered in the same words.
        seed = self.seed + self.turns
        (answer,) = run.answer([encoded], self.settings, seed=seed, watch=lambda piece: watch(run.name, piece))
        return Reply(run.name, answer.text, answer.ended, answer.cut)

    def _request(self, run: LoadedRun, text: str) -> Request:
        if not takes_chats(run.recipe):
            return ask(run.recipe, text)
        said = [*self.messages.get(run.name, ()), {"role": "user", "content": text}]
        return Request(chat=Chat(with_system(said, self.system)))

    def save(self, path: Path) -> int:
        """Write each run's messages as a line of JSON, rows of `data.format: chat`, and return how many lines."""
        rows = [
            {"run": name, "messages": with_system(said, self.system), "settings": self.describe_settings()}
            for name, said in self.messages.items()
        ]
        if not rows:
            raise UsageError("nothing was said yet, so there is nothing to save")
        refuse_output_file(path)
        try:
            write_output(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        except OSError as error:
            raise StorageError(f"{path}: cannot be written: {error.strerror or error}; name another file") from None
        return len(rows)


def open_conversation(
    folders: Sequence[Path], overrides: Sequence[str] = (), *, system: str | None = None, verify: bool = True
) -> Conversation:
    """Load runs and their bases, and return a conversation with the first of them.

    A base is loaded once, whatever the number of its runs, and is called `base` (`base-2`, ... where they differ).
    """
    quiet_libraries()
    opened = [open_writing_run(folder, overrides, verify) for folder in folders]
    world = open_world(opened[0][1].run.device)
    if world.processes > 1:
        raise UsageError("chat runs in one process; start it without a launcher")
    names, bases, loaded = name_runs(folders), Bases(world), dict[str, LoadedRun]()
    for name, (directory, recipe) in zip(names, opened, strict=True):
        loaded[name] = bases.load(name, directory, recipe)
    seen: set[str] = set()
    for directory, recipe in opened:
        if (key := base_key(recipe)) not in seen:
            seen.add(key)
            name = BASE if len(seen) == 1 else f"{BASE}-{len(seen)}"
            loaded[name] = bases.load_base(name, directory, recipe)
    conversation = Conversation(loaded, [names[0]], opened[0][1].evaluation.generation)
    conversation.set_system(system)
    return conversation


def name_runs(folders: Sequence[Path]) -> list[str]:
    """Return a name for each run: its folder's, or as much of its path as makes it another than the others'."""
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise UsageError("a run is named twice; name each once")
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names) and not any(name.partition("-")[0] == BASE for name in names):
            return names
    return [str(path) for path in paths]
