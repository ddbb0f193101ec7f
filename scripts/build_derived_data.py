"""Builds `builtin:readability` and `builtin:mentions` from `builtin:topics` and `builtin:identifiers`.

Run: python scripts/build_derived_data.py            (writes them under peftlab/builtin/)
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

BUILTIN = Path(__file__).resolve().parent.parent / "peftlab" / "builtin"
WORD = re.compile(r"[A-Za-z0-9_]+(?:['’.-][A-Za-z0-9_]+)*")
SENTENCE_END = re.compile(r"[.!?:;](?:\s|$)")
FEWEST_WORDS = 5
KINDS = {"PARAM": "parameter", "TYPE": "type", "FUNC": "function", "EXC": "exception"}

Rows = list[dict[str, Any]]
LICENCE = """Licence: the text is copyright 2001 onwards Python Software Foundation, all rights reserved, used and
distributed under the Python Software Foundation License Version 2 (`../LICENSE-PSF.txt`). Changes made: those of
{source}, and {change}.
"""


def readability(text: str) -> float | None:
    """Return the automated readability index of a text; None for one of few words.

    4.71 characters a word + 0.5 words a sentence - 21.43 (Smith and Senter 1967, AMRL-TR-66-220).
    """
    words = WORD.findall(text)
    if len(words) < FEWEST_WORDS:
        return None
    characters = sum(character.isalnum() for word in words for character in word)
    sentences = max(len(SENTENCE_END.findall(text)), 1)
    return 4.71 * characters / len(words) + 0.5 * len(words) / sentences - 21.43


def build_readability(splits: dict[str, Rows]) -> dict[str, Rows]:
    """Return the rows of each split with their index, less the training rows' mean and by their deviation."""
    measured = {
        split: [(row, index) for row in rows if (index := readability(row["text"])) is not None]
        for split, rows in splits.items()
    }
    middle, deviation = (measure([index for _, index in measured["train"]]) for measure in (mean, pstdev))
    return {
        split: [
            {"text": row["text"], "target": round((index - middle) / deviation, 3), "module": row["module"]}
            for row, index in rows
        ]
        for split, rows in measured.items()
    }


def build_mentions(rows: Rows) -> Rows:
    return [
        {
            "text": " ".join(row["words"]),
            "labels": [name for kind, name in KINDS.items() if f"B-{kind}" in row["tags"]],
            "module": row["module"],
        }
        for row in rows
    ]


def read(name: str) -> dict[str, Rows]:
    files = sorted((BUILTIN / name).glob("*.jsonl"))
    return {path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in files}


def write(name: str, splits: dict[str, Rows]) -> str:
    """Write a data set's files and return the table of them."""
    (BUILTIN / name).mkdir(exist_ok=True)
    lines = ["| file | rows | bytes | SHA-256 |", "|---|---|---|---|"]
    for split, rows in splits.items():
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        (BUILTIN / name / f"{split}.jsonl").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        lines.append(f"| `{split}.jsonl` | {len(rows):,} | {len(content):,} | `{digest}` |")
    return "\n".join(lines)


def main() -> None:
    levels = build_readability(read("topics"))
    table, targets = write("readability", levels), [row["target"] for row in levels["test"]]
    (BUILTIN / "readability" / "README.md").write_text(
        "# builtin:readability\n\nHow hard a docstring is to read, as a number: `target` is the automated readability"
        " index of `text`\n(4.71 characters a word + 0.5 words a sentence - 21.43; Smith and Senter, 1967), less the"
        " mean of the training rows\nand divided by their standard deviation. The texts are those of `builtin:topics`"
        f" with at least {FEWEST_WORDS} words, in the\nsame splits, which share no top-level module. In the test rows"
        f" the standard deviation is {pstdev(targets):.3f}, the root\nmean squared error of always predicting their"
        " mean.\n\n"
        f"{table}\n\nMade by `python scripts/build_derived_data.py`.\n\n"
        + LICENCE.format(source="`builtin:topics`", change="the number added"),
        encoding="utf-8",
    )
    named = {split: build_mentions(rows) for split, rows in read("identifiers").items()}
    table = write("mentions", named)
    shares = [
        f"{name} {sum(name in row['labels'] for row in named['test']) / len(named['test']):.1%}"
        for name in KINDS.values()
    ]
    none = sum(not row["labels"] for row in named["test"]) / len(named["test"])
    (BUILTIN / "mentions" / "README.md").write_text(
        "# builtin:mentions\n\nWhich kinds of names a sentence of documentation mentions: `labels` has any of"
        f" {', '.join(KINDS.values())},\nalso none. The sentences, their kinds of names and the splits are those of"
        f" `builtin:identifiers`.\n\nOf the test rows, {', '.join(shares)}, none {none:.1%}.\n\n"
        f"{table}\n\nMade by `python scripts/build_derived_data.py`.\n\n"
        + LICENCE.format(source="`builtin:identifiers`", change="tags turned into labels of the sentence"),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
