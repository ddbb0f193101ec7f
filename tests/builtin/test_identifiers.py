"""Claims about `builtin:identifiers`: valid tags, no module or sentence in two splits, and names that repeat little."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "peftlab" / "builtin" / "identifiers"
SPLITS = ("train", "evaluation", "test")
KINDS = {"PARAM", "TYPE", "FUNC", "EXC"}
# What marks a name in the docstrings; left in, it would give the tags away. NUL stands at both ends of a tagged name.
MARKUP = re.compile(r"`|\*\0[^\0]+\0\*|'\0[^\0]+\0'(?!s)|\"\0[^\0]+\0\"|\0\(\)|:(?:func|meth|class|exc):")


def read_rows(split: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict]]:
    return {split: read_rows(split) for split in SPLITS}


@pytest.mark.parametrize("split", SPLITS)
def test_rows_have_one_tag_a_word(rows, split):
    for row in rows[split]:
        assert list(row) == ["words", "tags", "module"]
        assert len(row["words"]) == len(row["tags"]) > 0
        assert all(word and not re.search(r"\s", word) for word in row["words"])


@pytest.mark.parametrize("split", SPLITS)
def test_tags_are_valid_bio2(rows, split):
    for row in rows[split]:
        assert {tag[2:] for tag in row["tags"] if tag != "O"} <= KINDS
        for before, tag in pairwise(["O", *row["tags"]]):
            assert (
                tag == "O" or tag[:2] == "B-" or before[1:] == tag[1:] and tag[:2] == "I-" or before == f"B-{tag[2:]}"
            )


@pytest.mark.parametrize("split", SPLITS)
def test_every_kind_occurs_often_enough_to_be_measured(rows, split):
    counts = Counter(tag[2:] for row in rows[split] for tag in row["tags"] if tag.startswith("B-"))
    assert set(counts) == KINDS
    assert min(counts.values()) >= (150 if split == "train" else 30)


@pytest.mark.parametrize(("one", "other"), list(combinations(SPLITS, 2)))
def test_splits_share_no_module_and_no_sentence(rows, one, other):
    modules = [{row["module"].partition(".")[0] for row in rows[split]} for split in (one, other)]
    sentences = [{" ".join(row["words"]).lower() for row in rows[split]} for split in (one, other)]
    assert not modules[0] & modules[1]
    assert not sentences[0] & sentences[1]


@pytest.mark.parametrize("split", SPLITS)
def test_no_sentence_occurs_twice(rows, split):
    assert max(Counter(" ".join(row["words"]).lower() for row in rows[split]).values()) == 1


def test_held_out_modules_are_held_out_of_the_other_data_sets_too(rows, scripts):
    from stdlib_corpus import task_modules

    top_level = {split: {row["module"].partition(".")[0] for row in rows[split]} for split in SPLITS}
    assert top_level["test"] <= task_modules("test")
    assert top_level["train"] | top_level["evaluation"] <= task_modules("train")


@pytest.mark.parametrize("split", SPLITS)
def test_no_markup_stands_around_a_name(rows, split):
    for row in rows[split]:
        pieces = [word if tag == "O" else f"\0{word}\0" for word, tag in zip(row["words"], row["tags"], strict=True)]
        text = "".join(pieces).replace("\0\0", "")
        assert not MARKUP.search(text)


@pytest.mark.parametrize("split", SPLITS)
def test_readme_gives_rows_digest_and_counts(rows, split):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    digest = hashlib.sha256((FOLDER / f"{split}.jsonl").read_bytes()).hexdigest()
    counts = Counter(tag[2:] for row in rows[split] for tag in row["tags"] if tag.startswith("B-"))
    assert f"| `{split}.jsonl` | {len(rows[split]):,} |" in text and digest in text
    assert f"| {split} | {' | '.join(f'{counts[kind]:,}' for kind in ('PARAM', 'TYPE', 'FUNC', 'EXC'))} |" in text


@pytest.mark.slow
def test_building_again_gives_the_shipped_rows(rows, scripts):
    from build_builtin_data import sort_rows
    from identifier_rows import build_identifiers
    from stdlib_corpus import standard_library
    from stdlib_definitions import iterate_definitions

    built_by = re.search(r"CPython (\S+),", (FOLDER / "README.md").read_text(encoding="utf-8"))[1]
    if platform.python_version() != built_by:
        pytest.skip(f"the rows are those of CPython {built_by}; this is {platform.python_version()}")
    built = build_identifiers(list(iterate_definitions(standard_library())))
    assert {split: sort_rows(part) for split, part in built.items()} == rows
