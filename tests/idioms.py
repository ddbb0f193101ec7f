"""Idioms of other languages, and words that say less than the field's own, each with what to say instead."""

from __future__ import annotations

import re

FORBIDDEN = {
    r"\b(go(es|ing)?|went) on\b": "continues, resumes",
    r"(?<!there )\bis no\b(?! longer)": "is not a valid ...",
    r"\b(told|tell|tells) .{0,20}apart\b": "significantly different",
    r"\btold\b(?! .{0,20}apart)": "given, reported",
    r"\bpass(ed|es)? over\b": "skipped",
    r"\bsurely\b": "significantly",
    r"\bholds?\b(?! out)": "contains",
    r"\b(take|takes|took|taken) up\b": "restore, reopen",
    r"(?<!learning[ -])(?<!error[ -])\brates?\b": "learning rate",
    r"\b(leave|leaves|left) word\b": "write a note",
    r"\blies\b": "is",
    r"\ball the same\b": "anyway",
    r"\bhow long\?": "set steps or epochs",
    r"\bonce more\b": "again",
    r"\b(come|comes|came) to \d": "is, took",
    r"\bthere are \d+ \w+ of memory\b": "it has ... of memory",
    r"\bwhat it took\b": "what it cost",
    r"\bstands? in\b": "replaces",
    r"\bnull unsets\b": "set to null",
}
# One search that finds nothing is much faster than one for each idiom, and most texts have none.
ANY = re.compile("|".join(FORBIDDEN), re.IGNORECASE)


def find_idioms(text: str) -> list[str]:
    """Return what is wrong with a text: each forbidden idiom in its place, and what to say instead."""
    words = " ".join(text.split())
    if not ANY.search(words):
        return []
    return [
        f"{words[max(0, found.start() - 30) : found.end() + 30]!r}: say {better}"
        for idiom, better in FORBIDDEN.items()
        for found in re.finditer(idiom, words, re.IGNORECASE)
    ]
