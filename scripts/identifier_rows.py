"""Owns which sentences become rows of `builtin:identifiers`, and what its README says of them."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from identifier_lexicon import Lexicon, build_lexicon, parameters_of
from identifier_tags import tag_sentence
from stdlib_definitions import Definition, Place, shuffled

# Modules that the other sets train on and that this set keeps for choosing a step or a setting; at least one a topic.
EVALUATION_MODULES = frozenset(
    "ssl urllib subprocess tarfile random _strptime html mimetypes idlelib inspect weakref tokenize".split()
)
KINDS = ("PARAM", "TYPE", "FUNC", "EXC")
SPLITS = ("test", "evaluation", "train")
# At least so many words that begin with a letter, and at most so many words and signs.
WORDS = (3, 24)
ROWS_PER_MODULE = {"train": 300, "evaluation": 90, "test": 120}
# Rows without any name, as a part of the number of rows with one, so that a model also learns where there is none.
PLAIN_FRACTION = 0.15

LIST_ITEM = re.compile(r"\n(?=\s*(?:[-*o]\s+)?['\"`*]{0,2}[A-Za-z_]\w*['\"`*]{0,2}\s*(?:--?|:)\s|\s*[-*]\s)")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z'\"*`(:])")

Row = dict[str, Any]


def iterate_sentences(docstring: str) -> Iterator[str]:
    """Yield the sentences and list items of a docstring, each on one line; sessions at a prompt are left out."""
    for paragraph in re.split(r"\n\s*\n", docstring):
        if ">>>" not in paragraph:
            for item in LIST_ITEM.split(paragraph):
                text = " ".join(item.split())
                yield from SENTENCE_END.split(re.sub(r"^[-*] ", "", text))


def is_of_fit_length(words: list[str]) -> bool:
    return sum(word[0].isalpha() for word in words) >= WORDS[0] and len(words) <= WORDS[1]


def split_of(place: Place) -> str:
    return "evaluation" if place.top_level in EVALUATION_MODULES else place.split


def read_rows(definitions: list[Definition], lexicon: Lexicon) -> Iterator[tuple[str, Row]]:
    """Yield (split, row) in a fixed order, held-out splits first; no two rows have the same words in any case."""
    seen: set[str] = set()
    for definition in sorted(shuffled(definitions), key=lambda definition: SPLITS.index(split_of(definition.place))):
        place, parameters = definition.place, parameters_of(definition.node)
        for sentence in iterate_sentences(ast.get_docstring(definition.node) or ""):
            tagged = tag_sentence(sentence, parameters, place.top_level, lexicon)
            key = " ".join(tagged[0]).lower() if tagged else ""
            if tagged and is_of_fit_length(tagged[0]) and key not in seen:
                seen.add(key)
                yield split_of(place), {"words": tagged[0], "tags": tagged[1], "module": place.module}


def build_identifiers(definitions: list[Definition]) -> dict[str, list[Row]]:
    """Build the splits train, evaluation and test, in that order, from the sentences whose names are all decided."""
    named: dict[str, list[Row]] = {split: [] for split in reversed(SPLITS)}
    plain: dict[str, list[Row]] = {split: [] for split in SPLITS}
    per_module: Counter[tuple[str, bool]] = Counter()
    for split, row in read_rows(definitions, build_lexicon(definitions)):
        has_name = set(row["tags"]) != {"O"}
        key = (row["module"].partition(".")[0], has_name)
        if per_module[key] < ROWS_PER_MODULE[split]:
            per_module[key] += 1
            (named if has_name else plain)[split].append(row)
    return {split: rows + plain[split][: round(PLAIN_FRACTION * len(rows))] for split, rows in named.items()}


def count_names(rows: list[Row]) -> Counter[str]:
    """Return how many names of each kind the rows contain, counted at their first words."""
    return Counter(tag[2:] for row in rows for tag in row["tags"] if tag.startswith("B-"))


def describe_counts(splits: dict[str, list[Row]]) -> str:
    """Return the README's table of names by kind and split, with the part of the words that is in a name."""
    lines = ["| split | " + " | ".join(KINDS) + " | words | words in names |", "|---" * (len(KINDS) + 3) + "|"]
    for split, rows in splits.items():
        counts, tags = count_names(rows), [tag for row in rows for tag in row["tags"]]
        share = sum(tag != "O" for tag in tags) / len(tags)
        lines.append(f"| {split} | {' | '.join(f'{counts[kind]:,}' for kind in KINDS)} | {len(tags):,} | {share:.1%} |")
    return "\n".join(lines)
