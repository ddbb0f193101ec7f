"""Tokens of examples: which ids, which of them are supervised, and what is cut from rows that are too long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np

from peftlab.data.chat import encode_prompt_text
from peftlab.data.token_rows import IGNORED, TagRow, TokenRow
from peftlab.errors import DataError
from peftlab.recipe.schema import Data
from peftlab.tasks.base import Tokenising
from peftlab.tasks.formats import Completion, Example

TEXTS_AT_ONCE = 1024
LEAST_CHARACTERS = 4096
# The beginnings of keys in counts: the reason why a row was dropped, the id of a special token that ends what is
# supervised, an end marker that is plain text, and the id of an added token after which an answer continues.
REASON, STOP, MARKER, INNER = "reason: ", "stop: ", "marker: ", "inner: "


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text as the tokenizer gets it, and the spans of its characters that are supervised."""

    text: str
    spans: Sequence[tuple[int, int]]


def special_ids(tokenizer: Any) -> list[int]:
    """Return the ids of the special tokens that a text can name; not that of what the tokenizer does not know."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted((added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id})


def as_generated(text: str, encode: Callable[[], Sequence[int]], tokenizer: Any) -> str:
    """Return an answer as it is read where it is generated: special tokens in it, such as an end, are no text there.

    `encode` returns its ids.
    """
    if any(special in text for special in _special_texts(tokenizer)):
        text = tokenizer.decode(encode(), skip_special_tokens=True)
    return text.strip()


@lru_cache(maxsize=4)
def _special_texts(tokenizer: Any) -> tuple[str, ...]:
    return tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special and token.content)


def without_doubled(ids: np.ndarray, lead: int, tokenizer: Any) -> np.ndarray:
    """Return the positions to keep of a text that begins with the opening token that the tokenizer adds too."""
    doubled = 0 < lead < len(ids) and ids[lead - 1] == ids[lead] == tokenizer.bos_token_id
    return np.delete(np.arange(len(ids)), lead) if doubled else np.arange(len(ids))


def tokenise_labelled(
    examples: Sequence[Example], row_class: type[TokenRow], target_of: Callable[[Example], Any], how: Tokenising
) -> list[TokenRow]:
    """Return one row for each example of `text` and `text_pair`: special tokens added, cut at the end.

    Special tokens that a text begins or ends with and the tokenizer adds there too are there once. `target_of` gives a
    row's `labels`. `how.counts` gains `truncated`, `carried` (rows with special tokens in their own text), and
    `skipped` where long rows are. Raises DataError without a fast tokenizer, or where `max_length` leaves no text.
    """
    tokenizer, limit = how.tokenizer, how.section.max_length
    check_tokenizer(tokenizer)
    paired, special = examples[0].text_pair is not None, special_ids(tokenizer)
    check_room(tokenizer, limit, paired=paired)
    enough = enough_characters(tokenizer, how.section)
    rows: list[TokenRow] = []
    for chunk in chunks(examples):
        texts = [example.text[:enough] for example in chunk]
        pairs = [example.text_pair[:enough] for example in chunk] if paired else None
        encoded = tokenizer(texts, pairs, truncation=True, max_length=limit, verbose=False)
        for example, encoding in zip(chunk, encoded.encodings, strict=True):
            if not encoding.overflowing and max(len(example.text), len(example.text_pair or "")) > enough:
                # What was read is mostly white space, or other text that has no tokens.
                encoding = tokenizer(
                    example.text, example.text_pair, truncation=True, max_length=limit, verbose=False
                ).encodings[0]
            if _is_skipped(encoding, how):
                continue
            how.counts["truncated"] += bool(encoding.overflowing)
            ids, (keep, carried) = np.array(encoding.ids, np.int32), _once(encoding, special)
            how.counts["carried"] += carried
            types = _types(encoding, tokenizer, paired=paired)
            rows.append(row_class(ids[keep], target_of(example), None if types is None else types[keep]))
    return rows


def _types(encoding: Any, tokenizer: Any, *, paired: bool = False) -> np.ndarray | None:
    """Return the segments of a text's tokens; None where the model has none, or where all are the first.

    The class token of XLNet and Funnel has a segment of its own, in rows of one text too.
    """
    types = np.array(encoding.type_ids, np.int32)
    return types if "token_type_ids" in tokenizer.model_input_names and (paired or types.any()) else None


def _once(encoding: Any, special: Sequence[int]) -> tuple[np.ndarray, bool]:
    """Return the places to keep of a text whose special tokens repeat added ones beside them, and if it has any."""
    ids, added = np.array(encoding.ids), np.array(encoding.special_tokens_mask, bool)
    own = np.isin(ids, special) & ~added
    same = ids[1:] == ids[:-1]
    twice = np.zeros(len(ids), bool)
    twice[1:] |= own[1:] & added[:-1] & same
    twice[:-1] |= own[:-1] & added[1:] & same
    return np.flatnonzero(~twice), bool(own.any())


def tokenise_tagged(examples: Sequence[Example], how: Tokenising) -> list[TokenRow]:
    """Return one row for each example of `words` and `tags`: words joined by spaces, a word's tag at its first token.

    `how.counts` gains `truncated` (rows cut), `lost_supervised` (rows that lost words by the cut), `unaligned` (words
    that have no token of their own), `dropped` (rows without a supervised token), and `skipped` where long rows are.
    Raises DataError without a fast tokenizer, or where `max_length` leaves no text.
    """
    tokenizer, limit = how.tokenizer, how.section.max_length
    check_tokenizer(tokenizer)
    check_room(tokenizer, limit, paired=False)
    number = {label: index for index, label in enumerate(how.labels)}
    enough = enough_characters(tokenizer, how.section)
    rows: list[TokenRow] = []
    for chunk in chunks(examples):
        words = [example.words[: _count_words(example.words, enough)] for example in chunk]
        encoded = tokenizer([" ".join(one) for one in words], truncation=True, max_length=limit, verbose=False)
        for example, kept, encoding in zip(chunk, words, encoded.encodings, strict=True):
            if len(kept) < len(example.words) and not encoding.overflowing:
                kept = example.words
                encoding = tokenizer(" ".join(kept), truncation=True, max_length=limit, verbose=False).encodings[0]
            if _is_skipped(encoding, how):
                continue
            tags = [number[tag] for tag in example.tags[: len(kept)]]
            row = _tag_row(kept, tags, encoding, how.counts, _types(encoding, tokenizer))
            if row.supervised:
                rows.append(row)
            else:
                how.counts["dropped"] += 1
    return rows


def _is_skipped(encoding: Any, how: Tokenising) -> bool:
    skipped = bool(encoding.overflowing) and how.section.long == "skip"
    how.counts["skipped"] += skipped
    return skipped


def _count_words(words: Sequence[str], enough: int) -> int:
    """Return how many words, joined by spaces, have `enough` characters; all where they have fewer."""
    ends = accumulate(len(word) + 1 for word in words)
    return next((count for count, end in enumerate(ends, start=1) if end > enough), len(words))


def enough_characters(tokenizer: Any, section: Data) -> int:
    """Return a number of characters of which any text has more than twice `data.max_length` tokens.

    Of a text that is to be cut, no more needs to be tokenised: the tokens at its own end are cut with the rest.
    """
    return max(LEAST_CHARACTERS, 2 * section.max_length * _longest_token(tokenizer))


@lru_cache(maxsize=4)
def _longest_token(tokenizer: Any) -> int:
    return max(map(len, tokenizer.get_vocab()))


def _tag_row(
    words: Sequence[str], tags: Sequence[int], encoding: Any, counts: Counter, types: np.ndarray | None
) -> TagRow:
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
    return TagRow(np.array(encoding.ids, np.int32), classes, types)


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
    ids, _, _, lead, _ = next(encode_rendered([Rendered(text.rstrip(" "), [])], tokenizer))
    return cut_prompt(ids[without_doubled(ids, lead, tokenizer)], lead, max_length)


def encode_chat_prompt(tokenizer: Any, text: str, max_length: int | None = None, cuts: Sequence[int] = ()) -> list[int]:
    """Return the ids of a prompt that the model's chat template wrote, as rows begin; its opening token is kept.

    `cuts` are those of an `EncodedChat` with the same text before them.
    """
    ids = encode_prompt_text(tokenizer, text, cuts)
    return cut_prompt(ids, int(len(ids) > 0 and ids[0] == tokenizer.bos_token_id), max_length)


def split_prompt(example: Completion) -> tuple[str, str]:
    """Move a prompt's trailing spaces to the completion, since BPE joins a space to the word after it."""
    prompt = example.prompt.rstrip(" ")
    return prompt, example.prompt[len(prompt) :] + example.completion


def encode_rendered(
    rendered: Iterable[Rendered], tokenizer: Any, shorter: Iterable[Rendered] | None = None, max_length: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, int, Rendered]]:
    """Yield ids, character starts and ends, number of opening special tokens, and what was encoded.

    Where `shorter` ones are given, each is encoded instead of the whole as far as it has more tokens than a row.
    Special tokens that the tokenizer adds have start and end -1; closing ones are dropped.
    """
    wholes = list(rendered)
    for whole, found in zip(wholes, _encode(wholes if shorter is None else list(shorter), tokenizer), strict=True):
        is_part = len(found[-1].text) < len(whole.text) and len(found[0]) <= max_length
        yield next(_encode([whole], tokenizer)) if is_part else found


def _encode(
    rendered: Sequence[Rendered], tokenizer: Any
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, int, Rendered]]:
    for chunk in chunks(rendered):
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


def mask_spans(starts: np.ndarray, ends: np.ndarray, spans: Sequence[tuple[int, int]]) -> tuple[np.ndarray, bool]:
    """Return which tokens begin within a span, and whether any token crosses the beginning of one."""
    supervised = np.zeros(len(starts), dtype=bool)
    straddles = False
    for begin, end in spans:
        supervised |= (starts >= begin) & (starts < end)
        straddles |= bool(((starts >= 0) & (starts < begin) & (ends > begin)).any())
    return supervised, straddles


def cut_positions(
    supervised: np.ndarray, lead: int, max_length: int, *, middle: bool = False, rest: bool = False
) -> np.ndarray:
    """Return the positions to keep: first what comes after the last target is cut, then the prompt, then the end.

    The prompt loses its beginning after `lead` tokens, or with `middle` as much around its middle. A `lead` that
    leaves no room for what is supervised is kept as one token. With `rest` what comes after the last target stays.
    """
    length = len(supervised) if rest else max(count_needed(supervised), min(len(supervised), max_length))
    first = int(supervised.argmax()) if supervised.any() else length
    lead = min(lead, first)
    if lead > 1 and length - (first - lead) > max_length and length > max_length:
        lead = 1
    drop = min(max(length - max_length, 0), first - lead)
    begin = lead + ((first - lead - drop) // 2 if middle else 0)
    return np.concatenate([np.arange(begin), np.arange(begin + drop, length)])[:max_length]


def count_needed(supervised: np.ndarray) -> int:
    """Return how many tokens of a row there are up to its last target, which does not depend on later ones.

    All of a row without targets.
    """
    return len(supervised) - int(supervised[::-1].argmax()) if supervised.any() else len(supervised)


def cut_prompt(
    ids: Sequence[int] | np.ndarray, lead: int, max_length: int | None, *, middle: bool = False
) -> list[int]:
    """Return the ids of a prompt; what exceeds `max_length` is removed after its first `lead` tokens.

    It is removed after the first token where the lead would take more than half, and with `middle` around the middle.
    """
    if max_length is not None and 2 * lead > max_length:
        lead = min(lead, 1)
    keep = cut_positions(np.zeros(len(ids), dtype=bool), lead, max_length or len(ids), middle=middle)
    return np.asarray(ids)[keep].tolist()


def chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield items in runs of as many as are tokenised at once."""
    for start in range(0, len(items), TEXTS_AT_ONCE):
        yield items[start : start + TEXTS_AT_ONCE]
