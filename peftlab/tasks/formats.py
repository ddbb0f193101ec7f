"""What a row of a data source can be: the columns that it is read from, and the example that they make.

`tasks/layouts.py` has the ways in which public data sets write rows of these formats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from peftlab.errors import one_line
from peftlab.files import decode_json
from peftlab.tasks.layouts import (
    ALPACA,
    ALPACA_CHAT,
    CONVERSATIONS,
    FOREIGN,
    MESSAGES_AND_MORE,
    PROMPT_AND_ANSWER_MESSAGES,
    Foreign,
    Layout,
    parse_list,
)

DEEPEST_MESSAGE = 32
HALF_A_PAIR = "half of a surrogate pair and not a character"
# Who speaks in a turn of ShareGPT, as a role of chat templates.
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Completion:
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Chat:
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


Example = Any
"""One row before any tokenizer: a frozen dataclass whose fields are its format's roles."""


@dataclass(frozen=True)
class Format:
    """A kind of rows. `roles` maps each field of `example` to the function that reads its cell, or raises ValueError.

    A column of an `optional` role may be absent, a cell of a `nullable` one empty.
    `template_role` is the role that `data.template` can make; where there is none, `template_refusal` says what to
    do instead. `layouts` are other ways in which files write such rows, `foreign` are other rows with such columns.
    `prompts` tells whether a row has a prompt and
    an answer that generated text can be compared with, `documents` that a row is running text, which may be cut into
    several. `encode` makes the tokens of rows that are read from left to right (a `data.encoded.Encoder`), `input_of`
    the text that an answer or a label is given to.
    """

    name: str
    title: str
    example: type
    roles: Mapping[str, Callable[[Any], Any]]
    optional: frozenset[str] = frozenset()
    nullable: frozenset[str] = frozenset()
    template_role: str | None = None
    template_refusal: str = ""
    prompts: bool = False
    documents: bool = False
    encode: Callable[..., Any] | None = None
    input_of: Callable[[Any], str] | None = None
    layouts: tuple[Layout, ...] = ()
    foreign: tuple[Foreign, ...] = ()
    remedy: str = "check which column is which"
    defaults: Mapping[str, Any] = field(default_factory=dict)


def as_text(value: Any) -> str:
    """Return a cell as text. Raises ValueError."""
    if not isinstance(value, str | int | float) or isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"needs text, not {type(value).__name__}{' inf' if isinstance(value, float) else ''}")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair, which no tokenizer takes
        found = f"{text[error.start]!r} at position {error.start}"
        raise ValueError(f"contains {found}, {HALF_A_PAIR}") from None
    return text


def _refuse_halves(value: Any) -> None:
    """Raise ValueError where a text or a key inside lists and objects has half of a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"contains {error.object[error.start]!r}, {HALF_A_PAIR}") from None


def as_label(value: Any) -> str:
    """Return a cell as the name of a class. Raises ValueError."""
    if not isinstance(value, str | int):
        raise ValueError(f"a label is a text or a whole number, not {type(value).__name__} {one_line(value, 60)}")
    return as_text(value).strip()


def as_messages(value: Any) -> list[dict[str, Any]]:
    """Return a cell as the messages of a chat, their contents as text. Raises ValueError.

    The cell may be JSON text, as in CSV files, and its messages `from` and `value`, as ShareGPT writes them.
    """
    value = parse_list(value)
    if not isinstance(value, list):
        raise ValueError(f"needs a list of messages {{role, content}}, not {type(value).__name__}")
    messages = [_with_tool_calls(as_role_and_content(message)) for message in value]
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError("each message needs a role and a content")
        as_text(message["role"])
    if _depth(messages) > DEEPEST_MESSAGE:
        raise ValueError(f"messages are nested deeper than {DEEPEST_MESSAGE} levels")
    found = [_as_message(_without_nulls(message)) for message in messages]
    _refuse_halves(found)
    return found


def without_answers(value: Any) -> Any:
    """Return the messages of a cell without the assistant's at their end; anything else unchanged."""
    messages = parse_list(value)
    if not isinstance(messages, list):
        return value
    kept = len(messages)
    while kept and _is_answer(messages[kept - 1]):
        kept -= 1
    return messages[:kept]


def _is_answer(message: Any) -> bool:
    speaker = message.get("role") or message.get("from") if isinstance(message, dict) else None
    return isinstance(speaker, str) and SPEAKERS.get(speaker.strip().lower()) == "assistant"


def as_role_and_content(message: Any) -> Any:
    """Return a turn of ShareGPT as a message of role and content; anything else unchanged. Raises ValueError."""
    if not isinstance(message, dict) or message.get("role") is not None or not isinstance(message.get("from"), str):
        return message
    speaker = message["from"].strip().lower()
    if speaker not in SPEAKERS:
        known = ", ".join(SPEAKERS)
        raise ValueError(f"a turn is from {one_line(message['from'], 60)!r}; known speakers: {known}")
    rest = {key: cell for key, cell in message.items() if key not in ("role", "content", "from", "value")}
    content = message.get("value", message.get("content"))
    if speaker == "function_call":
        return {"role": "assistant", "content": None, "tool_calls": _as_calls(content), **rest}
    return {"role": SPEAKERS[speaker], "content": content, **rest}


def _with_tool_calls(message: Any) -> Any:
    """Return a message of OpenAI's earlier form, with a `function_call`, in today's; anything else unchanged."""
    if not isinstance(message, dict):
        return message
    called = message.get("function_call")
    if isinstance(called, dict) and not message.get("tool_calls"):
        rest = {key: cell for key, cell in message.items() if key != "function_call"}
        return {**rest, "tool_calls": _as_calls(called)}
    return {**message, "role": "tool"} if message.get("role") == "function" else message


def _as_calls(value: Any) -> list[dict[str, Any]]:
    """Return the tool calls that JSON text {name, arguments}, or a list of such, says. Raises ValueError."""
    try:
        found = decode_json(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise ValueError(f"a function_call needs JSON {{name, arguments}}, not {one_line(value, 60)}")
    return [{"type": "function", "function": call} for call in calls]


def as_tools(value: Any) -> list[dict[str, Any]] | None:
    """Return a cell as the tools that a chat may call (a list of objects, or that as JSON). Raises ValueError."""
    if isinstance(value, str):
        try:
            value = decode_json(value)
        except ValueError as error:
            raise ValueError(f"tools are not valid JSON: {one_line(error)}") from None
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise ValueError(f"needs a list of tools {{type, function}}, not {type(value).__name__} {one_line(value, 60)}")
    if _depth(value) > DEEPEST_MESSAGE:
        raise ValueError(f"tools are nested deeper than {DEEPEST_MESSAGE} levels")
    _refuse_halves(value)
    return value


def _without_nulls(message: dict[str, Any]) -> dict[str, Any]:
    """Leave out the keys that a message has only because parquet gives all messages the same ones."""
    return {key: value for key, value in message.items() if value is not None or key == "content"}


def _as_message(message: dict[str, Any]) -> dict[str, Any]:
    for flag in ("weight", "train"):
        if message.get(flag) not in (None, 0, 1):
            found = one_line(repr(message[flag]), 60)
            raise ValueError(f"{flag} of a {message['role']!r} message is 0 or 1, not {found}")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return {**message, "content": None}
    if isinstance(content, list):
        return {**message, "content": "".join(_part_text(part, message["role"]) for part in content)}
    if not isinstance(content, str):
        raise ValueError(f"the content of a {message['role']!r} message must be text")
    as_text(content)
    return message


def _part_text(part: Any, role: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise ValueError(
            f"the content of a {role!r} message has a part of type {one_line(kind, 60)}; only text is read"
        )
    return as_text(part["text"])


def as_texts(value: Any) -> list[str]:
    """Return a cell as a list of texts; it may be JSON text, as in CSV files. Raises ValueError."""
    value = parse_list(value)
    if not isinstance(value, list):
        raise ValueError(f"needs a list of texts, not {type(value).__name__}")
    return [as_text(item) for item in value]


def _depth(value: Any) -> int:
    """Return how deep lists and objects are nested, without recursion."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, list | dict)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def _encode_texts(*arguments: Any) -> Any:
    from peftlab.data.text_tokens import encode_texts

    return encode_texts(*arguments)


def _encode_completions(*arguments: Any) -> Any:
    from peftlab.data.text_tokens import encode_completions

    return encode_completions(*arguments)


def _encode_chats(*arguments: Any) -> Any:
    from peftlab.data.chat_tokens import encode_chat_rows

    return encode_chat_rows(*arguments)


def _input_of_chat(example: Chat) -> str:
    """Return what is before the last answer of a chat, its roles and contents."""
    answers = [i for i, message in enumerate(example.messages) if message["role"] == "assistant"]
    before = example.messages[: answers[-1]] if answers else example.messages
    return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in before)


TEXT = Format(
    "text",
    "running text",
    Text,
    {"text": as_text},
    template_role="text",
    documents=True,
    encode=_encode_texts,
)
COMPLETION = Format(
    "completion",
    "prompt and completion",
    Completion,
    {"prompt": as_text, "completion": as_text},
    template_role="prompt",
    prompts=True,
    encode=_encode_completions,
    input_of=lambda example: example.prompt,
    layouts=(ALPACA,),
    foreign=FOREIGN,
)
CHAT = Format(
    "chat",
    "messages",
    Chat,
    {"messages": as_messages, "tools": as_tools},
    optional=frozenset({"tools"}),
    nullable=frozenset({"tools"}),
    template_refusal="format chat uses the model's own chat template; remove this one",
    prompts=True,
    encode=_encode_chats,
    input_of=_input_of_chat,
    layouts=(CONVERSATIONS, PROMPT_AND_ANSWER_MESSAGES, ALPACA_CHAT, *MESSAGES_AND_MORE),
    foreign=FOREIGN,
    remedy="check the roles: only `assistant` turns are learned",
)
