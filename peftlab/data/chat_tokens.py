"""Tokens of chats: their supervised turns, and what of a chat that is too long is left."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from peftlab.data.chat import ChatSettings, EncodedChat, encode_chats
from peftlab.data.encoded import Answer, Encoded, long_rows
from peftlab.data.tokens import INNER, MARKER, REASON, STOP, count_needed, enough_characters
from peftlab.tasks.base import Tokenising
from peftlab.tasks.formats import Chat


def encode_chat_rows(examples: Sequence[Chat], how: Tokenising) -> Iterator[Encoded]:
    """Yield the tokens of chats, the supervised turns of the assistant supervised.

    A chat that is too long up to its last answer loses its oldest turns after the system prompt, as whole messages, as
    far as that answer and what it answers remain. `how.counts` gains carried (rows with special tokens in their own
    text), each `STOP`, `MARKER` and `INNER`, unclear (rows whose answers are not certain, each with its `REASON`),
    unended (answers without an end marker), unprompted (rows whose last answer does not follow the template's
    generation prompt), unwritten_tools, unwritten_messages and unwritten_reasoning (rows of which the template leaves
    these out) and cut_turns (messages removed).
    """
    section, counts = how.section, how.counts
    skips = section.on_error == "skip"
    settings = ChatSettings(section.supervise, section.thinking, section.template_kwargs, section.date, skips)
    shortens = section.truncate == "auto" and long_rows(section, how.format) == "cut"
    enough = enough_characters(how.tokenizer, section)
    small = [_limit_contents(example, enough) for example in examples]
    for whole, example, chat in zip(examples, small, encode_chats(small, how.tokenizer, settings), strict=True):
        left, removed = chat, 0
        if shortens and count_needed(chat.supervised) > section.max_length and chat.turns:
            left, removed = _drop_turns(example, chat, how.tokenizer, settings, section.max_length)
        counts["cut_turns"] += removed
        _count(left, counts)
        yield Encoded(
            left.ids,
            left.supervised,
            left.lead,
            _answer(left, how.tokenizer) if how.prompts and left.turns and left.turns[-1].message else None,
            partial=example is not whole,
            removed=len(chat.ids) - len(left.ids),
            lost=max(int(chat.supervised.sum() - left.supervised.sum()), 0),
        )


def _limit_contents(example: Chat, enough: int) -> Chat:
    """Return a chat without the middle of messages that are longer than any row could be, answers excepted."""
    if not any(len(str(message.get("content") or "")) > 2 * enough for message in example.messages):
        return example
    return replace(example, messages=[_limit_content(message, enough) for message in example.messages])


def _limit_content(message: dict[str, Any], enough: int) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, str) or len(content) <= 2 * enough:
        return message
    if message["role"] == "assistant":  # its end is what a cut removes
        return {**message, "content": content[: 2 * enough]}
    return {**message, "content": content[:enough] + content[-enough:]}


def _drop_turns(
    example: Chat, chat: EncodedChat, tokenizer: Any, settings: ChatSettings, max_length: int
) -> tuple[EncodedChat, int]:
    """Return a chat's longest end that fits, or else its last question and answer, and how many messages are gone."""
    messages = example.messages
    first = int(messages[0]["role"] == "system")
    last = chat.turns[-1].message
    begins = [i for i in range(first + 1, last) if messages[i]["role"] == "user"]

    def shorten(begin: int) -> EncodedChat:
        kept = [*messages[:first], *messages[begin:]]
        return next(encode_chats([replace(example, messages=kept)], tokenizer, settings))

    begins = (
        begins[bisect_left(begins, True, key=lambda begin: count_needed(shorten(begin).supervised) <= max_length) :]
        or begins[-1:]
    )
    if not begins or not (left := shorten(begins[0])).turns:
        return chat, 0
    return left, begins[0] - first


def _answer(chat: EncodedChat, tokenizer: Any) -> Answer:
    """Return a chat's last supervised answer as generated text would be decoded, and what is before it."""
    pieces, turn = chat.last_answer, chat.turns[-1]
    supervised = [
        token for piece in pieces for token in chat.ids[max(piece.first, pieces[0].asked) : piece.last].tolist()
    ]
    text = tokenizer.decode(supervised, skip_special_tokens=True).strip()
    reference = text.removesuffix("" if turn.stop is not None else turn.marker).strip()
    return Answer(pieces[0].asked, turn.last, chat.prompt, reference)


def _count(chat: EncodedChat, counts: Counter[str]) -> None:
    counts["carried"] += chat.carried
    if chat.fault is not None:
        counts["unclear"] += 1
        counts[REASON + chat.fault] += 1
    for left_out in chat.unwritten:
        counts[f"unwritten_{left_out}"] += 1
    counts["unprompted"] += bool(chat.turns) and not chat.turns[-1].prompted
    for turn in chat.endings:
        if turn.stop is not None:
            counts[f"{STOP}{turn.stop}"] += 1
        elif turn.marker:
            counts[MARKER + turn.marker] += 1
        else:
            counts["unended"] += 1
    if not chat.carried:  # else a token inside an answer may be what its author wrote about
        counts.update(f"{INNER}{token}" for token in _inner_tokens(chat))


def _inner_tokens(chat: EncodedChat) -> set[int]:
    """Return the added tokens after which a supervised answer continues, such as the end of one of its channels."""
    added, found = np.flatnonzero(chat.supervised & chat.offsets.added), set[int]()
    for end in chat.endings:
        first = next(turn.first for turn in chat.turns if turn.message == end.message)
        inside = added[(added >= first) & (added < end.last)]
        last = chat.offsets.last_written(first, end.last) if len(inside) else None
        if last is not None:
            found |= {int(chat.ids[i]) for i in inside if i < last} - {int(chat.ids[last])}
    return found
