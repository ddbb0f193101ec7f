"""A head that is trained already keeps the meaning of its outputs; rows of other columns are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from peftlab.data.splits import in_order_of, read_part
from peftlab.errors import DataError
from peftlab.recipe.schema import Data, Recipe
from peftlab.runs.bench import prepare
from peftlab.runs.classes import known_classes, note_other_classes
from peftlab.runs.display import NoDisplay
from peftlab.runs.predict import predict
from peftlab.runs.run import train
from peftlab.runs.use import evaluate
from peftlab.tasks import TASKS
from peftlab.world.open import open_world
from tests.tasks.answering import write_family
from tests.tasks.tagging import write_model

TEXTS = ["the open file", "a Path", "returns OSError or a file", "is the", "file file open", "parse_args returns the"]


@pytest.fixture(scope="module")
def body(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("classes") / "bert")


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def with_head(body: Path, folder: Path, kind, names: list[str]):
    """Return a plain model with a head of these classes, which `folder` then has, and its tokenizer."""
    torch.manual_seed(1)
    model = kind.from_pretrained(body, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
    model.classifier.weight.data.normal_()
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(body)
    tokenizer.save_pretrained(folder)
    return model.eval(), tokenizer


def recipe_of(model: Path, task: str, layout: str, rows: str, **data) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name": str(model), "task": task},
            "method": {"type": "lora", "rank": 2},
            "data": {"train": rows, "evaluation": rows, "format": layout, "max_length": 32, **data},
            "training": {"steps": 1, "batch_size": 2, "learning_rate": 1e-3, "speed": {"token_cache": "off"}},
            "evaluation": {"metrics": ["loss", "accuracy" if layout == "classification" else "span_f1"]},
            "run": {"output": str(model.parent / "run"), "device": "cpu", "plan": "off"},
        }
    )


@torch.no_grad()
def test_a_trained_classifier_is_right_where_its_own_model_is(body, tmp_path):
    """The labels are what the plain model says of each text, written in other letters, as data sets do."""
    model, tokenizer = with_head(body, tmp_path / "m", AutoModelForSequenceClassification, ["POSITIVE", "NEGATIVE"])
    logits = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])
    model.classifier.bias.data -= logits.mean(0)  # so that both are said
    model.save_pretrained(tmp_path / "m")
    said = (logits - logits.mean(0)).argmax(-1).tolist()
    assert set(said) == {0, 1}
    labels = [["positive", "negative"][number] for number in said]
    rows = write(tmp_path / "x.jsonl", [{"text": t, "label": one} for t, one in zip(TEXTS, labels, strict=True)])
    bench = prepare(recipe_of(tmp_path / "m", "sequence-classification", "classification", rows), open_world("cpu"))
    assert bench.dataset.labels == ["positive", "negative"]
    assert bench.evaluate(bench.base.model).metrics["accuracy"] == 1


@torch.no_grad()
def test_a_trained_tagger_is_right_where_its_own_model_is(body, tmp_path):
    names = ["B-x", "O", "I-x"]
    model, tokenizer = with_head(body, tmp_path / "m", AutoModelForTokenClassification, names)
    rows = []
    for text in TEXTS:
        encoded = tokenizer(text.split(), is_split_into_words=True, return_tensors="pt")
        first = {word: place for place, word in reversed(list(enumerate(encoded.word_ids()))) if word is not None}
        classes = model(**encoded).logits[0].argmax(-1)
        rows.append({"words": text.split(), "tags": [names[classes[first[word]]] for word in sorted(first)]})
    assert {tag for row in rows for tag in row["tags"]} == set(names)
    path = write(tmp_path / "x.jsonl", rows)
    bench = prepare(recipe_of(tmp_path / "m", "token-classification", "tokens", path), open_world("cpu"))
    assert bench.dataset.labels == names
    assert bench.evaluate(bench.base.model).metrics["span_f1"] == 1


def test_a_head_of_other_classes_is_noted_and_a_new_one_is_not(body, tmp_path):
    with_head(body, tmp_path / "m", AutoModelForSequenceClassification, ["yes", "no"])
    rows = write(tmp_path / "x.jsonl", [{"text": "the", "label": "a"}, {"text": "is", "label": "b"}])
    recipe = recipe_of(tmp_path / "m", "sequence-classification", "classification", rows)
    bench = prepare(recipe, open_world("cpu"))
    assert bench.dataset.labels == ["a", "b"] and known_classes(recipe) == ("yes", "no")
    assert "was trained on the classes yes, no" in note_other_classes(("yes", "no"), ["a", "b"], bench.base)
    fresh = recipe_of(body, "sequence-classification", "classification", rows)
    assert known_classes(fresh) == ()
    assert note_other_classes(("yes", "no"), ["a", "b"], prepare(fresh, open_world("cpu")).base) is None


def test_a_run_that_continues_keeps_the_order_it_began_with(body, tmp_path):
    with_head(body, tmp_path / "m", AutoModelForSequenceClassification, ["yes", "no"])
    rows = write(tmp_path / "x.jsonl", [{"text": "the", "label": "yes"}, {"text": "is", "label": "no"}])
    recipe = recipe_of(tmp_path / "m", "sequence-classification", "classification", rows)
    assert prepare(recipe, open_world("cpu")).dataset.labels == ["yes", "no"]
    assert prepare(recipe, open_world("cpu"), known_labels=("no", "yes")).dataset.labels == ["no", "yes"]


def test_labels_of_another_set_keep_their_own_order():
    assert in_order_of(("b", "a"), ["a", "b"]) == ["b", "a"]
    assert in_order_of(("b", "a", "c"), ["a", "b"]) == ["a", "b"]
    assert in_order_of(("B", "b"), ["B", "b"]) == ["B", "b"]
    assert in_order_of((), ["a", "b"]) == ["a", "b"]


def test_a_finished_run_refuses_rows_of_other_columns_than_it_was_trained_on(body, tmp_path):
    pairs = [{"text": text, "text_pair": "file", "label": i % 2} for i, text in enumerate(TEXTS)]
    trained = write(tmp_path / "pairs.jsonl", pairs)
    other = write(tmp_path / "single.jsonl", [{"text": row["text"], "label": row["label"]} for row in pairs])
    train(recipe_of(body, "sequence-classification", "classification", trained), display=NoDisplay())
    run = body.parent / "run"
    assert evaluate(run)["accuracy"] >= 0
    fault = r"single\.jsonl: has no column for 'text_pair', and the file that the run was trained on has one"
    with pytest.raises(DataError, match=fault):
        evaluate(run, [f"data.evaluation={other}"])
    with pytest.raises(DataError, match=fault):
        predict(run, other, tmp_path / "out.jsonl")


def test_a_second_text_is_refused_where_there_was_none(tmp_path):
    rows = write(tmp_path / "pairs.jsonl", [{"text": "a", "text_pair": "b", "target": 1.0}])
    section = Data(train="-", evaluation=rows, format="regression")
    assert len(read_part(section, TASKS["regression"], "evaluation", 0)) == 1
    assert len(read_part(section, TASKS["regression"], "evaluation", 0, ["text_pair"])) == 1
    with pytest.raises(DataError, match=r"pairs\.jsonl: has a column for 'text_pair', and .* trained on has none"):
        read_part(section, TASKS["regression"], "evaluation", 0, [])


def test_an_end_token_in_a_text_is_refused_where_a_classifier_reads_it(tmp_path):
    write_family(tmp_path / "bart", "bart")
    texts = ["one two", "one", "two </s> three", "four"]

    def prepared(chosen: list[str]):
        rows = write(tmp_path / "x.jsonl", [{"text": text, "label": i % 2} for i, text in enumerate(chosen)])
        task = "sequence-classification"
        return prepare(recipe_of(tmp_path / "bart", task, "classification", rows, evaluation=None), open_world("cpu"))

    with pytest.raises(DataError, match=r"data\.train: 1 of 4 rows contain the model's end token in their own text"):
        prepared(texts)
    assert len(prepared([text for text in texts if "</s>" not in text]).dataset.train) == 3


def test_a_row_with_an_end_token_of_its_own_is_predicted_beside_others_as_transformers_does_alone(tmp_path):
    write_family(tmp_path / "bart", "bart")
    trained = write(tmp_path / "x.jsonl", [{"text": text, "label": text} for text in ("one", "two")])
    recipe = recipe_of(tmp_path / "bart", "sequence-classification", "classification", trained)
    sections = recipe.model_dump() | {"method": {"type": "full"}}
    train(Recipe.model_validate(sections), display=NoDisplay())
    texts = ["one two", "one </s> two </s> three", "four", "two </s> three", "one"]
    asked = write(tmp_path / "asked.jsonl", [{"text": text} for text in texts])
    assert predict(tmp_path / "run", asked, tmp_path / "out.jsonl").errors == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "bart")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "weights").eval()
    for text, line in zip(texts, (tmp_path / "out.jsonl").read_text().splitlines(), strict=True):
        found = json.loads(line)
        wanted = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
        assert found["text"] == text
        assert list(found["prediction_probabilities"].values()) == pytest.approx(wanted.tolist(), abs=1e-5)
