"""What a user asks a trained model: prompts and chats, rendered as the rows that it was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.data.chat import ChatSettings, encode_chats, render_prompt
from peftlab.data.parts import read_examples, read_table
from peftlab.data.tokens import encode_chat_prompt
from peftlab.errors import DataError, UsageError, one_line
from peftlab.evaluation.generate import opening_tokens
from peftlab.files import decode_json
from peftlab.recipe.schema import Recipe
from peftlab.tables.files import Table, file_kind
from peftlab.tasks import possible_formats
from peftlab.tasks.formats import CHAT, Chat, as_messages, as_text, as_tools, without_answers
from peftlab.tasks.layouts import Cells, Layout

PROMPT = "prompt"


@dataclass(frozen=True)
class Request:
    """A text to continue, or a chat to answer."""

    text: str | None = None
    chat: Chat | None = None


@dataclass(frozen=True)
class Encoded:
    """What the model reads of a request: a text and its ids, of which a cut keeps the first `lead`."""

    text: str
    ids: list[int]
    lead: int


def ask(recipe: Recipe, prompt: str, system: str | None = None) -> Request:
    """Return the request of one prompt: in a recipe of chats a user's message. Raises UsageError."""
    refuse_unreadable(prompt)
    if not takes_chats(recipe):
        if system is not None:
            raise UsageError(f"--system: this run's data.format is {recipe.data.format}, which has no system message")
        return Request(text=prompt)
    return Request(chat=Chat(with_system([{"role": "user", "content": prompt}], system)))


def takes_chats(recipe: Recipe) -> bool:
    return recipe.data.format == CHAT.name


def with_system(messages: Sequence[dict[str, Any]], system: str | None) -> list[dict[str, Any]]:
    """Return messages that begin with a system message. Raises UsageError where they have one already."""
    if system is None:
        return list(messages)
    if messages[0]["role"] == "system":
        raise UsageError("--system: the chat begins with a system message already; remove one of the two")
    return [{"role": "system", "content": system}, *messages]


def read_chat(recipe: Recipe, path: Path, system: str | None = None) -> Request:
    """Return the chat in a JSON file: a list of messages, or an object with `messages` and perhaps `tools`.

    Raises DataError for a file that has none, UsageError for a chat that asks nothing.
    """
    if not takes_chats(recipe):
        raise UsageError(f"--chat: this run's data.format is {recipe.data.format}, not {CHAT.name}; use --prompts")
    try:
        content = decode_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise DataError(f"{path}: is not valid JSON: {one_line(error)}") from None
    found = content if isinstance(content, dict) else {"messages": content}
    return _chat_request(found.get("messages"), found.get("tools"), system, str(path))


def _chat_request(messages: Any, tools: Any, system: str | None, place: str) -> Request:
    try:
        chat = Chat(with_system(as_messages(messages), system) if messages else [], as_tools(tools))
    except ValueError as error:
        raise DataError(f"{place}: {error}") from None
    if not chat.messages:
        raise DataError(f"{place}: has no messages")
    if chat.messages[-1]["role"] == "assistant":
        raise UsageError(f"{place}: the last message is the assistant's; end the chat with what it should answer")
    return Request(chat=chat)


def read_prompts(recipe: Recipe, path: Path, system: str | None = None) -> list[Request]:
    """Return the requests in a file: a prompt on each line of a .txt file, or rows of the files that `data` reads.

    A row has a `prompt`, or what the recipe's own rows are made of: messages and tools of chats, the columns of
    `data.template`. Raises DataError with the place of a fault.
    """
    if file_kind(path.name) is None or path.suffix == ".txt":
        return [ask(recipe, line, system) for line in _read_lines(path)]
    return requests_of(read_table(str(path)), recipe, str(path), system)


def requests_of(table: Table, recipe: Recipe, path: str, system: str | None = None) -> list[Request]:
    """Return the request in each row of a table. Raises DataError with the place of a fault."""
    section, layouts = recipe.data, possible_formats(recipe.task, recipe.data.format)
    if takes_chats(recipe) and section.columns.get("messages", "messages") in table.cells:
        return [
            _chat_request(chat.messages, chat.tools, system, f"{path}: row {row}")
            for row, chat in enumerate(read_examples(table, section), start=1)
        ]
    if (layout := _find_layout(table, recipe)) is not None:
        return [_layout_request(layout, row.cells, recipe, system, f"{path}: row {row.number}") for row in table.rows()]
    if any(one.prompts for one in layouts) and section.template is not None:
        return [ask(recipe, one.prompt, system) for one in read_examples(_with_answers(table, recipe), section)]
    column = section.columns.get(PROMPT, PROMPT)
    if column not in table.cells:
        raise DataError(f"{path}: has no column {column!r}; its columns: {', '.join(table.cells)}")
    return [_row_request(recipe, value, system, f"{path}: row {i}") for i, value in enumerate(table.cells[column], 1)]


def _find_layout(table: Table, recipe: Recipe) -> Layout | None:
    """Return the layout of public data that the rows ask in; None where the recipe names columns of its own."""
    section, first = recipe.data, {name: values[0] for name, values in table.cells.items()}
    if section.template is not None or section.columns:
        return None
    known = [layout for one in possible_formats(recipe.task, section.format) for layout in one.layouts]
    able = [layout for layout in known if PROMPT not in first or PROMPT in layout.columns]
    return next((layout for layout in able if layout.asks(first)), None)


def _layout_request(layout: Layout, cells: Cells, recipe: Recipe, system: str | None, place: str) -> Request:
    try:
        found = layout.read({**cells, **layout.answered})
    except ValueError as error:
        raise DataError(f"{place}: {error}") from None
    if PROMPT in found:
        return _row_request(recipe, found[PROMPT], system, place)
    return _chat_request(without_answers(found["messages"]), found.get("tools"), system, place)


def _row_request(recipe: Recipe, value: Any, system: str | None, place: str) -> Request:
    try:
        return ask(recipe, as_text(value), system)
    except (ValueError, UsageError) as error:
        raise DataError(f"{place}: {error}") from None


def _with_answers(table: Table, recipe: Recipe) -> Table:
    """Return a table with an answer in every row, which the recipe's rows need and prompts do not have."""
    column = recipe.data.columns.get("completion", "completion")
    return (
        table
        if column in table.cells
        else Table(table.name, {**table.cells, column: ["-"] * len(next(iter(table.cells.values())))})
    )


def _read_lines(path: Path) -> Iterable[str]:
    """Return the lines of a text file that are not blank. Raises DataError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text") from None
    found = [line.rstrip("\r") for line in lines if line.strip()]
    if not found:
        raise DataError(f"{path}: contains no prompts")
    return found


def encode(request: Request, recipe: Recipe, tokenizer: Any) -> Encoded:
    """Return what the model reads of a request, rendered as the rows that the run was trained on."""
    if request.chat is None:
        assert request.text is not None, "a request is a text or a chat"
        ids = recipe.task.encode_prompt(tokenizer, request.text)
        return Encoded(request.text, ids, opening_tokens(ids, tokenizer))
    arguments, day, chat = recipe.data.template_kwargs, recipe.data.date, request.chat
    text = render_prompt(chat.messages, tokenizer, arguments, chat.tools, day)
    (whole,) = encode_chats([chat], tokenizer, ChatSettings(arguments=arguments, day=day))
    cuts = [cut for cut in whole.cuts if text.startswith(whole.text[:cut])]
    return Encoded(text, encode_chat_prompt(tokenizer, text, cuts=cuts), whole.lead)


def refuse_unreadable(prompt: str) -> None:
    """Raise UsageError for a prompt that is empty or not valid UTF-8."""
    if not prompt.strip():
        raise UsageError("the prompt is empty; write a text that the model should continue or answer")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UsageError("the prompt is not valid UTF-8") from None
