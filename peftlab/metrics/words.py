"""Words of a text in any script, and the script that a text is written in."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

# Scripts that write no spaces between words: each character is a token.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "YI")
# What the names of characters of each script begin with; the first that fits counts.
SCRIPTS = {
    "japanese": ("HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA"),
    "chinese": ("CJK",),
    "korean": ("HANGUL", "HALFWIDTH HANGUL"),
    "unspaced": UNSPACED,
    "latin": ("LATIN", "FULLWIDTH LATIN"),
}


def split_words(text: str) -> list[str]:
    """Return the words of a text without case: runs of letters, marks and digits, or single letters of some scripts."""
    words: list[str] = []
    spaced: bool | None = None  # whether the script of the last word, if it has not ended, writes spaces
    for character in unicodedata.normalize("NFKC", text).casefold():
        kind, unspaced = _kind(character)
        if kind not in "LNM":
            spaced = None
        elif spaced is not None and (kind == "M" or (spaced and not unspaced)):
            words[-1] += character
        else:
            words.append(character)
            spaced = not unspaced
    return words


@lru_cache(maxsize=4096)
def _kind(character: str) -> tuple[str, bool]:
    """Return a character's general category (one letter), and whether its script writes no spaces."""
    return unicodedata.category(character)[0], unicodedata.name(character, "").startswith(UNSPACED)


def find_script(texts: Iterable[str]) -> str:
    """Return the script of most letters: a name in SCRIPTS, `other`, or `latin` for texts without letters.

    Any kana make Chinese characters Japanese.
    """
    counts = Counter(_script(character) for text in texts for character in text if character.isalpha())
    if counts["japanese"]:
        counts["japanese"] += counts.pop("chinese", 0)
    return max(counts, key=counts.__getitem__) if counts else "latin"


@lru_cache(maxsize=4096)
def _script(character: str) -> str:
    name = unicodedata.name(character, "")
    return next((script for script, beginnings in SCRIPTS.items() if name.startswith(beginnings)), "other")
