"""The ways in which public data sets write rows, other than one column for each role of a format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

from peftlab.files import decode_json

Cells = Mapping[str, Any]
# Columns of a system text beside a chat's turns.
SYSTEM = ("system", "system_prompt")


@dataclass(frozen=True)
class Layout:
    """A way of writing rows. `columns` are those by which it is recognised, `also` others that such files have.

    `read` returns the cells of the format's roles, made of a row's cells, or raises ValueError. `suits` looks at the
    cells of a file's first row. One that is not `recognised` is used only where a recipe names its format. `answered`
    are the cells of a row that asks for an answer, in place of those that have it.
    """

    title: str
    columns: tuple[str, ...]
    read: Callable[[Cells], dict[str, Any]]
    also: frozenset[str] = frozenset()
    recognised: bool = True
    suits: Callable[[Cells], bool] = lambda cells: True
    answered: Mapping[str, Any] = field(default_factory=dict)

    def asks(self, cells: Cells) -> bool:
        """Return whether a row has what an answer is given to."""
        return set(self.columns) <= cells.keys() | self.answered.keys() and self.suits({**cells, **self.answered})


@dataclass(frozen=True)
class Foreign:
    """Rows with a format's columns that mean something else, so that to read them as they are would be wrong.

    `found` looks at the cells of a file's first row. A recipe that has `data.columns` decides itself.
    """

    title: str
    remedy: str
    found: Callable[[Cells], bool]


def parse_list(value: Any) -> Any:
    """Return what a text that is a JSON list says, as in CSV files; anything else unchanged."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return decode_json(value)
        except ValueError:
            return value
    return value


def _filled(value: Any) -> bool:
    return value is not None and bool(str(value).strip())


def _read_alpaca(cells: Cells) -> dict[str, Any]:
    """Write the prompt of Alpaca; a row without an input has no part about it."""
    if parse_list(cells.get("history")) or _filled(cells.get("system")):
        raise ValueError(
            "has a history or a system text, for which Alpaca's prompt has no place; set data.format: chat"
        )
    task = "Below is an instruction that describes a task"
    if _filled(cells.get("input")):
        task += ", paired with an input that provides further context"
    parts = [f"{task}. Write a response that appropriately completes the request."]
    parts.append(f"### Instruction:\n{_text(cells, 'instruction')}")
    if _filled(cells.get("input")):
        parts.append(f"### Input:\n{_text(cells, 'input')}")
    return {"prompt": "\n\n".join([*parts, "### Response:\n"]), "completion": cells.get("output")}


def _text(cells: Cells, column: str) -> str:
    value = cells.get(column)
    if value is None or not str(value).strip():
        raise ValueError(f"column {column!r} is empty")
    if not isinstance(value, str | int | float):
        raise ValueError(f"column {column!r}: needs text, not {type(value).__name__}")
    return str(value)


def _read_alpaca_chat(cells: Cells) -> dict[str, Any]:
    """Write instruction and input as a user's message, after the system text and the turns before it."""
    request = _text(cells, "instruction")
    if _filled(cells.get("input")):
        request += f"\n\n{_text(cells, 'input')}"
    turns = [*_earlier_turns(cells.get("history")), (request, cells.get("output"))]
    messages = [{"role": "system", "content": cells["system"]}] if _filled(cells.get("system")) else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if not _filled(cells.get("output")):
        raise ValueError("column 'output' is empty")
    return {"messages": messages, "tools": None}


def _earlier_turns(history: Any) -> list[tuple[Any, Any]]:
    history = parse_list(history)
    if history in (None, ""):
        return []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise ValueError("column 'history': needs a list of pairs of a question and its answer")
    return [(question, answer) for question, answer in history]


def _read_conversations(cells: Cells) -> dict[str, Any]:
    """Take the turns as messages, after the row's own system text where the turns have none."""
    return {"messages": _after_system(cells, cells.get("conversations")), "tools": cells.get("tools")}


def _read_messages(cells: Cells) -> dict[str, Any]:
    """Take messages after the row's own system text, and OpenAI's earlier list of functions as tools.

    A recipe may name another column of tools.
    """
    functions = parse_list(cells.get("functions")) or []
    if not isinstance(functions, list):
        raise ValueError(f"column 'functions': needs a list of functions, not {type(functions).__name__}")
    tools = cells.get("tools") or [_as_tool(one) for one in functions]
    return {"messages": _after_system(cells, cells.get("messages")), "tools": tools}


def _after_system(cells: Cells, turns: Any) -> Any:
    """Return turns after the system text of a row, where they have none of their own."""
    turns = parse_list(turns)
    text = next((cells[name] for name in SYSTEM if _filled(cells.get(name))), None)
    first = turns[0] if isinstance(turns, list) and turns else None
    own = isinstance(first, dict) and "system" in (first.get("from"), first.get("role"))
    return (
        turns if text is None or own or not isinstance(turns, list) else [{"role": "system", "content": text}, *turns]
    )


def _as_tool(function: Any) -> Any:
    is_function = isinstance(function, Mapping) and "function" not in function
    return {"type": "function", "function": function} if is_function else function


def _read_prompt_and_answer(cells: Cells) -> dict[str, Any]:
    """Join the messages of the prompt and of the completion; only the completion is supervised."""
    prompt, answer = (parse_list(cells.get(name)) for name in ("prompt", "completion"))
    if not (_are_messages(prompt) and _are_messages(answer)):
        raise ValueError("prompt and completion must both be lists of messages {role, content}, as in the first row")
    # A turn of ShareGPT says who speaks in other words; a weight has no meaning in a question.
    earlier = [
        {**message, "weight": 0} if message.get("role") == "assistant" or "from" in message else message
        for message in prompt
    ]
    return {"messages": [*earlier, *answer], "tools": cells.get("tools")}


def _are_messages(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, dict) and ("role" in message or "from" in message) for message in value)
    )


# Files of Alpaca have `text` too, the whole of the row as it was written for one model.
ALPACA_ALSO = frozenset({"input", "text", "system", "history"})
ALPACA = Layout(
    "Alpaca: instruction, input, output",
    ("instruction", "output"),
    _read_alpaca,
    ALPACA_ALSO,
    answered={"output": "-"},
)
ALPACA_CHAT = replace(ALPACA, read=_read_alpaca_chat, recognised=False)
CONVERSATIONS = Layout(
    "ShareGPT: conversations", ("conversations",), _read_conversations, frozenset({*SYSTEM, "tools"})
)
PROMPT_AND_ANSWER_MESSAGES = Layout(
    "prompt and completion as messages",
    ("prompt", "completion"),
    _read_prompt_and_answer,
    frozenset({"tools"}),
    suits=lambda cells: _are_messages(parse_list(cells.get("prompt"))),
    answered={"completion": [{"role": "assistant", "content": "-"}]},
)
MESSAGES_AND_MORE = tuple(
    Layout(f"messages and {name}", ("messages", name), _read_messages, frozenset({*SYSTEM, "functions", "tools"}))
    for name in (*SYSTEM, "functions")
)

MEDIA = ("image", "images", "video", "videos", "audio", "audios")
FOREIGN = (
    Foreign(
        "pairs of a chosen and a rejected answer (preferences), which peftlab does not train on",
        "to learn the chosen answers, set data.columns, such as {completion: chosen} or {messages: chosen}",
        lambda cells: {"chosen", "rejected"} <= cells.keys() and not {"completion", "messages"} & cells.keys(),
    ),
    Foreign(
        "answers that its column `label` calls good or bad (as for KTO), and the bad ones would be learned too",
        "remove them and the column, or name the columns to learn in data.columns",
        lambda cells: str(cells.get("label")).lower() in ("true", "false"),
    ),
    Foreign(
        "pictures, videos or sounds beside its texts, which peftlab does not read",
        "to learn the texts alone, name their columns in data.columns",
        lambda cells: any(_filled(cells.get(name)) and cells[name] != [] for name in MEDIA),
    ),
)
"""Rows with answers that are not to be learned as they are."""
