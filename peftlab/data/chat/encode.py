"""Chats as tokens, and which of them each supervised turn is.

The ids are those of the whole text, as the tokenizer gives them. Where a token crosses the beginning or the end of an
answer, it is taken apart there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from peftlab.data.chat.align import Offsets, encode_texts, separate
from peftlab.data.chat.settings import ChatSettings
from peftlab.data.chat.template import REASONING, ChatTemplate, RefusedChat, unused_word
from peftlab.data.chat.turns import Turn, Unclear, find_turns
from peftlab.tasks.formats import Chat

CHATS_AT_ONCE = 1024
# What a prompt is encoded with, so that its last tokens are those that it has before an answer.
PROBE = "A"


@dataclass(frozen=True, slots=True)
class TokenTurn:
    """Supervised tokens `first` to `last` (exclusive) of the answer that is message number `message`.

    `stop` is the special or added token that ends it; where there is none, `marker` is its end marker as plain text.
    `prompted` says that the template's generation prompt stands before it; that ends before token `asked`, which is
    `first` unless a generation mark begins inside the prompt.
    """

    message: int
    first: int
    last: int
    stop: int | None
    marker: str
    prompted: bool
    asked: int


@dataclass(frozen=True, slots=True)
class EncodedChat:
    """A chat as text and int64 ids, with its supervised turns: none where they are not certain, for the reason `fault`.

    `lead` is the number of tokens that a cut keeps: the opening token and the system text. `carried` says that a
    message contains the text of a special token. `cuts` are the characters at which a token was taken apart, because it
    crossed the beginning or the end of an answer. `unwritten` names what the template leaves out of the chat: its
    `tools`, `messages` of others than the assistant, the `reasoning` of its last answer that is a field of its own.
    """

    offsets: Offsets
    ids: np.ndarray
    turns: tuple[TokenTurn, ...]
    lead: int
    carried: bool
    fault: str | None = None
    unwritten: tuple[str, ...] = ()
    cuts: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        return self.offsets.text

    @property
    def prompt(self) -> str:
        """The text before the last supervised answer."""
        return self.text[: self.offsets.starts[self.last_answer[0].asked]]

    @property
    def last_answer(self) -> tuple[TokenTurn, ...]:
        """The supervised pieces of the last message that has any: one, or as many as the template marks in it."""
        return tuple(turn for turn in self.turns if turn.message == self.turns[-1].message)

    @property
    def endings(self) -> tuple[TokenTurn, ...]:
        """The last supervised piece of every message that has any."""
        return tuple({turn.message: turn for turn in self.turns}.values())

    @property
    def supervised(self) -> np.ndarray:
        """Which tokens are supervised, booleans as long as the ids."""
        mask = np.zeros(len(self.ids), dtype=bool)
        for turn in self.turns:
            mask[turn.first : turn.last] = True
        return mask


def encode_chats(examples: Sequence[Chat], tokenizer: Any, settings: ChatSettings) -> Iterator[EncodedChat]:
    """Yield every chat with its tokens.

    Raises DataError where there is no template, and where it refuses a chat, unless the settings drop such chats.
    """
    template = ChatTemplate(tokenizer, settings.arguments, settings.day)
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special and token.content]
    for start in range(0, len(examples), CHATS_AT_ONCE):
        chunk = examples[start : start + CHATS_AT_ONCE]
        written = [_write(template, example, settings) for example in chunk]
        encoded = encode_texts(tokenizer, [text for text, _ in written])
        for example, (_, refusal), (ids, offsets) in zip(chunk, written, encoded, strict=True):
            if refusal is not None:
                yield EncodedChat(offsets, ids, (), 0, False, refusal)
                continue
            found, fault = _find_turns(template, example, offsets.text, settings)
            cuts = tuple(_crossed(found, offsets))
            if (apart := separate(tokenizer, ids, offsets, cuts)) is not None:
                ids, offsets = apart
            turns, fault = ((), fault) if fault else _place_turns(found, ids, offsets)
            carried = any(token in str(message.get("content")) for message in example.messages for token in special)
            lead = _lead(template, example, ids, offsets)
            unwritten = tuple(_unwritten(template, example, offsets.text))
            yield EncodedChat(offsets, ids, turns, lead, carried, fault, unwritten, cuts if turns else ())


def _write(template: ChatTemplate, example: Chat, settings: ChatSettings) -> tuple[str, str | None]:
    """Return the text of a chat, and why the template refuses it; None where it does not."""
    try:
        return template.write(example.messages, example.tools), None
    except RefusedChat as error:
        if not settings.skip_refused:
            raise
        return "", error.reason


def encode_prompt_text(tokenizer: Any, text: str, cuts: Sequence[int] = ()) -> np.ndarray:
    """Return the ids of a prompt that the template wrote, as rows with these cuts have them before an answer."""
    kept = text.rstrip(" ")
    for place in (len(kept), len(text)):
        ids, offsets = next(encode_texts(tokenizer, [text[:place] + " " * (len(text) - place) + PROBE]))
        ids, offsets = separate(tokenizer, ids, offsets, cuts) or (ids, offsets)
        if (count := offsets.cut(place)) is not None:
            return ids[:count]
    return next(encode_texts(tokenizer, [kept]))[0]


def _find_turns(
    template: ChatTemplate, example: Chat, text: str, settings: ChatSettings
) -> tuple[list[Turn], str | None]:
    try:
        return find_turns(template, example, text, settings), None
    except Unclear as reason:
        return [], str(reason)


def _crossed(turns: Sequence[Turn], offsets: Offsets) -> Iterator[int]:
    """Yield the characters at which answers begin or end and that a token crosses.

    A line break at the beginning of an answer is one token with the header's own in many vocabularies. Where an answer
    is generated the header is there already, so the answer begins with a token of its own.
    """
    lowest = 0
    for turn in turns:
        begins = [(turn.start, lowest), *([] if turn.asked is None else [(turn.asked, turn.start)])]
        yield from (offsets.before_blanks(*one) for one in begins if offsets.begin(*one) is None)
        if offsets.end(turn.end) is None:
            yield turn.end
        lowest = turn.end


def _place_turns(turns: Sequence[Turn], ids: np.ndarray, offsets: Offsets) -> tuple[tuple[TokenTurn, ...], str | None]:
    placed: list[TokenTurn] = []
    lowest = 0
    try:
        for turn in turns:
            placed.append(_place_turn(turn, ids, offsets, lowest))
            lowest = turn.end
    except Unclear as reason:
        return (), str(reason)
    return tuple(turn for turn in placed if turn.first < turn.last), None


def _place_turn(turn: Turn, ids: np.ndarray, offsets: Offsets, lowest: int) -> TokenTurn:
    first, last = offsets.begin(turn.start, lowest), offsets.end(turn.end)
    if first is None or last is None:
        raise Unclear("a token crosses the beginning or the end of an answer")
    final = offsets.last_written(first, last)
    ended = turn.marker != "" and final is not None and offsets.added[final]
    asked = first if turn.asked is None else offsets.begin(turn.asked, turn.start)
    if asked is None:
        raise Unclear("a token crosses the beginning or the end of an answer")
    stop = int(ids[final]) if ended else None
    return TokenTurn(turn.message, first, last, stop, turn.marker or "", turn.prompted, max(asked, first))


def _unwritten(template: ChatTemplate, example: Chat, text: str) -> Iterator[str]:
    if example.tools and not template.writes_tools:
        yield "tools"
    if any(_is_left_out(template, example, i, text) for i in range(len(example.messages))):
        yield "messages"
    answers = [message for message in example.messages if message["role"] == "assistant"]
    last = answers[-1] if answers else {}
    thoughts = [key for key in REASONING if isinstance(last.get(key), str) and last[key].strip()]
    if thoughts and not template.reasoning_fields & set(thoughts):
        yield "reasoning"


def _is_left_out(template: ChatTemplate, example: Chat, i: int, text: str) -> bool:
    """Return whether the template writes nothing of a message that is not the assistant's."""
    message = example.messages[i]
    content = str(message.get("content") or "").strip()
    if message["role"] == "assistant" or not content or content in text:
        return False
    word = unused_word(text)
    altered = [*example.messages[:i], {**message, "content": word}, *example.messages[i + 1 :]]
    written = template.try_write(altered, example.tools)
    return written is not None and word not in written


def _lead(template: ChatTemplate, example: Chat, ids: np.ndarray, offsets: Offsets) -> int:
    """Return how many tokens a cut keeps at the beginning."""
    opening = int(len(ids) > 0 and ids[0] == template.tokenizer.bos_token_id)
    if example.messages[0]["role"] != "system" or len(example.messages) < 2:
        return opening
    system = template.try_write(example.messages[:1], example.tools)
    if system is None or not offsets.text.startswith(system):
        return opening
    return max(offsets.cut(len(system)) or 0, opening)
