"""`predict`: every row in is a row out, in its order, whatever happens between; values are those of evaluation."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from peft import PeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from peftlab.cli.app import run as run_command
from peftlab.errors import DataError, StorageError
from peftlab.recipe.schema import Recipe
from peftlab.runs.display import NoDisplay
from peftlab.runs.generation import generate_all
from peftlab.runs.predict import Sink, predict
from peftlab.runs.predict_rows import Predicted, Predictor
from peftlab.runs.requests import ask
from peftlab.runs.run import train
from peftlab.runs.use import evaluate
from peftlab.tasks.token_classification import find_spans
from tests.runs.chats import WORDS, chat_sections
from tests.tasks.measuring import recipe_for, write_texts
from tests.tasks.tagging import METHODS, tagging_recipe, write_model, write_sentences


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    write_model(folder / "bert")
    write_texts(folder / "train.jsonl", 64, seed=1)
    write_texts(folder / "evaluation.jsonl", 24, seed=2)
    for task in ("regression", "multi-label-classification"):
        train(recipe_for(task, folder, METHODS["lora"], task), display=NoDisplay())
    sections = recipe_for("regression", folder, METHODS["lora"], "topics").model_dump()
    for part in ("train", "evaluation"):
        rows = lines(folder / f"{part}.jsonl")
        labelled = [{"text": row["text"], "label": f"L{len(row['labels'])}"} for row in rows]
        write(folder / f"{part}_topics.jsonl", [row for row in labelled if row["label"] < "L4"])
        sections["data"][part] = str(folder / f"{part}_topics.jsonl")
    sections["model"]["task"], sections["data"]["format"] = "sequence-classification", "classification"
    sections["evaluation"]["metrics"] = ["accuracy"]
    train(Recipe.model_validate(sections), display=NoDisplay())
    for part in ("train", "evaluation"):
        rows = lines(folder / f"{part}_topics.jsonl")
        write(folder / f"{part}_numbers.jsonl", [row | {"label": 7 + int(row["label"][1])} for row in rows])
        sections["data"][part] = str(folder / f"{part}_numbers.jsonl")
    sections["run"]["output"] = str(folder / "numbers")
    train(Recipe.model_validate(sections), display=NoDisplay())
    return folder


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def without(rows, *names):
    return [{key: value for key, value in row.items() if key not in names} for row in rows]


def predicted(run: Path, rows, tmp_path: Path, **options) -> list[dict]:
    write(tmp_path / "in.jsonl", rows)
    predict(run, str(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", overwrite=True, **options)
    return lines(tmp_path / "out.jsonl")


def test_classes_are_those_that_are_evaluated_with_peft_s_own_probabilities(folder, tmp_path):
    given = lines(folder / "evaluation_topics.jsonl")
    found = predicted(folder / "topics", without(given, "label"), tmp_path)
    assert without(found, "prediction", "prediction_probability", "prediction_probabilities") == without(given, "label")
    right = sum(one["prediction"] == row["label"] for one, row in zip(found, given, strict=True))
    assert right / len(given) == pytest.approx(evaluate(folder / "topics")["accuracy"])
    base = AutoModelForSequenceClassification.from_pretrained(folder / "bert", num_labels=4)
    model = PeftModelForSequenceClassification.from_pretrained(base, folder / "topics" / "weights").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "bert")
    for row in found[:5]:
        wanted = model(**tokenizer(row["text"], return_tensors="pt")).logits[0].softmax(-1)
        assert list(row["prediction_probabilities"].values()) == pytest.approx(wanted.tolist(), abs=1e-5)
        assert row["prediction_probability"] == max(row["prediction_probabilities"].values())


def test_labels_that_are_whole_numbers_in_the_training_rows_are_so_in_predictions(folder, tmp_path):
    given = lines(folder / "evaluation_numbers.jsonl")
    found = predicted(folder / "numbers", without(given, "label"), tmp_path)
    assert {type(row["label"]) for row in given} == {type(one["prediction"]) for one in found} == {int}
    right = sum(one["prediction"] == row["label"] for one, row in zip(found, given, strict=True))
    assert right / len(given) == pytest.approx(evaluate(folder / "numbers")["accuracy"])


def test_long_rows_are_cut_as_in_evaluation_and_counted(folder, tmp_path):
    given, limit = lines(folder / "evaluation_numbers.jsonl"), "data.max_length=5"
    write(tmp_path / "in.jsonl", without(given, "label"))
    report = predict(folder / "numbers", str(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", [limit])
    found = lines(tmp_path / "out.jsonl")
    right = sum(one["prediction"] == row["label"] for one, row in zip(found, given, strict=True))
    assert right / len(given) == pytest.approx(evaluate(folder / "numbers", [limit])["accuracy"])
    tokenizer = AutoTokenizer.from_pretrained(folder / "bert")
    long = sum(len(tokenizer(row["text"])["input_ids"]) > 5 for row in given)
    told = "rows are longer than data.max_length (5): their end was not read, as in evaluation"
    assert long and report.notes == (f"{long} {told}",)


def test_numbers_have_the_error_that_is_evaluated(folder, tmp_path):
    given = lines(folder / "evaluation.jsonl")
    found = predicted(folder / "regression", given, tmp_path)  # columns of answers are kept and not read
    squares = [(one["prediction"] - row["target"]) ** 2 for one, row in zip(found, given, strict=True)]
    assert math.sqrt(sum(squares) / len(squares)) == pytest.approx(evaluate(folder / "regression")["rmse"], abs=1e-5)
    assert without(found, "prediction") == given


def test_sets_of_labels_are_those_above_the_threshold(folder, tmp_path):
    given = lines(folder / "evaluation.jsonl")
    found = predicted(folder / "multi-label-classification", without(given, "labels"), tmp_path)
    exact = sum(set(one["prediction"]) == set(row["labels"]) for one, row in zip(found, given, strict=True))
    assert exact / len(given) == pytest.approx(evaluate(folder / "multi-label-classification")["label_match"])
    for row in found:
        assert row["prediction"] == [label for label, p in row["prediction_probabilities"].items() if p > 0.5]


def test_tags_are_aligned_with_words_and_cut_ones_are_null(tmp_path):
    write_model(tmp_path / "bert")
    write_sentences(tmp_path / "train.jsonl", 48, seed=1)
    given = lines(write_sentences(tmp_path / "evaluation.jsonl", 24, seed=2))
    train(tagging_recipe(tmp_path, METHODS["lora"], "run"), display=NoDisplay())
    long = {"words": ["Path"] * 60}
    found = predicted(tmp_path / "run", [*without(given, "tags"), long, {"words": []}], tmp_path)
    hits = wanted = said = 0
    for one, row in zip(found, given, strict=False):
        true, own = find_spans(row["tags"]), find_spans(one["prediction"])
        hits, wanted, said = hits + len(true & own), wanted + len(true), said + len(own)
    assert 2 * hits / (wanted + said) == pytest.approx(evaluate(tmp_path / "run")["span_f1"])
    tags = found[-2]["prediction"]
    assert len(tags) == 60 and tags[0] is not None and tags[-1] is None
    assert [p is None for p in found[-2]["prediction_probability"]] == [tag is None for tag in tags]
    assert found[-1]["prediction"] is None and "empty" in found[-1]["prediction_error"]


def test_texts_are_those_of_generate_and_their_probability_is_the_model_s(tmp_path):
    """The oracle of the probability is one forward pass over prompt and answer."""
    sections = chat_sections(tmp_path) | {"evaluation": {"generation": {"max_new_tokens": 8, "examples": 0}}}
    recipe = Recipe.model_validate(sections)
    train(recipe, display=NoDisplay())
    run = tmp_path / "run"
    rows = [{"messages": [{"role": "user", "content": f"walk {word}"}], "n": n} for n, word in enumerate(WORDS)]
    rows[1]["messages"].append({"role": "assistant", "content": "what it said before"})
    bad = [{"messages": [], "n": 9}, {"messages": [{"role": "assistant", "content": "first"}]}, {"messages": "x"}]
    found = predicted(run, [*rows, *bad], tmp_path)
    asked = generate_all(run, lambda recipe: [ask(recipe, f"walk {word}") for word in WORDS])
    assert [row["prediction"] for row in found[:4]] == [one.text for one in asked]
    assert [row["prediction"] for row in found[4:]] == [None] * 3 and found[4]["n"] == 9
    wrong = ["has no message to answer"] * 2 + ["column 'messages': needs a list of messages {role, content}, not str"]
    assert [row["prediction_error"] for row in found[4:]] == wrong
    assert run_command(["predict", str(run), str(write(tmp_path / "bad.jsonl", bad))]) == 4, "no row could be used"
    from peftlab.runs.chat import open_conversation

    loaded = open_conversation([run]).runs["run"]
    encoded = loaded.encode(ask(recipe, "walk north"))
    answer = loaded.tokenizer("going north", add_special_tokens=False)["input_ids"]
    answer.append(loaded.tokenizer.convert_tokens_to_ids("<|turn|>"))
    with torch.no_grad():
        logits = loaded.model.eval()(torch.tensor([encoded.ids + answer])).logits[0].float().log_softmax(-1)
    start = len(encoded.ids)
    wanted = sum(float(logits[start + i - 1, token]) for i, token in enumerate(answer))
    assert found[0]["prediction"] == "going north" and found[0]["prediction_ended"]
    assert found[0]["prediction_log_probability"] == pytest.approx(wanted, abs=1e-4)


def test_prompts_are_read_whole_and_long_ones_are_counted(tmp_path, capsys):
    sections = chat_sections(tmp_path) | {"evaluation": {"generation": {"max_new_tokens": 2, "examples": 0}}}
    sections["training"] |= {"steps": 1, "epochs": None}
    train(Recipe.model_validate(sections), display=NoDisplay())
    run, rows = tmp_path / "run", [{"messages": [{"role": "user", "content": f"walk {word}"}]} for word in WORDS]
    write(tmp_path / "in.jsonl", rows)
    whole = predict(run, str(tmp_path / "in.jsonl"), tmp_path / "whole.jsonl")
    limited = predict(run, str(tmp_path / "in.jsonl"), tmp_path / "limited.jsonl", ["data.max_length=2"])
    assert lines(tmp_path / "whole.jsonl") == lines(tmp_path / "limited.jsonl") and whole.notes == ()
    told = "longer than data.max_length (2), to which evaluation shortens rows: read whole here"
    assert limited.notes == (f"{len(rows)} rows are {told}",)
    assert run_command(["generate", str(run), "walk north", "data.max_length=2"]) == 0
    errors = capsys.readouterr().err
    assert "the prompt is longer than data.max_length, to which evaluation shortens rows: read whole here" in errors


def test_a_bad_row_keeps_its_place_with_its_reason(folder, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text(
        '{"text": "open"}\n{"text": 5.5e400}\nnonsense\n\n{"text": ""}\n{"text": "Path"}\n'
    )
    code = run_command(["predict", str(folder / "regression"), str(tmp_path / "in.jsonl"), "--name", "y"])
    out, errors = capsys.readouterr()
    found = [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]
    assert code == 0 and ["y_error" in row for row in found] == [False, True, True, True, False]
    assert found[1]["text"] is None, "JSON has no infinity"
    assert "3 rows with an error" in errors and "in.jsonl:2" in errors
    assert found[0]["y"] == pytest.approx(
        predicted(folder / "regression", [{"text": "open"}], tmp_path)[0]["prediction"]
    )


def test_standard_input_is_read_and_a_column_is_never_replaced(folder, tmp_path, monkeypatch, capsys):
    class Input:
        buffer = io.BytesIO(b'{"text": "open", "prediction": 1}\n')

    monkeypatch.setattr(sys, "stdin", Input())
    assert run_command(["predict", str(folder / "regression"), "-"]) == 4
    assert "column 'prediction' already" in capsys.readouterr().err
    Input.buffer = io.BytesIO(b'{"text": "open", "prediction": 1}\n{"text": "Path"}\n')
    assert run_command(["predict", str(folder / "regression"), "-", "--name", "mine"]) == 0
    assert [list(json.loads(line)) for line in capsys.readouterr().out.splitlines()] == [
        ["text", "prediction", "mine"],
        ["text", "mine"],
    ]
    with pytest.raises(DataError, match="has no column 'text'"):
        predicted(folder / "regression", [{"words": "open"}], tmp_path)


def test_a_file_that_is_read_or_cannot_be_written_is_no_output(folder, tmp_path, capsys):
    run, rows = folder / "regression", write(tmp_path / "rows.jsonl", [{"prompt": "a", "text": "open", "target": 1}])
    before = rows.read_bytes()
    for command in (["predict", run, rows], ["evaluate", run, f"data.evaluation={rows}"]):
        for place, code, fault in (
            (rows, 2, "is read by this command"),
            (rows / "out", 8, f"{rows} is a file, not a folder"),
            (tmp_path, 8, "it is a folder"),
            (tmp_path / "none" / "out", 8, "there is no folder"),
        ):
            overwrite = ["--overwrite"] if command[0] == "predict" else []
            assert run_command([str(one) for one in (*command, "--output", place, *overwrite)]) == code
            assert fault in capsys.readouterr().err.replace("\n", " ")
    assert run_command(["generate", str(run), "--prompts", str(rows), "--output", str(rows)]) == 2
    assert "would be lost" in capsys.readouterr().err
    assert rows.read_bytes() == before


def test_a_named_link_stays_and_the_file_that_it_names_is_written(folder, tmp_path):
    rows = write(tmp_path / "rows.jsonl", [{"text": "open"}])
    (tmp_path / "far").mkdir()
    link, target = tmp_path / "out.jsonl", tmp_path / "far" / "kept.jsonl"
    link.symlink_to(target)
    for command in (["predict", rows, "--overwrite"], ["evaluate", f"data.evaluation={folder / 'evaluation.jsonl'}"]):
        target.unlink(missing_ok=True)  # a link to nothing names a file, too
        arguments = [command[0], folder / "regression", *command[1:], "--output", link]
        assert run_command([str(one) for one in arguments]) == 0
        assert link.is_symlink() and target.is_file(), command


def test_a_device_is_no_output(folder, tmp_path, capsys):
    """Renaming a file over `/dev/null` would replace it, for all who use it; here a pipe stands in for it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    rows = write(tmp_path / "rows.jsonl", [{"text": "open"}])
    for name, fault in (("pipe", "it is not a regular file"), ("loop", "it is a link to itself")):
        for command in (["predict", rows], ["evaluate"], ["generate", "--prompts", rows]):
            words = [command[0], folder / "regression", *command[1:], "--output", tmp_path / name]
            assert run_command([str(one) for one in words]) == 8
            assert fault in capsys.readouterr().err.replace("\n", " ")


def test_an_earlier_output_stays_until_there_are_rows_to_replace_it(folder, tmp_path):
    out, rows = tmp_path / "out.jsonl", write(tmp_path / "rows.jsonl", [{"words": "open"}])
    out.write_text("precious\n")
    with pytest.raises(DataError, match="text"):
        predict(folder / "regression", str(rows), out, overwrite=True)
    assert out.read_text() == "precious\n" and not (tmp_path / "out.jsonl.progress").exists()


class Counting(Predictor):
    """Predicts how often it was asked; raises where a test says so, as a process that is killed."""

    batch_size = 8

    def __init__(self, dies_after: int | None = None) -> None:
        self.chunks, self.dies_after = 0, dies_after

    def open(self, header):
        assert "text" in header.columns

    def predict(self, rows):
        self.chunks += 1
        if self.chunks == self.dies_after:
            raise KeyboardInterrupt
        wrong = [row["number"] in (5, 9000) for row in rows]
        return [
            Predicted({"": row["number"] * 2}, "odd" if bad else None) for row, bad in zip(rows, wrong, strict=True)
        ]


def test_ten_thousand_rows_killed_and_resumed_are_all_there_once_in_constant_memory(folder, tmp_path, monkeypatch):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write(source, ({"text": "x" * 500, "number": number} for number in range(10_000)))
    arguments = (folder / "regression", str(source), out)
    for dies_after, resume in ((30, False), (2, True), (40, True)):
        monkeypatch.setattr("peftlab.runs.predict.open_predictor", lambda *_, dies=dies_after: Counting(dies))
        with pytest.raises(KeyboardInterrupt):
            predict(*arguments, resume=resume)
        with out.open("ab") as file:  # what was written after the last note, and half a row
            file.write(b'{"text": "again", "number": 0, "prediction": 0}\n{"tex')
    with pytest.raises(StorageError, match="--resume continues it"):
        predict(*arguments)
    with pytest.raises(StorageError, match="begun with another name"):
        predict(*arguments, resume=True, name="other")
    monkeypatch.setattr("peftlab.runs.predict.open_predictor", lambda *_: Counting())
    tracemalloc.start()
    report = predict(*arguments, resume=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.rows == 10_000 and report.resumed == (29 + 1 + 39) * 128
    assert report.errors == 2 and report.first_error == f"{source}:6: odd", "also that of an earlier call"
    wanted = [(i, None if i in (5, 9000) else 2 * i) for i in range(10_000)]
    assert [(row["number"], row["prediction"]) for row in lines(out)] == wanted
    assert peak < 3 * 2**20 < source.stat().st_size
    assert not (tmp_path / "out.jsonl.progress").exists()
    with pytest.raises(StorageError, match="is complete"):
        predict(*arguments, resume=True)
    write(source, [{"text": "changed", "number": 1}])
    with pytest.raises(StorageError, match="exists already; --overwrite replaces it"):
        predict(*arguments)


def test_a_disk_that_is_full_while_rows_are_written_is_one_line_that_names_the_file(tmp_path):
    """Half of the rows are on the disk by then; the note beside them says how many count."""

    class Full(io.FileIO):
        def write(self, content):
            if self.tell() + len(content) > 40:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(content)

    path = tmp_path / "out.jsonl"
    with pytest.raises(StorageError, match=r"out\.jsonl: cannot be written: .*--resume continues it"):
        with Sink(lambda: io.BufferedWriter(Full(path, "w")), tmp_path / "out.jsonl.progress", {}) as sink:
            sink.write([{"prediction": "a"}])
            sink.write([{"prediction": "b" * 90}])
    assert json.loads((tmp_path / "out.jsonl.progress").read_text())["rows"] == 1
