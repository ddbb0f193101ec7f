"""An answer piece by piece while it is generated: the pieces joined are the answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from transformers.generation.streamers import BaseStreamer

UNDECODED = "\ufffd"


class PieceStreamer(BaseStreamer):
    """Calls `watch` with each piece of one answer as soon as no later token can change it.

    Held back are halves of characters, what may be the beginning of a text in `stops`, spaces at the end, and the last
    word where the tokenizer joins words when it decodes.
    """

    def __init__(self, tokenizer: Any, end_ids: Collection[int], stops: Sequence[str], watch: Callable[[str], None]):
        self._tokenizer, self._ends, self._stops, self._watch = tokenizer, end_ids, stops, watch
        self._ids: list[int] = []
        self._shown = ""
        self._begun = self._closed = False

    def put(self, value: Any) -> None:
        """Take the prompt, which comes first, or the next token."""
        if not self._begun or self._closed:
            self._begun = True
            return
        self._ids += value.flatten().tolist()
        if self._ids[-1] in self._ends:
            self._closed = True
            return
        self._show(self._settled(self._tokenizer.decode(self._ids, skip_special_tokens=True)))

    def end(self) -> None:
        """Nothing: `finish` shows what is left of the answer."""

    def finish(self, answer: str) -> None:
        """Show what is left of the whole answer."""
        self._show(answer)

    def _show(self, text: str) -> None:
        if text.startswith(self._shown) and text != self._shown:
            self._watch(text[len(self._shown) :])
            self._shown = text

    def _settled(self, text: str) -> str:
        text = text.lstrip()
        ends = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            return text[: min(ends)].rstrip()
        longest = max((_overlap(text, stop) for stop in self._stops), default=0)
        text = text[: len(text) - longest].rstrip(UNDECODED)
        if getattr(self._tokenizer, "clean_up_tokenization_spaces", False):
            text = text[: max(text.rfind(" "), 0)]
        return text.rstrip()


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text may begin a stop text."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
