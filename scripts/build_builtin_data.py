"""Builds `builtin:docstrings`, `topics`, `identifiers` and `prose` from the running Python's standard library.

Run: python scripts/build_builtin_data.py            (writes them under peftlab/builtin/)
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import platform
import re
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from identifier_rows import WORDS, build_identifiers, describe_counts
from stdlib_corpus import TASK_MARKER, TOPICS, list_corpus_files, standard_library
from stdlib_definitions import Definition, Documented, Function, Place, iterate_definitions, shuffled

BUILTIN = Path(__file__).resolve().parent.parent / "peftlab" / "builtin"

PROMPT_CHARACTERS = 420
COMPLETION_CHARACTERS = (16, 110)
COMPLETION_WORDS = 3
# No module may be more than this many rows of a split, so that no single package's house style is the task.
ROWS_PER_MODULE = {"train": 450, "test": 110}

TOPIC_CHARACTERS = (40, 320)
TOPIC_ROWS = {"train": 260, "test": 70}

PROSE_CHARACTERS = (400, 1500)
PROSE_ROWS_PER_MODULE = 20


def first_line(node: Documented) -> str | None:
    """Return a docstring's first line if it is one whole sentence worth predicting."""
    lines = (ast.get_docstring(node) or "").strip().splitlines()
    if not lines:
        return None
    line = " ".join(lines[0].split())
    plain = line.isascii() and line.isprintable() and line[0].isupper() and line.endswith(".") and "..." not in line
    fits = COMPLETION_CHARACTERS[0] <= len(line) <= COMPLETION_CHARACTERS[1] and len(line.split()) >= COMPLETION_WORDS
    return line if plain and fits else None


def source_without_docstring(node: Function, lines: list[str]) -> str | None:
    """Return a function's dedented source, docstring removed; None where nothing but the docstring is in it."""
    docstring = node.body[0]
    if len(node.body) == 1 or docstring.lineno == node.lineno:
        return None
    start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    before = lines[start - 1 : docstring.lineno - 1]
    after = lines[docstring.end_lineno : node.end_lineno]
    kept = [line.rstrip().expandtabs(8) for line in before + after if line.strip()]
    return textwrap.dedent("\n".join(kept))


def cut_source(source: str, characters: int) -> str | None:
    """Keep the whole lines that fit, with `...` where lines are missing; None if not even the body's start fits."""
    if len(source) <= characters:
        return source
    kept = source[: characters - 8].rpartition("\n")[0]
    return f"{kept}\n    ..." if kept.count("\n") >= 1 else None


def docstring_row(node: Function, place: Place, lines: list[str]) -> dict[str, str] | None:
    completion = first_line(node)
    source = source_without_docstring(node, lines) if completion else None
    if not completion or not source or source.lstrip().startswith("'") or completion in source:
        return None
    name = ".".join((*place.outer, node.name))
    header = f"# {place.module}: {name}\n"
    body = cut_source(source, PROMPT_CHARACTERS - len(header))
    if body is None:
        return None
    prompt = f"{header}{body}\n{TASK_MARKER}"
    return {"module": place.module, "name": name, "prompt": prompt, "completion": f" {completion}"}


def build_docstrings(definitions: list[Definition], known: set[tuple[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Build both splits; a (name, completion) pair occurs once overall and nowhere in the pretraining text."""
    seen = set(known)
    rows: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    per_module: Counter[str] = Counter()
    for definition in shuffled(definitions):
        node, place = definition.node, definition.place
        row = docstring_row(node, place, definition.lines) if isinstance(node, Function) else None
        if row is None:
            continue
        pair = (row["name"].rpartition(".")[2], row["completion"].strip())
        if pair not in seen and per_module[place.top_level] < ROWS_PER_MODULE[place.split]:
            seen.add(pair)
            per_module[place.top_level] += 1
            rows[place.split].append(row)
    return {split: sort_rows(split_rows) for split, split_rows in rows.items()}


def topic_text(node: Documented) -> str | None:
    """Return a docstring's first paragraph on one line if it is long enough to tell a topic by."""
    paragraph = re.split(r"\n\s*\n", (ast.get_docstring(node) or "").strip())[0]
    text = " ".join(paragraph.split())
    letters = sum(character.isalpha() or character == " " for character in text)
    shortest, longest = TOPIC_CHARACTERS
    return text if shortest <= len(text) <= longest and text.isascii() and letters / len(text) > 0.8 else None


def build_topics(definitions: list[Definition]) -> dict[str, list[dict[str, str]]]:
    """Build both splits, with the same number of rows for each topic as far as there are texts; no text twice."""
    seen: set[str] = set()
    rows: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    counts: Counter[tuple[str, str]] = Counter()
    for definition in shuffled(definitions):
        text, place = topic_text(definition.node), definition.place
        key = (place.split, place.topic)
        if text and text.lower() not in seen and counts[key] < TOPIC_ROWS[place.split]:
            seen.add(text.lower())
            counts[key] += 1
            rows[place.split].append({"text": text, "label": place.topic, "module": place.module})
    return {split: sort_rows(split_rows) for split, split_rows in rows.items()}


def prose_text(node: Documented) -> str | None:
    """Return a long docstring, cut after the last paragraph that fits."""
    shortest, longest = PROSE_CHARACTERS
    text = "\n".join(line.rstrip() for line in (ast.get_docstring(node) or "").strip().splitlines())
    if len(text) > longest:
        text = text[:longest].rpartition("\n\n")[0]
    return text if len(text) >= shortest and text.isascii() else None


def build_prose(definitions: list[Definition]) -> dict[str, list[dict[str, str]]]:
    """Build the one split, of the modules that the other sets hold out; no text twice."""
    seen: set[str] = set()
    rows: list[dict[str, str]] = []
    per_module: Counter[str] = Counter()
    for definition in shuffled(definitions):
        text, place = prose_text(definition.node), definition.place
        is_new = place.split == "test" and text not in seen
        if text and is_new and per_module[place.top_level] < PROSE_ROWS_PER_MODULE:
            seen.add(text)
            per_module[place.top_level] += 1
            rows.append({"text": text, "module": place.module})
    return {"test": sort_rows(rows)}


def sort_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: tuple(row.values()))


def read_corpus_pairs(root: Path) -> set[tuple[str, str]]:
    """Return (function name, docstring's first line) of every function in the pretraining text."""
    pairs = set()
    for relative in list_corpus_files(root):
        try:
            tree = ast.parse((root / relative).read_bytes())
        except (SyntaxError, ValueError):
            continue
        functions = (node for node in ast.walk(tree) if isinstance(node, Function))
        pairs |= {(node.name, line) for node in functions if (line := first_line(node))}
    return pairs


def write_split(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write rows as json lines and return the line of the README's table about them."""
    text = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    modules = {row["module"].partition(".")[0] for row in rows}
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"| `{path.name}` | {len(rows):,} | {len(modules)} | {len(text.encode()):,} | `{digest}` |"


def write_readme(folder: Path, intro: str, lines: list[str]) -> None:
    table = "\n".join(["| file | rows | top-level modules | bytes | SHA-256 |", "|---|---|---|---|---|", *lines])
    text = f"{intro.strip()}\n\n{table}\n\n{SOURCE.format(python=platform.python_version()).strip()}\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


DOCSTRINGS_README = f"""# builtin:docstrings

Write the first line of a function's docstring, given its source. Each row has `module`, `name`, `prompt` and
`completion`: the prompt is a comment with the function's dotted name, its source without the docstring (whole lines,
cut at {PROMPT_CHARACTERS} characters, `...` where lines are missing) and the line `{TASK_MARKER}`; the completion is a
space and one sentence. The two files share no top-level module, and no pair of function name and sentence occurs twice
or in the tiny model's pretraining text.
"""
TOPICS_README = f"""# builtin:topics

Tell which part of the standard library a docstring speaks of:
{", ".join(TOPICS)}.
Each row has `text` (the first paragraph of the docstring of a module, class or function), `label` and `module`. The two
files share no top-level module, and no text occurs twice, so what is measured is the topic and not the memory of a
module.
"""
IDENTIFIERS_README = """# builtin:identifiers

Find the names in a sentence of documentation: parameters, classes, exceptions and functions. Each row has `words`,
`tags` (BIO2, one a word) and `module`. The sentences and list items come from the docstrings of modules, classes and
functions. The markup that marked a name (quotes, backquotes, asterisks, roles, empty parentheses) is removed, so that
context and spelling have to decide. The three files share no top-level module, and no sentence occurs twice.

{counts}

The labels follow a rule; no person has checked each of them:
- `PARAM`: a name of the function's own signature (for a class: of its `__init__`), `self` included. A name that is also
  an English word (`file`, `name`) counts where the text marks it, where "argument" or the like follows, or where it is
  a subject without a determiner ("if name is"). After a determiner ("the file") it is a plain noun.
- `TYPE`: a class of these modules, or a built-in type whose name is not an English word (`str`, not `list`).
- `FUNC`: a name that the text calls, as in `read()`, or gives in a :func: or :meth: role.
- `EXC`: an exception, built in or of these modules. Most end in Error, so spelling alone nearly decides this kind.

A dotted name is one span of several words. A sentence with a name that the rule cannot decide about is left out, which
makes the data somewhat easier than running text. Also left out are sentences of more than {longest} words, and most of
those without any name. Not labelled: attributes, modules, and parameters of other functions that are English words.

Changes made to the text: docstrings cut into sentences and words, markup removed, tags added.
"""
PROSE_README = """# builtin:prose

Running text to measure forgetting on: the long docstrings of the modules that `builtin:docstrings` and
`builtin:topics` hold out. Each row has `text` (cut after a paragraph) and `module`. There is nothing to train on.
"""
SOURCE = """
Source: the standard library of CPython {python}, by `python scripts/build_builtin_data.py`; another version of Python
gives somewhat different rows. `builtin:tiny` was pretrained on none of these modules.

Licence: the text is copyright 2001 onwards Python Software Foundation, all rights reserved, used and distributed under
the Python Software Foundation License Version 2 (`../LICENSE-PSF.txt`). Changes made: docstrings
taken out of their functions, blank lines dropped, tabs expanded, long functions cut.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=BUILTIN, help="folder to write to (default: the package's own)")
    output = parser.parse_args().output
    root = standard_library()
    definitions = list(iterate_definitions(root))
    docstrings = build_docstrings(definitions, read_corpus_pairs(root))
    topics = build_topics(definitions)
    identifiers = {split: sort_rows(rows) for split, rows in build_identifiers(definitions).items()}
    for name, intro, splits in (
        ("docstrings", DOCSTRINGS_README, docstrings),
        ("topics", TOPICS_README, topics),
        ("identifiers", IDENTIFIERS_README.format(counts=describe_counts(identifiers), longest=WORDS[1]), identifiers),
        ("prose", PROSE_README, build_prose(definitions)),
    ):
        lines = [write_split(output / name / f"{split}.jsonl", rows) for split, rows in splits.items()]
        write_readme(output / name, intro, lines)
        print("\n".join(lines))


if __name__ == "__main__":
    main()
