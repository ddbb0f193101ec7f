"""Word and character error rates against values counted by hand, and edits against a table of all prefixes."""

from __future__ import annotations

from random import Random

import pytest

from peftlab.metrics import METRICS, RowScores, TextSettings

WORDS, CHARACTERS = METRICS["word_error_rate"], METRICS["character_error_rate"]


def rate(metric, outputs, references, **settings):
    """Return the metric of texts and each text's own score."""
    scored = metric.texts(outputs, references, TextSettings(**settings))
    return metric.of_rows(RowScores(sums=scored.columns)), scored.rows


def count_edits(output: list[str], reference: list[str]) -> int:
    table = [[i + j if not i * j else 0 for j in range(len(reference) + 1)] for i in range(len(output) + 1)]
    for i, one in enumerate(output, start=1):
        for j, other in enumerate(reference, start=1):
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (one != other))
    return table[-1][-1]


def test_edits_of_all_texts_are_a_share_of_all_reference_tokens():
    """One substitution of 3, two insertions of 1, all 2 deleted: 5 of 6."""
    value, rows = rate(WORDS, ["K AE D", "A B C", ""], [["K AE T"], ["B"], ["HH AY"]])
    assert value == pytest.approx(5 / 6)
    assert rows == pytest.approx([1 / 3, 2.0, 1.0])


def test_the_nearest_reference_counts():
    value, rows = rate(WORDS, ["a b"], [["a", "a b c d", "a c"]])
    assert (value, rows) == (0.5, [0.5])


def test_characters_are_counted_with_spaces():
    assert rate(CHARACTERS, ["kitten s"], [["sitting s"]])[0] == pytest.approx(3 / 9)


def test_settings_of_texts_are_used():
    assert rate(WORDS, ["The CAT."], [["cat"]], normalise=("case", "punctuation", "articles"))[0] == 0
    assert rate(WORDS, ["so #### 4 2"], [["#### 4 3"]], extract="#### (.*)")[0] == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_edits_are_the_fewest(seed):
    random = Random(seed)
    outputs, references = (
        [[random.choice("abc") for _ in range(random.randint(1, 9))] for _ in range(20)] for _ in "12"
    )
    edits = sum(count_edits(*pair) for pair in zip(outputs, references, strict=True))
    value, _ = rate(WORDS, [" ".join(one) for one in outputs], [[" ".join(one)] for one in references])
    assert value == pytest.approx(edits / sum(map(len, references)))
