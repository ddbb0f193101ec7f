"""Words and tags as rows, and spans of tags: against the tokenizers' own words, and values made by hand."""

from __future__ import annotations

import json
import math
from collections import Counter
from random import Random

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from peftlab.data.batches import collate
from peftlab.data.dataset import load_data
from peftlab.data.notes import note_data
from peftlab.data.parts import read_examples
from peftlab.data.token_rows import IGNORED
from peftlab.errors import DataError
from peftlab.metrics import METRICS, RowScores
from peftlab.recipe.schema import Data, Recipe
from peftlab.tables.files import Table
from peftlab.tasks import TASKS
from peftlab.tasks.token_classification import Tagged, are_placed, find_spans
from tests.data.tokenising import tokenise
from tests.tasks.tokenizers_of_words import train_bpe, train_wordpiece

TASK = TASKS["token-classification"]
# BERT's normaliser leaves nothing of a zero-width space, a lone accent or a line break.
EMPTY = ["\u200b", "\u0301", "\t", "\n", "\ufeff", "\u00a0"]
PLAIN = "open OSError naïve 東京 re a parse_args(x) é e\u0301x [SEP] 👩\u200d👧 ﬁ İ ß don't </s>".split() + [
    "x\u00a0y",
    "New York",
]
WORDS = [*PLAIN, *EMPTY, " lead", "trail "]


@pytest.fixture(scope="module")
def wordpiece() -> PreTrainedTokenizerFast:
    return train_wordpiece()


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerFast:
    return train_bpe(first_space=True)


@pytest.fixture(scope="module")
def bpe_without_first_space() -> PreTrainedTokenizerFast:
    return train_bpe(first_space=False)


def sentences(count: int, known: list[str]) -> list[Tagged]:
    """Return sentences of random words; the tag of a word is its number."""
    random = Random(0)
    texts = [[random.choice(known) for _ in range(random.randint(1, 7))] for _ in range(count)]
    return [Tagged(words, [str(i) for i in range(len(words))]) for words in texts]


def rows_of(examples: list[Tagged], tokenizer, max_length: int = 128):
    """Return the rows of examples whose tags are numbers from 0 to 6, and what was counted."""
    counts: Counter[str] = Counter()
    labels = [str(i) for i in range(7)]
    return tokenise(examples, tokenizer, counts, max_length=max_length, labels=labels).rows, counts


def supervised(row) -> dict[int, int]:
    """Return the class at each supervised token."""
    return {int(i): int(row.labels[i]) for i in np.flatnonzero(row.labels != IGNORED)}


def own_first_tokens(words: list[str], tokenizer) -> tuple[list[int], dict[int, int]]:
    """Return the tokenizer's ids of separate words, and the word of each word's first token that is not bare space."""
    encoded = tokenizer(words, is_split_into_words=True)
    first: dict[int, int] = {}
    for token, word in enumerate(encoded.word_ids()):
        if word is not None and encoded.tokens()[token] != "Ġ":
            first.setdefault(word, token)
    return encoded["input_ids"], {token: word for word, token in first.items()}


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_tag_is_at_the_first_token_that_the_tokenizer_gives_to_the_word(kind, request):
    tokenizer, compared, dropped = request.getfixturevalue(kind), 0, 0
    for example in sentences(300, WORDS):
        ids, first = own_first_tokens(example.words, tokenizer)
        rows, counts = rows_of([example], tokenizer)
        assert counts["unaligned"] == len(example.words) - len(first)
        dropped += counts["dropped"]
        if not first:
            assert rows == [] and counts["dropped"] == 1
        elif rows[0].input_ids.tolist() == ids:  # byte-level BPE reads a space at a word's edge in another way
            compared += 1
            assert supervised(rows[0]) == first
    assert compared > 200
    assert dropped > 0 or kind == "bpe"


def test_without_a_space_before_the_first_word_a_tag_is_at_the_token_of_the_first_character(bpe_without_first_space):
    for example in sentences(100, PLAIN):
        ((row,), _) = rows_of([example], bpe_without_first_space)
        encoded = bpe_without_first_space(" ".join(example.words))
        begins = np.cumsum([0] + [len(word) + 1 for word in example.words[:-1]])
        assert supervised(row) == {encoded.char_to_token(int(begin)): i for i, begin in enumerate(begins)}
        assert row.input_ids.tolist() == encoded["input_ids"]


def test_only_first_tokens_have_targets_in_a_batch(wordpiece):
    rows, _ = rows_of([Tagged(["openpath", "a"], ["3", "1"]), Tagged(["a"], ["5"])], wordpiece)
    batch = collate(rows, 0)
    width, pieces = batch["input_ids"].shape[1], len(wordpiece.tokenize("openpath"))
    assert pieces > 1 and width == pieces + 3
    assert batch["targets"].tolist() == [3, 1, 5]
    assert batch["positions"].tolist() == [1, 1 + pieces, width + 1]


def test_cut_words_dropped_words_and_dropped_rows_are_counted(wordpiece):
    """[CLS] and [SEP] leave three tokens: `a a a` fits, a fourth word is lost, a cut word keeps its tag."""
    cut = rows_of([Tagged(["a"] * 3, ["0"] * 3), Tagged(["a"] * 4, ["0"] * 4)], wordpiece, 5)[1]
    assert cut == Counter(truncated=1, lost_supervised=1, unaligned=0)
    half, counts = rows_of([Tagged(["a", "a", "openpath"], ["0", "1", "2"])], wordpiece, 5)
    assert list(supervised(half[0]).values()) == [0, 1, 2]
    assert counts == Counter(truncated=1, lost_supervised=0, unaligned=0)
    both = rows_of([Tagged(["\u200b", "a", "a", "openpath", "\u200b", "a"], list("012345"))], wordpiece, 5)[1]
    assert both == Counter(truncated=1, lost_supervised=1, unaligned=2)
    rows, none = rows_of([Tagged(["\u200b", "\u200b"], ["0", "1"]), Tagged([], [])], wordpiece)
    assert rows == [] and none == Counter(truncated=0, lost_supervised=0, unaligned=2, dropped=2)


def test_a_limit_that_leaves_no_word_and_a_slow_tokenizer_are_refused(wordpiece):
    with pytest.raises(DataError, match=r"data\.max_length: 2 leaves no room for text after 2 special tokens"):
        rows_of([Tagged(["a"], ["0"])], wordpiece, 2)


def section(**fields) -> Data:
    return Data.model_validate({"train": "-", "format": "tokens", **fields})


@pytest.mark.parametrize(
    ("words", "tags", "fault"),
    [
        ([["a"], ["b", "c"]], [["O"], ["O"]], r"t: row 2: has 2 words and 1 tags; give every word one tag"),
        ([["a"], "b"], [["O"], ["O"]], r"t: row 2: column 'words': needs a list of texts, not str"),
        ([["a"], [None]], [["O"], ["O"]], r"t: row 2: column 'words': needs text, not NoneType"),
        ([["a"], []], [["O"], ["O"]], r"t: row 2: column 'words' is empty; correct such rows"),
        ([["a"], ["\ud800"]], [["O"], ["O"]], r"t: row 2: column 'words': .*half of a surrogate pair"),
    ],
)
def test_rows_that_are_not_words_with_as_many_tags_are_one_line_with_their_row(words, tags, fault):
    with pytest.raises(DataError, match=fault) as caught:
        read_examples(Table("t", {"words": words, "tags": tags}), section())
    assert "\n" not in str(caught.value)


def write_rows(path, *rows) -> str:
    path.write_text("".join(json.dumps({"words": words, "tags": tags}) + "\n" for words, tags in rows))
    return str(path)


def test_a_tag_that_training_never_has_is_refused_by_its_row(tmp_path, wordpiece):
    train = write_rows(tmp_path / "train.jsonl", (["a", "b"], ["O", "B-X"]))
    other = write_rows(tmp_path / "other.jsonl", (["a"], ["O"]), (["a"], ["B-Y"]))
    with pytest.raises(DataError, match=r"other\.jsonl: row 2: label 'B-Y' never occurs in training; known .*: O, B-X"):
        load_data(section(train=train, evaluation=other), wordpiece, TASK, seed=0)


def test_what_was_cut_and_ignored_is_in_the_report_and_noted(tmp_path, wordpiece):
    rows = (["a", "\u200b"], ["O", "B-X"]), (["a"] * 9, ["O"] * 9)
    data = section(train=write_rows(tmp_path / "train.jsonl", *rows), max_length=8)
    report = load_data(data, wordpiece, TASK, seed=0).report
    counted = {name: report["train"][name] for name in ("truncated", "lost_supervised", "unaligned", "dropped")}
    assert counted == {"truncated": 1, "lost_supervised": 1, "unaligned": 1, "dropped": 0}
    assert report["labels"] == ["O", "B-X"]
    recipe = Recipe.model_validate(
        {
            "model": {"name": "-", "task": TASK.name},
            "method": {"type": "full"},
            "data": data.model_dump(),
            "training": {"steps": 1, "learning_rate": 1, "batch_size": 1},
        }
    )
    assert note_data(recipe, report) == [
        "data.train: 1 of 2 rows are longer than data.max_length (8): cut; 1 of them lost supervised tokens",
        "data.train: words without a token of their own: 1; their tags are ignored",
    ]


def test_tags_without_one_outside_are_doubted():
    assert TASK.doubt(["O", "B-X"]) is None
    assert "no tag is O, so that every word is in a span" in (TASK.doubt(["0", "1"]) or "")
    assert TASKS["sequence-classification"].doubt(["0", "1"]) is None


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(DataError, match="Slow gives no character offsets; data needs a fast tokenizer"):
        rows_of([Tagged(["a"], ["0"])], Slow())


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("", set()),
        ("O O", set()),
        ("B-X", {("X", 0, 1)}),
        ("O B-X I-X O", {("X", 1, 3)}),
        ("B-X B-X I-X", {("X", 0, 1), ("X", 1, 3)}),
        ("I-X I-X O I-X", {("X", 0, 2), ("X", 3, 4)}),
        ("B-X I-Y I-Y", {("X", 0, 1), ("Y", 1, 3)}),
        ("B-X I-X B-Y I-X", {("X", 0, 2), ("Y", 2, 3), ("X", 3, 4)}),
        ("X X O Y X", {("X", 0, 2), ("Y", 3, 4), ("X", 4, 5)}),
        ("B-A-B I-A-B I-A", {("A-B", 0, 2), ("A", 2, 3)}),
        ("B- I-", {("", 0, 2)}),
    ],
)
def test_spans_of_tags_are_those_counted_by_hand(tags, spans):
    """For 60,000 random rows of BIO tags, `get_entities` of seqeval 1.2.2 found the same spans (not run here)."""
    assert find_spans(tags.split()) == spans


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B I O B B I", {("", 0, 2), ("", 3, 4), ("", 4, 6)}),
        ("S-X O B-Y I-Y E-Y", {("X", 0, 1), ("Y", 2, 5)}),
        ("U-X U-X B-Y L-Y I-Y", {("X", 0, 1), ("X", 1, 2), ("Y", 2, 4), ("Y", 4, 5)}),
        ("E-X E-X I-Y E-X", {("X", 0, 1), ("X", 1, 2), ("Y", 2, 3), ("X", 3, 4)}),
    ],
)
def test_ends_single_words_and_spans_without_a_kind_are_those_counted_by_hand(tags, spans):
    """seqeval 1.2.2 finds the same in the first two and the last; BILOU it reads with a scheme alone (not run here)."""
    assert find_spans(tags.split(), placed=are_placed(tuple(tags.split()))) == spans


def test_letters_are_places_only_where_every_tag_has_one():
    assert are_placed(("O", "B-X", "I-X", "E-X", "S-X")) and are_placed(("B", "I", "O"))
    assert not are_placed(("O", "B-X", "E", "NOUN")) and not are_placed(("E-mail", "Phone"))
    assert find_spans(["E-mail", "E-mail", "O", "S"]) == {("E-mail", 0, 2), ("S", 3, 4)}


def test_a_row_of_tags_without_kinds_is_scored_by_its_spans(wordpiece):
    """True: words 0, 1 to 2. Predicted: words 0 to 1, 2: none is right."""
    labels = ["O", "B", "I"]
    (row,) = tokenise([Tagged(["openpath", "a", "a"], ["B", "B", "I"])], wordpiece, labels=labels).rows
    assert TASK.score_row(row, [1, 2, 1], labels) == (0, 2, 2)
    assert TASK.score_row(row, [1, 1, 2], labels) == (2, 2, 2)


def test_a_row_is_scored_by_its_spans(wordpiece):
    """True: X at words 0-1, Y at 3. Predicted: X at 0-1, Y at 2-3: one of two is right."""
    labels = ["O", "B-X", "I-X", "B-Y", "I-Y"]
    words, tags = ["openpath", "a", "a", "reading"], ["B-X", "I-X", "O", "B-Y"]
    (row,) = tokenise([Tagged(words, tags)], wordpiece, labels=labels).rows
    assert TASK.score_row(row, [1, 2, 3, 4], labels) == (1, 2, 2)
    assert TASK.score_row(row, [0, 0, 0, 0], labels) == (0, 0, 2)


def test_span_metrics_are_those_counted_by_hand():
    """Three rows: 1 of 2 predicted and 2 true, 2 of 3 and 2, nothing at all: precision 3/5, recall 3/4, F1 6/9."""
    sums = {"span_hits": [1, 2, 0], "span_predicted": [2, 3, 0], "span_true": [2, 2, 0]}
    scores = RowScores([0.0] * 3, [1] * 3, sums=sums)
    found = {name: METRICS[name].of_rows(scores) for name in ("span_precision", "span_recall", "span_f1")}
    assert found == pytest.approx({"span_precision": 3 / 5, "span_recall": 3 / 4, "span_f1": 2 / 3})
    nothing = RowScores([0.0], [1], sums={name: [0] for name in sums})
    assert all(math.isnan(METRICS[name].of_rows(nothing)) and METRICS[name].undefined for name in found)
    assert all(METRICS[name].suits(scores) and not METRICS[name].suits(RowScores([0.0], [1])) for name in found)


def test_tags_are_listed_with_the_one_outside_first():
    examples = [Tagged(["a", "b"], ["I-X", "B-A"]), Tagged(["c", "d"], ["O", "B-X"])]
    assert TASK.list_labels(examples) == ["O", "B-A", "B-X", "I-X"]


def test_words_of_a_tokenizer_without_special_tokens_are_aligned():
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", pad_token="?")
    ((row,), _) = rows_of([Tagged(["a", "zz", "b"], ["1", "2", "3"])], fast)
    assert (row.input_ids.tolist(), row.labels.tolist()) == ([0, 2, 1], [1, 2, 3])
