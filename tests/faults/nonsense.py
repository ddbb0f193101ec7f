"""Recipes and rows made by chance, each with the verdict that they must get: the oracle of the fuzz.

`python -m tests.faults.nonsense CASES` runs that many and prints what it found.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from peftlab.data.parts import read_examples
from peftlab.data.sources import read_source
from peftlab.errors import DataError, RecipeError
from peftlab.methods import METHODS
from peftlab.recipe import dump_recipe, parse_recipe
from peftlab.recipe.schema import Data
from peftlab.tasks import find_format, list_formats

from ..pace import costs_at_most

SLOWEST_SECONDS = 2.0
VALUES: dict[str, dict[str, Any]] = {
    "model": {"name": "builtin:tiny", "dtype": "float32", "revision": "main", "attention": "sdpa"},
    "data": {"train": "x.csv", "evaluation": 0.1, "max_length": 64, "train_rows": 9, "columns": {"prompt": "q"}},
    "training": {"steps": 10, "learning_rate": 1e-4, "batch_size": 2, "warmup": 3, "clip": 1.0, "schedule": "cosine"},
    "evaluation": {"every": 5, "metrics": ["loss", "bleu"], "batch_size": 4, "generation": {"beams": 2, "rows": 3}},
    "run": {"output": "out", "seed": 7, "save_every": 5, "log_every": 2, "trackers": ["tensorboard"], "plan": "report"},
}
OWN_FIELDS = {
    "lora": {"rank": 4, "alpha": 8.0, "targets": ["q_proj"]},
    "qlora": {"rank": 4, "quantization": "fp4"},
    "adapters": {"bottleneck": 8},
    "prefix": {"length": 5},
    "bitfit": {"terms": "subset"},
    "full": {"layers": 2},
}
REQUIRED = [("model",), ("method",), ("data",), ("training",), ("model", "name"), ("method", "type"), ("data", "train")]
REQUIRED += [("training", "learning_rate")]
# No field takes any of these, whatever it is for.
MISFITS = [{"a": {"b": 1}}, [[1]], [{}], -1, -0.5, float("nan"), float("-inf"), 10**31, "\x07", "hf_" + "a" * 30]
SCRAPS = ["\t", "\n", ": ", "- ", "*a", "&a ", "!!python/name:os.system ", "{", "]", "'", '"', "|", "#", "%", "\x00"]
SCRAPS += ["---\n", "9" * 50, "é", "<<: ", "? ", "null", "\u2028", "[" * 30, "model:"]


def make_valid(chance: random.Random) -> dict[str, Any]:
    """Return the values of a recipe that must be accepted: required fields and some others."""
    method = chance.choice(sorted(METHODS))
    own = {name: value for name, value in OWN_FIELDS[method].items() if chance.random() < 0.7}
    recipe: dict[str, Any] = {"method": {"type": method, **own}}
    for section, fields in VALUES.items():
        needed = {path[1] for path in REQUIRED if len(path) == 2 and path[0] == section} | {"steps", "evaluation"}
        kept = {name: value for name, value in fields.items() if name in needed or chance.random() < 0.5}
        if kept:
            recipe[section] = kept
    return json.loads(json.dumps(recipe))


def remove_required(chance: random.Random, recipe: dict[str, Any]) -> None:
    *section, key = chance.choice(REQUIRED)
    del (recipe[section[0]] if section else recipe)[key]


def misspell(chance: random.Random, recipe: dict[str, Any]) -> None:
    """Change one letter of a key, so that no field has it."""
    section = chance.choice([recipe, *(values for values in recipe.values() if values)])
    key = chance.choice(sorted(section))
    at = chance.randrange(len(key))
    section[key[:at] + chance.choice("QXZ7-") + key[at + 1 :]] = section.pop(key)


def put_misfit(chance: random.Random, recipe: dict[str, Any]) -> None:
    section = recipe[chance.choice(sorted(recipe))]
    section[chance.choice(sorted(section))] = chance.choice(MISFITS)


def put_for_section(chance: random.Random, recipe: dict[str, Any]) -> None:
    recipe[chance.choice(sorted(recipe))] = chance.choice([3, "text", [], [1], True, None, 0.5])


Damage = Callable[[random.Random, dict[str, Any]], None]
DAMAGES: list[Damage] = [remove_required, misspell, put_misfit, put_for_section]


def write_yaml(values: dict[str, Any]) -> str:
    from io import StringIO

    stream = StringIO()
    YAML(typ="safe", pure=True).dump(values, stream)
    return stream.getvalue()


def scramble(chance: random.Random, text: str) -> str:
    """Return the text with a few cuts, copies and insertions; nobody knows what it is now."""
    for _ in range(chance.randint(1, 4)):
        at, to, length = chance.randrange(len(text) + 1), chance.randrange(len(text) + 1), chance.randint(0, 12)
        piece = chance.choice([chance.choice(SCRAPS), text[at : at + length], ""])
        text = text[:to] + piece + text[to + chance.choice([0, 0, length]) :]
    return text


def try_recipe(text: str, overrides: tuple[str, ...] = ()) -> bool:
    """Whether a recipe is accepted; raises whatever is no RecipeError, and AssertionError for an unclear refusal."""
    try:
        recipe = parse_recipe(text, overrides, file="r.yaml")
    except RecipeError as error:
        assert error.problems and all(str(problem).splitlines() == [str(problem)] for problem in error.problems)
        return False
    assert parse_recipe(dump_recipe(recipe)) == recipe, "what was accepted does not survive being written"
    return True


def check_recipe(seed: int) -> str:
    """Make one recipe and judge it; return what kind of case it was."""
    chance = random.Random(seed)
    values = make_valid(chance)
    assert try_recipe(write_yaml(values)), "a valid recipe was refused"
    kind = chance.choice(["damaged", "scrambled", "overridden"])
    if kind == "scrambled":
        try_recipe(scramble(chance, write_yaml(values)))
    elif kind == "damaged":
        damage = chance.choice(DAMAGES)
        damage(chance, values)
        assert not try_recipe(write_yaml(values)), f"{damage.__name__}: nonsense was accepted: {values}"
    else:
        section = chance.choice(sorted(values))
        key = f"{section}.{chance.choice(sorted(values[section]))}"
        try_recipe(write_yaml(values), (f"{scramble(chance, key)}={scramble(chance, 'value')}",))
    return kind


def make_rows(chance: random.Random, layout: str) -> list[dict[str, Any]]:
    texts = ["a", "two words", "ünï", "x" * 50, 'q"uo,te', "1", "日本"]
    rows = []
    for _ in range(chance.randint(1, 5)):
        row: dict[str, Any] = {role: chance.choice(texts) for role in find_format(layout).roles}
        if layout == "chat":
            row = {"messages": [{"role": role, "content": chance.choice(texts)} for role in ("user", "assistant")]}
        if layout == "tokens":
            row = {role: [chance.choice(texts) for _ in range(3)] for role in row}
        if layout == "regression":
            row["target"] = chance.choice([0, -1.5, 1e6, "2.5"])
        rows.append(row)
    return rows


def write_rows(chance: random.Random, rows: list[dict[str, Any]]) -> tuple[str, bytes]:
    plain = {"messages", "words", "tags"}.isdisjoint(key for row in rows for key in row)
    suffix = chance.choice([".jsonl", ".json", ".csv"] if plain else [".jsonl", ".json"])
    if suffix == ".csv":
        cells = [list(rows[0]), *(row.values() for row in rows)]
        lines = [",".join('"' + str(cell).replace('"', '""') + '"' for cell in line) for line in cells]
        return suffix, "\r\n".join(lines).encode()
    return suffix, (json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))).encode()


def damage_rows(chance: random.Random, rows: list[dict[str, Any]]) -> None:
    """Put something into one cell that is no text, or take the cell away."""
    row = chance.choice(rows)
    key = chance.choice([key for key in row if key not in ("text_pair", "labels")])  # both may be empty
    row[key] = chance.choice([None, "", " \n", [], {}, {"a": 1}, [[["x"]]], "\ud800", float("nan")])
    if chance.random() < 0.2:
        del row[key]


BYTES = [b"\xff", b"\x00", b'"', b"{", b"}", b"[" * 2000, b",", b"\n", b"\r", b"\\u", b"9" * 5000, b""]


def damage_bytes(chance: random.Random, content: bytes) -> bytes:
    """Flip, cut, copy and insert bytes."""
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(len(content) + 1)
        content = content[:at] + chance.choice(BYTES) + content[at + chance.choice([0, 1, 7]) :]
    return content


def try_rows(path: Path, layout: str, content: bytes) -> bool:
    path.write_bytes(content)
    try:
        examples = read_examples(read_source(str(path), "train"), Data(train=str(path), format=layout))
    except DataError as error:
        assert len(str(error).splitlines()) == 1, f"not one line: {error}"
        return False
    assert examples
    return True


def check_rows(seed: int, folder: Path) -> str:
    """Make one file of rows and judge it; return what kind of case it was."""
    chance = random.Random(seed)
    layout = chance.choice(sorted(list_formats()))
    rows = make_rows(chance, layout)
    state = chance.getstate()
    suffix, content = write_rows(chance, rows)
    path = folder / f"x{suffix}"
    assert try_rows(path, layout, content), f"valid rows were refused: {content!r}"
    if chance.random() < 0.5:
        try_rows(path, layout, damage_bytes(chance, content))
        return "bytes"
    damage_rows(chance, rows)
    chance.setstate(state)
    if suffix == ".csv":
        suffix, path, content = ".json", folder / "x.json", json.dumps(rows).encode()
    else:
        suffix, content = write_rows(chance, rows)
    skipped = len(rows) > 1 and any(is_blank(row) for row in rows)
    assert not try_rows(path, layout, content) or skipped, f"nonsense was accepted: {content!r}"
    return "cells"


def is_blank(row: dict[str, Any]) -> bool:
    """Return whether nothing is in a row: such rows are skipped and counted."""
    return all(cell in (None, "", [], {}) or cell != cell or not str(cell).strip() for cell in row.values())


def check_case(seed: int, folder: Path) -> str:
    """Check one case in limited time: two thirds recipes, one third rows."""
    with costs_at_most(SLOWEST_SECONDS):
        return check_rows(seed, folder) if seed % 3 == 0 else check_recipe(seed)


def main(cases: int) -> int:
    counts, faults, started = Counter(), [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(cases):
            try:
                counts[check_case(seed, Path(folder))] += 1
            except Exception as error:
                faults.append(f"case {seed}: {type(error).__name__}: {str(error)[:300]}")
    print(f"{cases} cases in {time.perf_counter() - started:.0f} s, {len(faults)} faults; {dict(counts)}")
    print("\n".join(faults[:20]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
