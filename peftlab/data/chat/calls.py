"""In which form a template takes the tool calls of a message, as it shows when it writes one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftlab.errors import DataError
from peftlab.files import decode_json

Messages = Sequence[Mapping[str, Any]]
Write = Callable[[Messages], str]
# A name, a key and a value that no template contains. The id has the nine letters that some templates ask for.
NAME, KEY, VALUE, ID = "look_up_probe", "key_probe", "value_probe", "probe0001"


@dataclass(frozen=True)
class CallForm:
    """`null` says whether the content beside a call may be null, `objects` whether arguments are objects or JSON text.

    Files have both: OpenAI writes arguments as JSON text, transformers as objects. A template that takes one of them
    writes the other as quoted text, in Python's notation, or not at all.
    """

    null: bool = True
    objects: bool = True

    def fit(self, messages: Messages) -> list[dict[str, Any]]:
        """Return messages with their calls in this form."""
        return [self._fit_message(message) if message.get("tool_calls") else dict(message) for message in messages]

    def _fit_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        fitted = {**message, "tool_calls": [self._fit_call(call) for call in message["tool_calls"]]}
        if message.get("content") is None and not self.null:
            fitted["content"] = ""
        return fitted

    def _fit_call(self, call: Any) -> Any:
        if not isinstance(call, Mapping):
            return call
        if isinstance(call.get("function"), Mapping):
            return {**call, "function": self._fit_call(call["function"])}
        return {**call, "arguments": self._fit_arguments(call["arguments"])} if "arguments" in call else call

    def _fit_arguments(self, arguments: Any) -> Any:
        if isinstance(arguments, str) and self.objects:
            return _parsed(arguments)
        if isinstance(arguments, Mapping) and not self.objects:
            return json.dumps(arguments, ensure_ascii=False)
        return arguments


def find_form(write: Write) -> CallForm:
    """Return the form that a template takes, from what `write` makes of a chat with a call."""
    objects, text = (_try(write, {KEY: VALUE})), _try(write, json.dumps({KEY: VALUE}))
    as_text = not _takes(objects) and _takes(text)
    arguments = json.dumps({KEY: VALUE}) if as_text else {KEY: VALUE}
    return CallForm(_takes(_try(write, arguments, None)) or not _takes(text if as_text else objects), not as_text)


def _try(write: Write, arguments: Any, content: str | None = "") -> str | None:
    call = {"id": ID, "type": "function", "function": {"name": NAME, "arguments": arguments}}
    try:
        return write(
            [{"role": "user", "content": "?"}, {"role": "assistant", "content": content, "tool_calls": [call]}]
        )
    except DataError:
        return None


def _takes(written: str | None) -> bool:
    """Return whether a text has a call's argument, neither in Python's notation nor as quoted JSON; and no None."""
    if written is None or VALUE not in written:
        return False
    return not re.search(rf"""['\\]{KEY}|\\"{VALUE}|\bNone\b""", written)


def _parsed(arguments: str) -> Any:
    """Return the object that a JSON text is; any other text unchanged."""
    try:
        found = decode_json(arguments)
    except ValueError:
        return arguments
    return found if isinstance(found, dict) else arguments
