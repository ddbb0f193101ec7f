"""Chats through the model's own template, and which characters of them the assistant wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from jinja2 import TemplateError

from peftlab.errors import DataError, one_line
from peftlab.tasks.formats import Chat

GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
Span = tuple[int, int]
Messages = list[dict[str, Any]]


def render_chats(examples: Sequence[Chat], tokenizer: Any) -> Iterator[tuple[str, list[Span]]]:
    """Yield each chat as text, with the character spans of the assistant's turns and their end markers.

    Where the template marks what is generated, these marks are the spans. Else they come from rendering the
    chat up to and with each assistant turn. Raises DataError for a template without marks that rewrites
    earlier turns, and where there is no template.
    """
    check_template(tokenizer)
    find_spans = _read_marks if GENERATION_MARK.search(tokenizer.get_chat_template()) else _compare_prefixes
    for example in examples:
        text = _apply(tokenizer, example.messages, tokenize=False)
        yield text, find_spans(tokenizer, example.messages, text)


def render_prompt(messages: Messages, tokenizer: Any) -> str:
    """Return messages as text that ends where the assistant's answer begins."""
    check_template(tokenizer)
    return _apply(tokenizer, messages, tokenize=False, add_generation_prompt=True)


def check_template(tokenizer: Any) -> None:
    """Raise DataError unless the tokenizer has a chat template."""
    if not tokenizer.chat_template:
        raise DataError(
            "data.format chat: the model's tokenizer has no chat template; use an instruction-tuned model,"
            " or format completion with a template"
        )


def _read_marks(tokenizer: Any, messages: Messages, text: str) -> list[Span]:
    encoded = _apply(
        tokenizer,
        messages,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_offsets_mapping": True},
    )
    spans: list[Span] = []
    for (start, end), generated in zip(encoded["offset_mapping"], encoded["assistant_masks"], strict=True):
        if generated and spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], end)
        elif generated:
            spans.append((start, end))
    return spans


def _compare_prefixes(tokenizer: Any, messages: Messages, text: str) -> list[Span]:
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    return [_find_turn(tokenizer, messages, turn, text) for turn in turns]


def _find_turn(tokenizer: Any, messages: Messages, turn: int, text: str) -> Span:
    """Return the span of one assistant turn, without the line break that many templates put after it."""
    content = messages[turn]["content"].strip()
    if turn:
        before = _apply(tokenizer, messages[:turn], tokenize=False, add_generation_prompt=True)
    else:  # templates need not render a chat of no messages
        before = text[: max(text.find(content), 0)]
    after = _apply(tokenizer, messages[: turn + 1], tokenize=False).rstrip()
    if not (text.startswith(before) and text.startswith(after) and content in after[len(before) :]):
        raise DataError(
            f"{_place(messages)}: the model's chat template rewrites earlier turns, so that the assistant's part"
            " cannot be found; give one answer a row, or use format completion"
        )
    return len(before), len(after)


def _apply(tokenizer: Any, messages: Messages, **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except TemplateError as error:
        raise DataError(f"{_place(messages)}: the model's chat template refuses it: {one_line(error)}") from None
    except Exception as error:  # a template is a program of somebody else's and can raise anything
        fault = f"{type(error).__name__}: {one_line(error)}"
        raise DataError(f"{_place(messages)}: the model's chat template fails on it: {fault}") from None


def _place(messages: Messages) -> str:
    return f"the chat that begins {messages[0]['content'][:60]!r}"
