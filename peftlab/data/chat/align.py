"""Characters to tokens: where a text can be cut between two tokens, and the special tokens that cross a cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np


class Offsets:
    """Where each token of one text begins and ends, in characters that no tokenizer setting has trimmed."""

    def __init__(self, text: str, offsets: Sequence[tuple[int, int]], added: np.ndarray) -> None:
        pairs = np.array(offsets, dtype=np.int64).reshape(-1, 2)
        self.text, self.starts, self.ends, self.added = text, pairs[:, 0], pairs[:, 1], added

    def cut(self, place: int) -> int | None:
        """Return how many tokens stand before a character; None where a token crosses it."""
        before = self.starts < place
        count = int(before.sum())
        whole = before[:count].all() and (self.ends[:count] <= place).all()
        return count if whole else None

    def begin(self, place: int, lowest: int = 0) -> int | None:
        """Return the first token of an answer that begins at a character; None where a token crosses from the prompt.

        The prompt's last spaces join the answer's first word, as they must in prompts that end with one. A special
        token of the prompt may have taken the answer's first blanks with it.
        """
        for candidate in (self.before_blanks(place, lowest), place):
            if (found := self.cut(candidate)) is not None:
                return found
        if (crossing := self._crossing(place)) is None:
            return None
        beyond = int(self.ends[crossing])
        if self.added[crossing] and not self.text[place:beyond].strip():
            return self.cut(beyond)
        return None

    def before_blanks(self, place: int, lowest: int = 0) -> int:
        """Return where the spaces before a character begin, not before `lowest`."""
        return max(len(self.text[:place].rstrip(" ")), lowest)

    def end(self, place: int) -> int | None:
        """Return the token after an answer that ends at a character; None where one crosses into other text.

        A token may join the answer's end to the whitespace after it, or whitespace at its end to what follows.
        """
        if (found := self.cut(place)) is not None:
            return found
        if (crossing := self._crossing(place)) is None:
            return None
        first, beyond = int(self.starts[crossing]), int(self.ends[crossing])
        if not self.text[place:beyond].strip():
            return self.cut(beyond)
        return None if self.text[first:place].strip() else self.cut(first)

    def last_written(self, first: int, last: int) -> int | None:
        """Return the last of the tokens from `first` up to `last` that is not whitespace alone."""
        tokens = reversed(range(first, last))
        return next((i for i in tokens if self.text[self.starts[i] : self.ends[i]].strip()), None)

    def _crossing(self, place: int) -> int | None:
        found = np.flatnonzero((self.starts < place) & (self.ends > place))
        return int(found[0]) if len(found) else None


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, Offsets]]:
    """Yield the ids of texts that carry their own special tokens, as the tokenizer gives them, and their offsets."""
    added = np.array(sorted(tokenizer.added_tokens_decoder), dtype=np.int64)
    with _untrimmed(tokenizer):
        encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for text, numbers, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        ids = np.array(numbers, dtype=np.int64)
        yield ids, Offsets(text, offsets, np.isin(ids, added))


def separate(
    tokenizer: Any, ids: np.ndarray, offsets: Offsets, places: Sequence[int]
) -> tuple[np.ndarray, Offsets] | None:
    """Return the tokens of a text of which none crosses these characters; None where it has no such, or needs none.

    A special token stands at each of them while the text is encoded, and is left out. What is before an answer is then
    encoded as a prompt is that the answer has yet to follow.
    """
    mark = _plain_mark(tokenizer) if places else None
    if mark is None:
        return None
    cuts = np.array(sorted(set(places)), dtype=np.int64)
    pieces = [offsets.text[begin:end] for begin, end in pairwise([0, *cuts.tolist(), len(offsets.text)])]
    marked, found = next(encode_texts(tokenizer, [mark.join(pieces)]))
    begins = cuts + len(mark) * np.arange(len(cuts))  # of the marks
    own = ~(np.isin(found.starts, begins) & (found.ends > found.starts))
    kept = marked[own]
    if len(marked) - len(kept) != len(cuts) or _decode(tokenizer, kept) != _decode(tokenizer, ids):
        return None
    edges = np.stack([found.starts[own], found.ends[own]], axis=1)
    edges -= len(mark) * np.searchsorted(begins + len(mark), edges, "right")
    return kept, Offsets(offsets.text, [(first, last) for first, last in edges.tolist()], found.added[own])


def _plain_mark(tokenizer: Any) -> str | None:
    """Return a special token that takes no blanks beside it."""
    marks = (
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special and token.content and not (token.lstrip or token.rstrip or token.single_word)
    )
    return next(marks, None)


def _decode(tokenizer: Any, ids: np.ndarray) -> str:
    return tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)


@contextmanager
def _untrimmed(tokenizer: Any) -> Iterator[None]:
    """Keep the tokenizer from post-processing: it would add no token here, but trim blanks from the offsets."""
    backend = tokenizer.backend_tokenizer
    processor = backend.post_processor
    backend.post_processor = None
    try:
        yield
    finally:
        backend.post_processor = processor
