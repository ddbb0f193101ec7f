"""What two parts share, counted by hand and against plain Python sets."""

from __future__ import annotations

import random

import pytest

from peftlab.data import leakage
from peftlab.data.leakage import GRAM, NEAR, count_leaks, count_near
from peftlab.data.notes import note_data
from peftlab.recipe.schema import Recipe
from peftlab.tasks.formats import CHAT, COMPLETION, TEXT, Chat, Completion, Text
from peftlab.tasks.sequence_classification import CLASSIFICATION, Labelled

LONG = "the quick brown fox jumps over the lazy dog while seven wizards calmly mix strong jade potions in a quiet hall"


def test_rows_are_equal_whatever_their_case_and_whitespace_in_every_pair_of_parts():
    train = [Completion("What is two?", "It is 2."), Completion("a", "b")]
    evaluation = [Completion("what  IS\ntwo?", "it is 2. "), Completion("c", "d")]
    test = [Completion("C", "D"), Completion("A", "B"), Completion("e", "f")]
    leaks = count_leaks({"train": train, "evaluation": evaluation, "test": test}, COMPLETION)
    assert {pair: found["rows"] for pair, found in leaks.items()} == {
        "train/evaluation": 1,
        "train/test": 1,
        "evaluation/test": 1,
    }


def test_a_prompt_with_another_answer_is_counted_as_a_prompt_only():
    leaks = count_leaks({"train": [Completion("q", "a")], "test": [Completion("Q ", "b")]}, COMPLETION)
    assert leaks == {"train/test": {"rows": 0, "prompts": 1, "near": 0}}


def test_a_chats_prompt_is_all_before_its_last_answer():
    def chat(question, answer):
        system = {"role": "system", "content": "be brief"}
        return Chat([system, {"role": "user", "content": question}, {"role": "assistant", "content": answer}])

    leaks = count_leaks({"train": [chat("hi", "yo")], "evaluation": [chat("hi", "hello"), chat("bye", "yo")]}, CHAT)
    assert leaks["train/evaluation"]["prompts"] == 1


def test_a_text_with_another_label_is_counted_and_running_text_has_no_prompt():
    labelled = count_leaks({"train": [Labelled("x", None, "a")], "test": [Labelled("x", None, "b")]}, CLASSIFICATION)
    assert labelled["train/test"] == {"rows": 0, "prompts": 1, "near": 0}
    assert count_leaks({"train": [Text("x")], "test": [Text("x")]}, TEXT) == {"train/test": {"rows": 1, "near": 0}}


@pytest.mark.parametrize(
    ("other", "near"),
    [
        (LONG.replace("brown", "white"), 1),
        (LONG.upper() + "!", 1),
        (LONG[: len(LONG) // 2] + " and then nothing of all that ever happened to anybody in this town again", 0),
        ("a short text", 0),
    ],
)
def test_a_text_is_nearly_equal_where_most_of_its_character_runs_are(other, near):
    assert (
        count_near([Text("something else entirely, and long enough to be compared"), Text(LONG)], [Text(other)]) == near
    )


def test_near_duplicates_are_those_of_plain_sets():
    random.seed(1)
    words = ["".join(random.choices("abcdefgh", k=random.randint(2, 7))) for _ in range(60)]
    texts = [" ".join(random.choices(words, k=14)) for _ in range(40)]
    others = []
    for text in texts:
        pieces = text.split()
        for place in random.sample(range(len(pieces)), random.randint(0, 6)):
            pieces[place] = random.choice(words)
        others.append(" ".join(pieces))

    def runs(text):
        return {text[i : i + GRAM] for i in range(len(text) - GRAM + 1)}

    def near(one, other):
        return len(runs(one) & runs(other)) / len(runs(one) | runs(other)) >= NEAR

    expected = sum(any(near(other, text) for text in texts) for other in others)
    assert 0 < expected < 40
    assert count_near([Text(one) for one in texts], [Text(one) for one in others]) == expected


def test_a_beginning_that_all_rows_share_makes_no_two_of_them_nearly_equal():
    random.seed(2)
    letters = "abcdefghijklmnopqrstuvwxyz"
    own = [" ".join("".join(random.choices(letters, k=6)) for _ in range(8)) for _ in range(80)]
    rows = [Text(f"{LONG}. {LONG[::-1]}. {one}") for one in own]
    assert count_near(rows[:60], rows[60:]) == 0


def test_more_text_than_can_be_compared_in_seconds_is_said(monkeypatch):
    monkeypatch.setattr(leakage, "MOST_CHARACTERS", 10)
    leaks = count_leaks({"train": [Text(LONG)], "evaluation": [Text(LONG + " x")]}, TEXT)
    assert leaks["train/evaluation"]["near"] is None
    recipe = Recipe.model_validate(
        {
            "model": {"name": "x"},
            "method": {"type": "lora"},
            "data": {"train": "x"},
            "training": {"steps": 1, "learning_rate": 1, "batch_size": 1},
        }
    )
    part = {"rows": 1, **dict.fromkeys(("dropped", "truncated", "lost_supervised", "straddling"), 0)}
    notes = note_data(recipe, {"train": part, "evaluation": part, "leaks": leaks})
    assert notes == ["data.evaluation: too much text to look for rows that are nearly equal to rows in training"]
