"""A recipe's data as a whole: which rows, which labels, and the report."""

from __future__ import annotations

import json

import pytest

from peftlab.data.dataset import find_pad_id, load_data, load_examples
from peftlab.errors import DataError
from peftlab.recipe.schema import Data
from peftlab.tasks import TASKS

CAUSAL, CLASSIFICATION = TASKS["causal-lm"], TASKS["sequence-classification"]


@pytest.fixture
def rows(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def numbered(rows):
    return rows("n.jsonl", [{"prompt": f"the {n}", "completion": f"cat {n}"} for n in range(40)])


def test_held_out_rows_are_drawn_by_the_seed_and_disjoint(numbered, section):
    def split(seed, evaluation):
        examples = load_examples(section(train=numbered, evaluation=evaluation), CAUSAL, seed)
        assert not set(examples.train) & set(examples.evaluation)
        assert len(set(examples.train) | set(examples.evaluation)) == 40
        return examples.evaluation

    assert len(split(0, 0.25)) == len(split(0, 10)) == 10
    assert split(0, 10) == split(0, 10) == split(0, 0.25)
    assert set(split(0, 10)) != set(split(1, 10))
    assert len(split(0, 0.001)) == 1


def test_row_limits_draw_by_the_seed_without_repeats(numbered, section):
    data = section(train=numbered, evaluation=numbered, train_rows=7, evaluation_rows=5)
    first, again, other = (load_examples(data, CAUSAL, seed) for seed in (3, 3, 4))
    assert first == again
    assert len(set(first.train)) == 7 and len(set(first.evaluation)) == 5
    assert set(first.train) != set(other.train)
    everything = load_examples(section(train=numbered, train_rows=99), CAUSAL, 0)
    assert len(everything.train) == 40 and everything.evaluation == []


def test_report_counts_rows_tokens_and_rows_in_both_parts(rows, section, bpe):
    train = rows("train.jsonl", [{"prompt": "1", "completion": "2"}, {"prompt": "1", "completion": "3"}])
    held_out = rows("test.jsonl", [{"prompt": "1", "completion": "3"}, {"prompt": "4", "completion": "3"}])
    dataset = load_data(section(train=train, evaluation=held_out), bpe, CAUSAL, 0)
    assert dataset.report["leaks"]["train/evaluation"]["rows"] == 1
    part = dataset.report["train"]
    assert (part["rows"], part["tokens"], part["supervised"], part["longest"]) == (2, 8, 4, 4)
    assert part["sha256"] != dataset.report["evaluation"]["sha256"]
    json.dumps(dataset.report)


def test_labels_come_from_all_training_rows_and_need_no_tokenizer(rows, section):
    path = rows("l.jsonl", [{"text": "x", "label": label} for label in ("b", "a", "c")])
    examples = load_examples(section(train=path, format="classification", train_rows=1), CLASSIFICATION, 0)
    assert examples.labels == ["a", "b", "c"]


def test_one_label_is_no_classification(rows, section):
    path = rows("l.jsonl", [{"text": "x", "label": "same"}, {"text": "y", "label": "same"}])
    with pytest.raises(DataError, match="'same' is the only label; a classifier needs at least two"):
        load_examples(section(train=path, format="classification"), CLASSIFICATION, 0)


def test_label_that_training_never_shows_is_named(rows, section):
    train = rows("l.jsonl", [{"text": "x", "label": 0}, {"text": "y", "label": 1}])
    test = rows("t.jsonl", [{"text": "x", "label": 0}, {"text": "y", "label": 2}])
    data = section(train=train, evaluation=test, format="classification")
    with pytest.raises(DataError, match=r"t\.jsonl: row 2: label '2' never occurs in training; known labels: 0, 1"):
        load_examples(data, CLASSIFICATION, 0)


def test_prompts_are_distinct_and_know_all_their_references(rows, section, bpe):
    path = rows("e.jsonl", [{"prompt": p, "completion": c} for p, c in (("a:", " x"), ("b: ", "y"), ("a:", " z"))])
    prompts = load_data(section(train=path, evaluation=path), bpe, CAUSAL, 0).prompts
    assert [(prompt.text, prompt.references) for prompt in prompts] == [("a:", ("x", "z")), ("b:", ("y",))]
    assert bpe.decode(prompts[1].input_ids) == "<|bos|>b:"


def test_prompt_of_a_chat_ends_where_its_last_answer_begins(rows, section, bpe):
    messages = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    path = rows("c.jsonl", [{"messages": [*messages, {"role": "assistant", "content": "d"}]}])
    prompt = load_data(section(train=path, evaluation=path, format="chat"), bpe, CAUSAL, 0).prompts[0]
    ends = "<|bos|><|user|>a<|end|>\n<|assistant|>b<|end|>\n<|user|>c<|end|>\n<|assistant|>"
    assert (prompt.text, prompt.references, bpe.decode(prompt.input_ids)) == (ends, ("d",), ends)


def test_rows_without_anything_to_learn_are_dropped_and_all_of_them_are_an_error(rows, section, bpe):
    path = rows("d.jsonl", [{"text": "a"}, {"text": "the cat sat"}])
    with pytest.raises(DataError, match=r"data\.train: none of 2 rows has a supervised token; raise data\.max_length"):
        load_data(section(train=path, format="text", max_length=1), bpe, CAUSAL, 0)
    messages = [[{"role": "user", "content": "x"}], [{"role": "assistant", "content": "x"}]]
    path = rows("m.jsonl", [{"messages": one} for one in messages])
    with pytest.raises(DataError, match=r"1 of 2 rows have no supervised token, more than data\.allow_dropped \(0\.1"):
        load_data(section(train=path, format="chat"), bpe, CAUSAL, 0)
    report = load_data(section(train=path, format="chat", allow_dropped=0.5), bpe, CAUSAL, 0).report
    assert (report["train"]["rows"], report["train"]["dropped"]) == (1, 1)


def test_token_beyond_the_models_vocabulary_is_refused(numbered, section, bpe):
    with pytest.raises(DataError, match=r"with id \d+, but the model's vocabulary is 100"):
        load_data(section(train=numbered), bpe, CAUSAL, 0, vocabulary=100)
    assert load_data(section(train=numbered), bpe, CAUSAL, 0, vocabulary=len(bpe)).train


def test_holding_out_everything_and_a_format_for_another_task_are_refused(numbered, section):
    with pytest.raises(DataError, match="holding out 40 leaves no training row of 40"):
        load_examples(section(train=numbered, evaluation=40), CAUSAL, 0)
    with pytest.raises(DataError, match="format completion does not suit model.task sequence-classification"):
        load_examples(section(train=numbered), CLASSIFICATION, 0)


def test_pad_id_is_found_without_a_pad_token(bpe, bpe_without_specials):
    assert find_pad_id(bpe) == bpe.eos_token_id
    assert find_pad_id(bpe_without_specials) == 0


def test_test_rows_are_held_out_next_to_the_evaluation_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(40)))
    alone = load_examples(Data(train=str(path), format="text", evaluation=0.25), CAUSAL, 3)
    both = load_examples(Data(train=str(path), format="text", evaluation=0.25, test=10, test_rows=4), CAUSAL, 3)
    assert both.evaluation == alone.evaluation
    assert (len(both.train), len(both.evaluation), len(both.test)) == (20, 10, 4)
    assert not set(both.test) & {*both.train, *both.evaluation}
