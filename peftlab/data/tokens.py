"""Tokens of examples: which ids, which of them are supervised, and what is cut from rows that are too long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from peftlab.data.chat import ChatSettings, EncodedChat, encode_chats, encode_prompt_text
from peftlab.data.token_rows import IGNORED, TagRow, TextRow, TokenRow
from peftlab.errors import DataError
from peftlab.tasks.formats import Chat, Completion, Example, Text

TEXTS_AT_ONCE = 1024
# The beginnings of keys in counts: the reason why a row was dropped, the id of a special token that ends what is
# supervised, and an end marker that is plain text.
REASON, STOP, MARKER = "reason: ", "stop: ", "marker: "


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text as the tokenizer gets it, and the spans of its characters that are supervised."""

    text: str
    spans: Sequence[tuple[int, int]]


def tokenise_texts(
    examples: Sequence[Any],
    tokenizer: Any,
    max_length: int,
    counts: Counter,
    chat: ChatSettings | None = None,
) -> list[TokenRow]:
    """Return one row for each Text, Completion or Chat that keeps a supervised token.

    `chat` says which turns of a chat are supervised.
    `counts` gains: truncated (rows cut), lost_supervised (rows that lost supervised tokens), straddling
    (rows in which a token crosses the boundary of prompt and completion; such a token is not supervised),
    dropped (rows left out, without any supervised token), carried (rows with special tokens in their own text), and
    each `STOP`. Of chats also: unclear (dropped rows whose answers are not certain, each with its `REASON`), unended
    (answers without an end marker), unprompted (rows whose last answer does not follow the template's generation
    prompt) and each `MARKER`. Raises DataError without a fast tokenizer.
    """
    check_tokenizer(tokenizer)
    rows: list[TokenRow] = []
    if examples and isinstance(examples[0], Chat):
        encoded = _chat_tokens(examples, tokenizer, counts, chat or ChatSettings())
    else:
        encoded = _text_tokens(examples, tokenizer, counts)
    for ids, supervised, lead in encoded:
        keep = _cut(supervised, lead, max_length)
        counts["truncated"] += len(keep) < len(ids)
        counts["lost_supervised"] += supervised[keep].sum() < supervised.sum()
        ids, supervised = ids[keep].astype(np.int32), supervised[keep]
        row = TextRow(ids, np.where(supervised, ids, IGNORED).astype(np.int32))
        if row.supervised:
            rows.append(row)
        else:
            counts["dropped"] += 1
    return rows


def _text_tokens(
    examples: Sequence[Text | Completion], tokenizer: Any, counts: Counter
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield ids, which of them are supervised, and the number of opening tokens of each text.

    Special tokens at a text's ends that the tokenizer adds too are there once.
    """
    eos = tokenizer.eos_token_id
    for ids, starts, ends, lead, rendered in _encode(_render(examples), tokenizer):
        supervised, straddles = _mask(starts, ends, rendered.spans)
        counts["straddling"] += straddles
        once = _without_doubled(ids, lead, tokenizer)
        own_end = len(ids) > lead and ids[-1] == eos
        counts["carried"] += len(once) < len(ids) or own_end
        ids, supervised = ids[once], supervised[once]
        if own_end:
            supervised[-1] = True
        elif eos is not None:
            ids, supervised = np.append(ids, eos), np.append(supervised, True)
        if eos is not None:
            counts[f"{STOP}{eos}"] += 1
        yield ids, supervised, lead


def _without_doubled(ids: np.ndarray, lead: int, tokenizer: Any) -> np.ndarray:
    """Return the positions to keep of a text that begins with the opening token that the tokenizer adds too."""
    doubled = 0 < lead < len(ids) and ids[lead - 1] == ids[lead] == tokenizer.bos_token_id
    return np.delete(np.arange(len(ids)), lead) if doubled else np.arange(len(ids))


def _chat_tokens(
    examples: Sequence[Chat], tokenizer: Any, counts: Counter, settings: ChatSettings
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield ids, which of them are supervised, and how many tokens at the beginning a cut keeps, of each chat."""
    for one in encode_chats(examples, tokenizer, settings):
        counts["carried"] += one.carried
        if one.fault is not None:
            counts["unclear"] += 1
            counts[REASON + one.fault] += 1
        counts["unprompted"] += bool(one.turns) and not one.turns[-1].prompted
        for turn in one.endings:
            if turn.stop is not None:
                counts[f"{STOP}{turn.stop}"] += 1
            elif turn.marker:
                counts[MARKER + turn.marker] += 1
            else:
                counts["unended"] += 1
        yield one.ids, one.supervised, one.lead


def tokenise_labelled(
    examples: Sequence[Example],
    row_class: type[TokenRow],
    target_of: Callable[[Example], Any],
    tokenizer: Any,
    max_length: int,
    counts: Counter,
) -> list[TokenRow]:
    """Return one row for each example of `text` and `text_pair`: special tokens added, cut at the end.

    `target_of` gives a row's `labels`. `counts` gains `truncated`. Raises DataError without a fast tokenizer, or where
    `max_length` leaves no text.
    """
    check_tokenizer(tokenizer)
    paired = examples[0].text_pair is not None
    check_room(tokenizer, max_length, paired=paired)
    rows: list[TokenRow] = []
    for chunk in _chunks(examples):
        texts = [example.text for example in chunk]
        pairs = [example.text_pair for example in chunk] if paired else None
        encoded = tokenizer(texts, pairs, truncation=True, max_length=max_length, verbose=False)
        for i, example in enumerate(chunk):
            counts["truncated"] += bool(encoded.encodings[i].overflowing)
            types = np.array(encoded["token_type_ids"][i], np.int32) if paired and "token_type_ids" in encoded else None
            rows.append(row_class(np.array(encoded["input_ids"][i], np.int32), target_of(example), types))
    return rows


def tokenise_tagged(
    examples: Sequence[Example], labels: Sequence[str], tokenizer: Any, max_length: int, counts: Counter
) -> list[TokenRow]:
    """Return one row for each example of `words` and `tags`: words joined by spaces, a word's tag at its first token.

    `counts` gains `truncated` (rows cut), `lost_supervised` (rows that lost words by the cut), `unaligned` (words that
    have no token of their own) and `dropped` (rows without a supervised token). Raises DataError without a fast
    tokenizer, or where `max_length` leaves no text.
    """
    check_tokenizer(tokenizer)
    check_room(tokenizer, max_length, paired=False)
    number = {label: index for index, label in enumerate(labels)}
    rows: list[TokenRow] = []
    for chunk in _chunks(examples):
        texts = [" ".join(example.words) for example in chunk]
        encoded = tokenizer(texts, truncation=True, max_length=max_length, verbose=False)
        for example, encoding in zip(chunk, encoded.encodings, strict=True):
            row = _tag_row(example.words, [number[tag] for tag in example.tags], encoding, counts)
            if row.supervised:
                rows.append(row)
            else:
                counts["dropped"] += 1
    return rows


def _tag_row(words: Sequence[str], tags: Sequence[int], encoding: Any, counts: Counter) -> TagRow:
    """Return the row of one encoded text; `counts` gains all but `dropped`."""
    tokens = _first_tokens(words, encoding)
    missing = {word for word, token in enumerate(tokens) if token is None}
    cut = missing & {
        word
        for part in encoding.overflowing
        for word, token in enumerate(_first_tokens(words, part))
        if token is not None
    }
    counts["truncated"] += bool(encoding.overflowing)
    counts["lost_supervised"] += bool(cut)
    counts["unaligned"] += len(missing - cut)
    classes = np.full(len(encoding.ids), IGNORED, np.int32)
    for token, tag in zip(tokens, tags, strict=True):
        if token is not None:
            classes[token] = tag
    return TagRow(np.array(encoding.ids, np.int32), classes)


def _first_tokens(words: Sequence[str], encoding: Any) -> list[int | None]:
    """Return the first token of each word, None where no token is its own: words are joined by single spaces."""
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    offsets[np.array(encoding.special_tokens_mask, bool)] = -1
    found: list[int | None] = []
    begin, used = 0, -1
    for word in words:
        inside = np.flatnonzero((offsets[:, 1] > begin) & (offsets[:, 0] < begin + len(word)))
        own = next((int(token) for token in inside if token > used), None)
        used = used if own is None else own
        found.append(own)
        begin += len(word) + 1
    return found


def check_room(tokenizer: Any, max_length: int, *, paired: bool) -> None:
    """Raise DataError where a limit leaves no room for text after the tokenizer's special tokens."""
    if max_length <= (special := tokenizer.num_special_tokens_to_add(pair=paired)):
        raise DataError(f"data.max_length: {max_length} leaves no room for text after {special} special tokens")


def check_tokenizer(tokenizer: Any) -> None:
    """Raise DataError unless the tokenizer says which characters each token is from."""
    if not tokenizer.is_fast:
        raise DataError(f"{type(tokenizer).__name__} gives no character offsets; data needs a fast tokenizer")


def encode_prompt(tokenizer: Any, text: str, max_length: int | None = None) -> list[int]:
    """Return a prompt's ids as `completion` rows begin: the tokenizer's opening special tokens, no closing ones.

    Trailing spaces are removed, as in training; what exceeds `max_length` is cut at the beginning.
    """
    ids, _, _, lead, _ = next(_encode([Rendered(text.rstrip(" "), [])], tokenizer))
    return cut_prompt(ids[_without_doubled(ids, lead, tokenizer)], lead, max_length)


def encode_chat_prompt(tokenizer: Any, text: str, max_length: int | None = None) -> list[int]:
    """Return the ids of a prompt that the model's chat template wrote, as rows begin; its opening token is kept."""
    ids = encode_prompt_text(tokenizer, text)
    return cut_prompt(ids, int(len(ids) > 0 and ids[0] == tokenizer.bos_token_id), max_length)


def cut_chat_prompt(chat: EncodedChat, max_length: int) -> list[int]:
    """Return the ids before a chat's last supervised answer, cut as its row is."""
    keep = _cut(chat.supervised, chat.lead, max_length)
    first = chat.last_answer[0].first
    if chat.turns[-1].last - 1 in keep:
        return chat.ids[keep[keep < first]].tolist()
    return cut_prompt(chat.ids[:first], chat.lead, max_length)


def split_prompt(example: Completion) -> tuple[str, str]:
    """Move a prompt's trailing spaces to the completion, since BPE joins a space to the word after it."""
    prompt = example.prompt.rstrip(" ")
    return prompt, example.prompt[len(prompt) :] + example.completion


def _render(examples: Sequence[Text | Completion]) -> Iterator[Rendered]:
    for example in examples:
        prompt, completion = ("", example.text) if isinstance(example, Text) else split_prompt(example)
        yield Rendered(prompt + completion, [(len(prompt), len(prompt) + len(completion))])


def _encode(
    rendered: Iterator[Rendered] | Sequence[Rendered], tokenizer: Any
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, int, Rendered]]:
    """Yield ids, character starts and ends, number of opening special tokens, and what was encoded.

    Special tokens that the tokenizer adds have start and end -1; closing ones are dropped.
    """
    for chunk in _chunks(list(rendered)):
        encoded = tokenizer(
            [one.text for one in chunk],
            add_special_tokens=True,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,  # else it warns of rows longer than the model's limit, which are cut after this
        )
        for i, one in enumerate(chunk):
            ids = np.array(encoded["input_ids"][i], dtype=np.int64)
            added = np.array(encoded["special_tokens_mask"][i], dtype=bool)
            offsets = np.array(encoded["offset_mapping"][i], dtype=np.int64).reshape(-1, 2)
            offsets[added] = -1
            text_at = np.flatnonzero(~added)
            lead, stop = (int(text_at[0]), int(text_at[-1]) + 1) if len(text_at) else (int(added.sum()), len(ids))
            yield ids[:stop], offsets[:stop, 0], offsets[:stop, 1], lead, one


def _mask(starts: np.ndarray, ends: np.ndarray, spans: Sequence[tuple[int, int]]) -> tuple[np.ndarray, bool]:
    """Return which tokens begin within a span, and whether any token crosses the beginning of one."""
    supervised = np.zeros(len(starts), dtype=bool)
    straddles = False
    for begin, end in spans:
        supervised |= (starts >= begin) & (starts < end)
        straddles |= bool(((starts >= 0) & (starts < begin) & (ends > begin)).any())
    return supervised, straddles


def _cut(supervised: np.ndarray, lead: int, max_length: int) -> np.ndarray:
    """Return the positions to keep: first the prompt's beginning is cut (after `lead`), then the row's end.

    A `lead` that leaves no room for what is supervised is kept as one token.
    """
    length = len(supervised)
    first = int(supervised.argmax()) if supervised.any() else length
    lead = min(lead, first)
    if lead > 1 and length - (first - lead) > max_length and length > max_length:
        lead = 1
    drop = min(max(length - max_length, 0), first - lead)
    return np.concatenate([np.arange(lead), np.arange(lead + drop, length)])[:max_length]


def cut_prompt(ids: Sequence[int] | np.ndarray, lead: int, max_length: int | None) -> list[int]:
    """Return the ids of a prompt; what exceeds `max_length` is removed after its first `lead` tokens.

    It is removed after the first token where the lead would take more than half.
    """
    if max_length is not None and 2 * lead > max_length:
        lead = min(lead, 1)
    keep = _cut(np.zeros(len(ids), dtype=bool), lead, max_length or len(ids))
    return np.asarray(ids)[keep].tolist()


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), TEXTS_AT_ONCE):
        yield items[start : start + TEXTS_AT_ONCE]
