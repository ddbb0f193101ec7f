"""A tokenizer's chat template with a recipe's arguments: messages in, text out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from functools import cached_property
from itertools import takewhile
from os.path import commonprefix
from typing import Any

from jinja2 import TemplateError

from peftlab.data.chat.calls import NAME, CallForm, find_form
from peftlab.errors import DataError, one_line

Messages = Sequence[Mapping[str, Any]]
COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
OPENING_MARK = re.compile(r"\{%([-+]?)\s*generation\s*([-+]?)%\}")
CLOSING_MARK = re.compile(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}")
# Digits only, so that no template trims, splits, escapes or changes the case of it; it cannot overlap with itself.
SENTINEL = "70917302884"
LONGEST_TAG = 64
TOOL = {"type": "function", "function": {"name": NAME, "description": "", "parameters": {"type": "object"}}}
# Fields in which files keep what an answer's author thought, apart from its content.
REASONING = ("reasoning_content", "reasoning", "thinking")
# Of formats of dates and times. The last is a percent sign.
DIRECTIVES = "aAbBcdefGHIjmMpSuUVwWxXyYzZ%"


class RefusedChat(DataError):
    """A chat that a template refuses, or fails on; `reason` is why, without the chat."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class ChatTemplate:
    """The template of one tokenizer, with the arguments that a recipe gives to it. Raises DataError without one.

    `day` (as 2026-01-31) is the one that it writes as today's.
    """

    def __init__(self, tokenizer: Any, arguments: Mapping[str, Any] | None = None, day: str | None = None) -> None:
        if not tokenizer.chat_template:
            raise DataError(
                "data.format chat: the model's tokenizer has no chat template; use an instruction-tuned model,"
                " or format completion with a template"
            )
        self.tokenizer = tokenizer
        self.arguments = dict(arguments or {})
        self._call_forms: dict[bool, CallForm] = {}
        self.clock = stopped_clock(date.fromisoformat(day)) if day else ""
        reserved = {*inspect.signature(tokenizer.apply_chat_template).parameters, "messages"} - {"documents", "kwargs"}
        if wrong := sorted(reserved & set(self.arguments)):
            raise DataError(f"data.template_kwargs.{wrong[0]}: is set by the program, not by a recipe; remove it")

    def write(
        self,
        messages: Messages,
        tools: list[Any] | None = None,
        *,
        prompt: bool = False,
        unfinished: bool = False,
        source: str | None = None,
    ) -> str:
        """Return the text of a chat; with `prompt`, ended by what begins an answer. `source` is another template.

        With `unfinished` the text ends where the content of the last message does, without an end marker.
        Raises RefusedChat with the beginning of the chat where the template refuses it or fails.
        """
        if any(message.get("tool_calls") for message in messages):
            messages = self._call_form(bool(tools)).fit(messages)
        return self._write(messages, tools, prompt, source, unfinished)

    def _write(
        self, messages: Messages, tools: list[Any] | None, prompt: bool, source: str | None, unfinished: bool = False
    ) -> str:
        if self.clock:
            source = self.clock + (self.source(tools) if source is None else source)
        options: dict[str, Any] = {"chat_template": source} if source is not None else {}
        if unfinished:
            options["continue_final_message"] = True
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tools=tools, tokenize=False, add_generation_prompt=prompt, **self.arguments, **options
            )
        except TemplateError as error:
            reason = f"the model's chat template refuses it: {one_line(error)}"
        except Exception as error:  # a template is a program of somebody else's and can raise anything
            fault = f"{type(error).__name__}: {one_line(error)}"
            reason = f"the model's chat template fails on it: {fault}"
        raise RefusedChat(f"{_place(messages)}: {reason}", reason)

    def write_prompt(self, messages: Messages, tools: list[Any] | None = None) -> str:
        """Return messages as text that ends where the assistant's answer begins.

        Where the template has no generation prompt, the text ends where it would write the content of an answer.
        """
        prompt = self.write(messages, tools, prompt=True)
        if self.has_prompt:
            return prompt
        sentinel = unused_word(prompt)
        answered = self.try_write([*messages, {"role": "assistant", "content": sentinel}], tools)
        header, found, _ = (answered or "").partition(sentinel)
        return header if found and header.startswith(prompt) else prompt

    def try_write(self, messages: Messages, tools: list[Any] | None = None, **options: Any) -> str | None:
        """Return the text of a chat that was altered to ask the template something; None where it refuses that."""
        try:
            return self.write(messages, tools, **options) if messages else None
        except DataError:
            return None

    def source(self, tools: list[Any] | None = None) -> str:
        """Return the template's own text; a tokenizer can have another one for chats with tools."""
        return self.tokenizer.get_chat_template(None, tools)

    def marked_source(self, tools: list[Any] | None, begin: str, end: str) -> str | None:
        """Return the template with `begin` and `end` written inside its generation marks; None without marks.

        The texts are inside block tags with the same whitespace control as the marks.
        """
        source = COMMENT.sub("", self.source(tools))
        if not OPENING_MARK.search(source):
            return None
        opened = OPENING_MARK.sub(rf"{{%\1 generation %}}{{% if true %}}{begin}{{% endif \2%}}", source)
        return CLOSING_MARK.sub(rf"{{%\1 if true %}}{end}{{% endif %}}{{% endgeneration \2%}}", opened)

    @cached_property
    def has_prompt(self) -> bool:
        """Whether the template writes anything when it is asked to begin an answer."""
        probe = [{"role": "user", "content": SENTINEL}]
        prompt = self.try_write(probe, prompt=True)
        return prompt is None or prompt != self.try_write(probe)

    def _call_form(self, with_tools: bool) -> CallForm:
        """Return the form in which the template takes tool calls; a tokenizer can have another one for tools."""
        if with_tools not in self._call_forms:
            tools = [TOOL] if with_tools else None
            self._call_forms[with_tools] = find_form(lambda messages: self._write(messages, tools, False, None))
        return self._call_forms[with_tools]

    @cached_property
    def writes_tools(self) -> bool:
        """Whether the tools of a chat are in its text; true of a template that refuses the chat that asks it."""
        written = self.try_write([{"role": "user", "content": SENTINEL}], [TOOL])
        return written is None or NAME in written

    @cached_property
    def reasoning_fields(self) -> frozenset[str]:
        """The fields in `REASONING` that the template writes of a last answer; all where it refuses to be asked."""
        asked = {"role": "user", "content": "?"}
        answers = {key: {"role": "assistant", "content": "!", key: SENTINEL} for key in REASONING}
        written = {key: self.try_write([asked, answer]) for key, answer in answers.items()}
        return frozenset(key for key, text in written.items() if text is None or SENTINEL in text)

    def calls(self, function: str, messages: Messages, tools: list[Any] | None = None) -> bool:
        """Whether writing this chat calls a function of the template engine, such as `strftime_now`."""
        source = self.source(tools)
        if function not in source:
            return False
        failing = re.sub(rf"\b{function}\s*\(", "raise_exception(", source)
        return self.try_write(messages, tools, source=failing) is None

    def common_beginning(self, texts: Sequence[str]) -> str:
        """Return the beginning that all texts share, without a part of a token or tag that differs in one of them."""
        shared = commonprefix(list(texts))
        if shared in texts:
            return shared
        atoms = [self._atoms.findall(text[: len(shared) + LONGEST_TAG]) for text in texts]
        same = list(takewhile(lambda column: len(set(column)) == 1, zip(*atoms, strict=False)))
        return "".join(column[0] for column in same)

    def without_end(self, text: str, end: str) -> str:
        """Return a text without as much of its end as another text ends with, and without whitespace there.

        Tokens and tags are taken whole.
        """
        atoms, others = self._atoms.findall(text), self._atoms.findall(end)
        equal = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(atoms), reversed(others), strict=False))
        return "".join(atoms[: len(atoms) - sum(1 for _ in equal)]).rstrip()

    @cached_property
    def _atoms(self) -> re.Pattern[str]:
        """What is whole in a template's text: added tokens, tags in brackets, words, single characters."""
        added = sorted((token.content for token in self.tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        tags = [r"<[^<>\s]*>", r"\[[^\[\]\s]*\]", r"\w+", r"."]
        return re.compile("|".join([*map(re.escape, filter(None, added)), *tags]), re.DOTALL)


def render_prompt(
    messages: Messages,
    tokenizer: Any,
    arguments: Mapping[str, Any] | None = None,
    tools: list[Any] | None = None,
    day: str | None = None,
) -> str:
    """Return what `ChatTemplate.write_prompt` does."""
    return ChatTemplate(tokenizer, arguments, day).write_prompt(messages, tools)


def stopped_clock(day: date) -> str:
    """Return what gives a template a `strftime_now` that writes this day at midnight, and writes nothing itself.

    It is a macro, because transformers gives templates plain data alone. Its last newline is one that transformers
    removes, so that what follows is at the beginning of a line, as it was.
    """
    midnight = datetime(day.year, day.month, day.day)
    known = {f"%{flag}{letter}": midnight.strftime(f"%{flag}{letter}") for letter in DIRECTIVES for flag in ("", "-")}
    replaced = "".join(f"|replace({directive!r}, {text!r})" for directive, text in known.items())
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n"


def unused_word(*texts: str) -> str:
    """Return a word that occurs in none of the texts."""
    word, number = SENTINEL, 0
    while any(word in text for text in texts):
        number += 1
        word = f"{SENTINEL}{number}"
    return word


def _place(messages: Messages) -> str:
    first = messages[0].get("content") or "" if messages else ""
    return f"the chat that begins {str(first)[:60]!r}"
