"""Prompts and answers as rows of their own: ids, limits, targets and views, against values by hand."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from peftlab.data.batches import collate
from peftlab.data.dataset import load_data
from peftlab.data.notes import note_data
from peftlab.data.pairs import list_prompts, tokenise_pairs
from peftlab.data.token_rows import BatchSize, PairRow
from peftlab.data.view import view_row
from peftlab.errors import DataError, ModelError, RecipeError
from peftlab.models.build import build_meta
from peftlab.recipe import load_recipe
from peftlab.recipe.schema import Data, Model, Recipe
from peftlab.tasks import TASKS
from peftlab.tasks.base import Tokenising
from peftlab.tasks.formats import COMPLETION, Completion
from tests.tasks.answering import word_tokenizer, write_family

TASK = TASKS["sequence-to-sequence"]
TOKENIZER = word_tokenizer()


def ids(text: str) -> list[int]:
    return TOKENIZER.convert_tokens_to_ids(text.split())


def how_with(**fields) -> Tokenising:
    section = Data.model_validate({"train": "-", "max_length": 8, **fields})
    return Tokenising(TOKENIZER, section, COMPLETION, Counter(), prompts=True)


def rows_of(*pairs: tuple[str, str], **fields):
    how = how_with(**fields)
    return tokenise_pairs([Completion(*pair) for pair in pairs], how), how.counts


def test_both_sides_end_with_one_end_token_and_the_whole_answer_is_supervised():
    ((row,), counts) = rows_of(("one two", "un deux trois"))
    assert row.input_ids.tolist() == ids("one two </s>")
    assert row.labels.tolist() == ids("un deux trois </s>")
    assert (row.supervised, row.answer, row.longest, len(row.tokens)) == (4, 4, 4, 7)
    assert counts["truncated"] == counts["lost_supervised"] == 0 and counts["stop: 1"] == 1


def test_an_end_token_in_the_text_is_not_doubled():
    ((row,), _) = rows_of(("one", "un </s>"))
    assert row.labels.tolist() == ids("un </s>")
    (prompt,) = list_prompts([Completion("one", "un </s>")], how_with())
    assert prompt.references == ("un",)


def test_each_side_is_cut_at_its_own_limit_and_counted():
    """The prompt keeps its end token, as the encoder knows texts; a cut answer does not teach to stop there."""
    long, short = "one two three four five six", "un deux trois quatre"
    rows, counts = rows_of((long, "un"), ("one", short), ("one", "un"), max_length=4, max_target_length=3)
    assert rows[0].input_ids.tolist() == ids("one two three </s>")
    assert rows[1].labels.tolist() == ids("un deux trois")
    assert (counts["truncated"], counts["lost_supervised"], counts["lost_tokens"]) == (2, 1, 2)
    kept, counts = rows_of((long, "un"), ("one", short), ("one", "un"), max_length=4, max_target_length=3, long="skip")
    assert [row.labels.tolist() for row in kept] == [ids("un </s>")] and counts["skipped"] == 2


def test_a_limit_without_room_for_a_prompt_is_refused():
    with pytest.raises(DataError, match=r"data\.max_length: 1 leaves no room"):
        rows_of(("one", "un"), max_length=1)


def test_a_batch_pads_both_sides_at_the_right_and_its_targets_are_the_answers():
    rows, _ = rows_of(("one two three", "un"), ("one", "un deux trois"))
    batch = collate(rows, TOKENIZER.pad_token_id)
    assert batch["input_ids"].tolist() == [ids("one two three </s>"), ids("one </s> <pad> <pad>")]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["answers"].tolist() == [[*ids("un </s>"), -100, -100], ids("un deux trois </s>")]
    assert batch["positions"].tolist() == [0, 1, 4, 5, 6, 7]
    assert batch["targets"].tolist() == ids("un </s> un deux trois </s>")
    size = BatchSize(rows=2, width=4, share=6 / PairRow.count_places(rows), answer=4)
    assert PairRow.target_sizes(size) == {"answers": (2, 4), "positions": (6,), "targets": (6,)}


def test_the_view_shows_the_prompt_and_then_the_answer_supervised():
    ((row,), _) = rows_of(("one two", "un deux"))
    view = view_row(row, TOKENIZER)
    assert [(span.text, span.supervised) for span in view.spans] == [("one two </s>", False), ("un deux </s>", True)]
    assert (view.tokens, view.supervised, view.label) == (6, 3, None)


def test_prompts_are_the_rows_prompts_and_share_their_references():
    pairs = [Completion("one two", "un"), Completion("one", "un"), Completion("one two", "deux")]
    prompts = list_prompts(pairs, how_with())
    assert [(one.text, one.input_ids, one.references) for one in prompts] == [
        ("one two", ids("one two </s>"), ("un", "deux")),
        ("one", ids("one </s>"), ("un",)),
    ]
    (cut,) = list_prompts([Completion("one two three four", "un")], how_with(max_length=3))
    assert (cut.input_ids, cut.cut) == (ids("one two </s>"), 2)


def test_spaces_at_the_end_of_a_prompt_are_no_part_of_the_answer():
    from_text = TASK.encode_prompt(TOKENIZER, "one two  ")
    assert from_text == ids("one two </s>")


def test_a_model_without_a_start_token_is_refused(tmp_path):
    folder = write_family(tmp_path / "t5", "t5")
    text = (folder / "config.json").read_text().replace('"decoder_start_token_id": 0', '"decoder_start_token_id": null')
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match="config has no decoder_start_token_id"):
        build_meta(Model(name=str(folder), task=TASK.name))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (["data.format=chat"], "format chat needs model.task: causal-lm; task sequence-to-sequence needs format compl"),
        (["data.general=x.jsonl"], "only for task causal-lm: sequence-to-sequence has no loss on running text"),
        (["evaluation.metrics=[accuracy]"], "accuracy: only for task sequence-classification"),
        (["data.truncate=middle"], "task sequence-to-sequence cuts prompts at their end; remove it"),
        (["data.long=chunk"], "chunk cuts running text into rows; for format completion use cut or skip"),
        (["model.task=causal-lm"], "task causal-lm counts prompt and answer together in data.max_length"),
    ],
)
def test_what_does_not_suit_the_task_is_refused_at_check(tmp_path, changes, fault):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: {name: t5, task: sequence-to-sequence}\nmethod: {type: lora}\n"
        "data: {train: t.jsonl, evaluation: 2, max_target_length: 9}\ntraining: {steps: 1, learning_rate: 1e-3}\n"
    )
    load_recipe(path, [])
    with pytest.raises(RecipeError, match=fault):
        load_recipe(path, changes)


def test_a_decoder_alone_is_refused_for_the_task():
    with pytest.raises(ModelError, match="transformers has no sequence-to-sequence model of type 'llama'"):
        build_meta(Model(name="builtin:tiny", task=TASK.name))


def test_cut_rows_are_noted_with_both_limits(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"prompt": "one two", "completion": "un deux trois quatre"}) + "\n")
    recipe = Recipe.model_validate(
        {
            "model": {"name": "-", "task": TASK.name},
            "method": {"type": "full"},
            "data": {"train": str(path), "max_length": 8, "max_target_length": 3},
            "training": {"steps": 1, "learning_rate": 1, "batch_size": 1},
        }
    )
    report = load_data(recipe.data, TOKENIZER, TASK, seed=0).report
    assert note_data(recipe, report)[0] == (
        "data.train: 1 of 1 rows are longer than data.max_length (8) or data.max_target_length (3): cut; 1 of them "
        "lost supervised tokens (2)"
    )


def test_tokens_of_prompt_and_answer_are_checked_against_the_vocabulary():
    row = PairRow(np.array([1], np.int32), np.array([99], np.int32))
    assert int(row.tokens.max()) == 99
