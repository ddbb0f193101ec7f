"""Metrics of generated text: each against the library that defines it or a value by hand, in any script."""

from __future__ import annotations

import importlib.util
import math
from collections import Counter

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from peftlab.errors import UsageError
from peftlab.evaluation.resampling import draw_metric
from peftlab.metrics import METRICS, RowScores, TextSettings
from peftlab.metrics.words import find_script, split_words

ENGLISH = (
    ["The Eagle is a cheap coffee shop by the river .", "It serves fish", "A pub", "nothing at all here matches"],
    [
        ["The Eagle is a cheap coffee shop near the river.", "Near the river there is The Eagle."],
        ["It serves fish and chips.", "Fish and chips are served.", "They serve fish."],
        ["A pub."],
        ["Different words, different text."],
    ],
)


def score(name, outputs, references, **settings):
    """Return the value, the scores of rows and the signature."""
    found = METRICS[name].texts(outputs, references, TextSettings(**settings))
    return METRICS[name].of_rows(RowScores(sums=found.columns)), found.rows, found.signature


def streams(references):
    most = max(map(len, references))
    return [[known[i] if i < len(known) else None for known in references] for i in range(most)]


def test_bleu_is_sacrebleus_with_its_signature_and_all_references():
    outputs, references = ENGLISH
    value, rows, signature = score("bleu", outputs, references)
    oracle = sacrebleu.metrics.BLEU()
    assert value == oracle.corpus_score(outputs, streams(references)).score > 10
    assert signature == str(oracle.get_signature()) and "nrefs:var" in signature and "tok:13a" in signature
    single = [sacrebleu.sentence_bleu(output, known).score for output, known in zip(*ENGLISH, strict=True)]
    assert rows == pytest.approx(single)


def test_chrf_is_sacrebleus_with_its_signature():
    outputs, references = ENGLISH
    value, rows, signature = score("chrf", outputs, references)
    oracle = sacrebleu.metrics.CHRF()
    assert value == oracle.corpus_score(outputs, streams(references)).score > 10
    assert signature == str(oracle.get_signature())
    single = [sacrebleu.sentence_chrf(output, known).score for output, known in zip(*ENGLISH, strict=True)]
    assert rows == pytest.approx(single)


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
def test_rouge_of_english_is_the_librarys_own(name):
    outputs = ["The café-less cat's hat\nsat on 3 mats.", "dogs don't bark", "?"]
    references = [["A cat sat.\nThe hat is on 3 mats", "the cat"], ["Dogs don't bark!"], ["!"]]
    plain = [text.replace("é", "e") for text in outputs]
    value, rows, _ = score(name, plain, references)
    oracle = RougeScorer([name])
    single = [oracle.score_multi(r, o)[name].fmeasure for o, r in zip(plain, references, strict=True)]
    assert rows[:2] == pytest.approx(single[:2]) and rows[2] is None
    assert value == pytest.approx(sum(single[:2]) / 2)  # the third has no word, so nothing to compare


def test_rouge2_of_texts_of_one_word_has_no_value_and_counts_in_no_mean():
    value, rows, _ = score("rouge2", ["Paris", "a cold day", "one"], [["Paris"], ["a cold day"], ["one or two"]])
    assert rows == [None, 1.0, 0.0] and value == 0.5
    assert math.isnan(score("rouge2", ["Paris"], [["Paris"]])[0])
    assert METRICS["rouge2"].undefined == "no text and no reference has two words"
    assert METRICS["rougeL"].undefined == "no text and no reference has a word"


@pytest.mark.parametrize(
    "text", ["Доброе утро, страна!", "今日は良い天気です。", "สวัสดีชาวโลก", "नमस्ते दुनिया", "مرحبا بالعالم"]
)
def test_equal_texts_score_full_in_every_script(text):
    other = "Ночь 夜 คืน रात ليل"
    for name in ("rouge1", "rougeL", "token_f1", "exact_match"):
        value, rows, _ = score(name, [text, other], [[text], ["§"]])
        assert rows == pytest.approx([1.0, 0.0]) and value == pytest.approx(0.5)
    assert score("chrf", [text], [[text]])[0] == pytest.approx(100)
    assert score("bleu", [text], [[text]])[1] == pytest.approx([100])


def test_words_are_runs_of_letters_and_marks_or_letters_of_scripts_without_spaces():
    assert split_words("Die Straße, it's 3.5 km_long") == ["die", "strasse", "it", "s", "3", "5", "km", "long"]
    assert split_words("हिन्दी में") == ["हिन्दी", "में"]
    assert split_words("我爱Python3") == ["我", "爱", "python3"]
    assert split_words("ที่นี่") == ["ที่", "นี่"]
    assert split_words("!?") == []


JAPANESE = "ja-mecab" if importlib.util.find_spec("MeCab") and importlib.util.find_spec("ipadic") else "char"


@pytest.mark.parametrize(
    ("text", "script", "tokenizer"),
    [
        ("Der Hund bellt laut heute", "latin", "13a"),
        ("上海是中国最大的城市", "chinese", "zh"),
        ("東京は日本の首都です", "japanese", JAPANESE),
        ("กรุงเทพมหานครเป็นเมืองหลวง", "unspaced", "char"),
        ("Собака громко лает сегодня", "other", "intl"),
        ("1 + 2 = 3 !", "latin", "13a"),
    ],
)
def test_bleus_tokenizer_is_chosen_for_the_script(text, script, tokenizer):
    assert find_script([text]) == script
    value, _, signature = score("bleu", [text], [[text]])
    assert f"tok:{tokenizer}" in signature and value == pytest.approx(100)
    assert "tok:char" in score("bleu", [text], [[text]], bleu_tokenizer="char")[2]


def test_bleu_of_texts_too_short_for_four_tokens_is_undefined_and_each_row_has_effective_order():
    value, rows, _ = score("bleu", ["Rome", "in Rome"], [["Rome"], ["in Rome"]])
    assert math.isnan(value) and rows == pytest.approx([100, 100])
    assert score("bleu", ["Rome"], [["Oslo"]])[0] == 0  # nothing matches, whatever the order
    assert score("bleu", [""], [["Oslo is far away"]])[0] == 0


def test_bleu_of_nothing_against_nothing_is_undefined():
    value, rows, _ = score("bleu", [""], [[""]])
    assert math.isnan(value) and rows == [None]


def test_bleu_equals_its_formula():
    # 6 words; matching n-grams 5/6, 3/5, 2/4, 1/3; as long as the reference, so no brevity penalty
    by_hand = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)
    assert score("bleu", ["the cat sat on a mat"], [["the cat sat on the mat"]])[0] == pytest.approx(by_hand)


def test_bleu_of_drawn_rows_is_sacrebleus_of_these_rows():
    outputs, references = (list(part) * 3 for part in ENGLISH)
    scores = RowScores(sums=METRICS["bleu"].texts(outputs, references, TextSettings()).columns)
    places = [0, 0, 1, 5, 9, 4, 4, 4, 2, 3, 8, 0]
    weights = [[Counter(places)[row] for row in range(12)]]
    (drawn,) = METRICS["bleu"].draw(scores, scores.classes, weights)
    chosen = [outputs[i] for i in places], streams([references[i] for i in places])
    assert drawn == pytest.approx(sacrebleu.corpus_bleu(*chosen).score)
    sample = draw_metric("bleu", [scores, scores], 20)
    assert sample.replicates.shape == (20, 2) and sample.replicates.std() > 0.1


def test_exact_match_takes_any_reference_and_what_normalise_ignores():
    outputs, references = ["four", "Five ", "The answer: 1,200.50"], [["4", "four"], ["five"], ["answer 1200.5"]]
    assert score("exact_match", outputs, references)[1] == [1, 0, 0]
    steps = ("numbers", "case", "articles", "punctuation")
    value, rows, signature = score("exact_match", outputs, references, normalise=steps)
    assert rows == [1, 1, 1] and value == 1
    assert signature == "normalise:case+articles+numbers+punctuation"
    assert score("exact_match", ["caf\u00e9"], [["cafe\u0301"]])[0] == 1  # one text in two encodings


@pytest.mark.parametrize(
    ("written", "plain"), [("7.", "7"), ("+1,000", "1000"), ("0.50", "0.5"), ("-.5", "-.5"), ("0.0", "0"), ("10", "10")]
)
def test_numbers_are_compared_however_they_are_written(written, plain):
    assert score("exact_match", [written], [[plain]], normalise=("numbers",))[0] == 1


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("1,2,3", "123", 0), ("10,12", "1012", 0), ("(1,200)", "(1200)", 1), ("12,00,000", "1200000", 1),
        ("7,", "7", 1), ("1,200, 3", "1200 3", 1), ("1,200,30", "120030", 0), ("x=4,5", "x=4,5", 1),
    ],
)  # fmt: skip
def test_commas_of_a_list_are_not_those_of_thousands(one, other, equal):
    assert score("exact_match", [one], [[other]], normalise=("numbers",))[0] == equal


def test_what_is_extracted_is_compared():
    outputs = ["5 + 6 = 11\n#### 11", "#### 12 apples", "it is 13"]
    references = [["So 11.\n#### 11"], ["#### 12"], ["#### 13"]]
    value, rows, signature = score("exact_match", outputs, references, extract=r"####\s*(-?[0-9.,]+)")
    assert rows == [1, 1, 0] and value == pytest.approx(2 / 3)  # an output without an answer is wrong
    assert r"extract:####\s*(-?[0-9.,]+)" in signature
    assert score("token_f1", outputs, references, extract=r"(?<=####).*")[1] == pytest.approx([1, 2 / 3, 0])


def test_a_pattern_that_finds_nothing_in_a_reference_is_one_line():
    with pytest.raises(UsageError, match=r"extract: Answer.* matches no reference of 1 of 2 prompts.*'none here'"):
        score("exact_match", ["a", "b"], [["Answer 1"], ["none here"]], extract="Answer")


def test_token_f1_is_the_share_of_common_words_with_the_best_reference():
    # common: the, cat; 3 words against 4
    assert score("token_f1", ["the cat sat"], [["dog", "The cat is out"]])[0] == pytest.approx(2 * 2 / 7)
    value, rows, _ = score("token_f1", ["...", "same"], [["!"], ["same"]])
    assert rows == [None, 1.0] and value == 1.0
