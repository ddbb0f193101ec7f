"""Runs of regression and multi-label classification: every method trains, is saved, loads, resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification

from peftlab.data.batches import collate
from peftlab.errors import StoppedError, UsageError
from peftlab.losses.cross_entropy import inputs_of
from peftlab.methods import LoRA
from peftlab.models.quantize import quantize_
from peftlab.recipe.dump import dump_recipe
from peftlab.runs.bench import prepare as prepare_bench
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.generation import generate
from peftlab.runs.params import count
from peftlab.runs.run import train
from peftlab.runs.use import evaluate
from peftlab.runs.verify import differing, load_final
from peftlab.tasks import TASKS, task_of
from peftlab.world.open import open_world
from tests.cli.commands import answer_apart
from tests.sampling import sampled
from tests.tasks.measuring import FORMATS, recipe_for, write_texts
from tests.tasks.tagging import METHODS, write_model

OUTPUTS = {"regression": 1, "multi-label-classification": 4}
CASES = [(task, method) for task in FORMATS for method in METHODS]
FOREIGN = [(task, method) for task in FORMATS for method in ("lora", "qlora", "prefix")]
# Each method; both tasks differ in their loss and their head alone.
SAMPLE = [("regression", "full"), ("regression", "lora"), ("regression", "qlora")]
SAMPLE += [("multi-label-classification", method) for method in ("full", "adapters", "prefix", "bitfit")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("measuring")
    write_model(folder / "bert")
    write_texts(folder / "train.jsonl", 64, seed=1)
    write_texts(folder / "evaluation.jsonl", 24, seed=2)
    return folder


@pytest.fixture(scope="module")
def straight(folder):
    """Return a function from a task and a method's name to the run's result and directory; each runs once."""
    done = {}

    def run(task: str, name: str):
        key = f"{task}-{name}"
        if key not in done:
            result = train(recipe_for(task, folder, METHODS[name], key), display=NoDisplay())
            done[key] = result, RunDirectory.open(folder / key)
        return done[key]

    return run


def bench_of(folder: Path, task: str, name: str):
    return prepare_bench(recipe_for(task, folder, METHODS[name], name), open_world("cpu"))


@torch.no_grad()
def logits_of(model, batch) -> torch.Tensor:
    return model.eval()(**inputs_of(batch)).logits


@pytest.mark.parametrize(("task", "method"), sampled(CASES, SAMPLE))
def test_every_method_learns_and_its_plan_is_right(folder, straight, task, method):
    result, directory = straight(task, method)
    assert result.audit.clean and result.status == "finished"
    before, after = result.metrics["before"], result.metrics["after"]
    assert after["loss"] < 0.97 * before["loss"]
    trained = {row.name: row.trainable for row in result.parameters.kinds}
    assert trained["head"] >= 33 * OUTPUTS[task], "the new head trains with every method"
    memory = result.memory
    assert memory["predicted"].peak_bytes == pytest.approx(memory["measured"].peak_bytes, rel=0.02)
    assert count(recipe_for(task, folder, METHODS[method], "-")).trainable == result.parameters.trainable
    assert evaluate(directory.path) == pytest.approx(after, abs=1e-6)


@pytest.mark.parametrize(("task", "method"), sampled(FOREIGN, SAMPLE.__contains__))
def test_plain_peft_gives_equal_outputs(folder, straight, task, method):
    _, directory = straight(task, method)
    bench = bench_of(folder, task, method)
    batch = collate(bench.dataset.evaluation[:4], bench.dataset.pad_id)
    mine = bench.recipe.method.load(bench.base.model, directory.weights, {"base_model": bench.base.source})
    base = AutoModelForSequenceClassification.from_pretrained(folder / "bert", num_labels=OUTPUTS[task])
    if bench.recipe.method.base_format != "plain":
        quantize_(base, bench.recipe.method.base_format)
    plain = PeftModelForSequenceClassification.from_pretrained(base, directory.weights)
    torch.testing.assert_close(logits_of(plain, batch), logits_of(mine, batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("task", FORMATS)
def test_the_loss_is_that_of_transformers_on_the_saved_model(folder, straight, task):
    """Transformers chooses its loss by the saved `problem_type`, and takes the mean over all outputs of all rows."""
    _, directory = straight(task, "full")
    bench = bench_of(folder, task, "full")
    plain = AutoModelForSequenceClassification.from_pretrained(directory.weights).eval()
    assert task_of(plain) is TASKS[task]
    batch = collate(bench.dataset.evaluation[:5], bench.dataset.pad_id)
    with torch.no_grad():
        theirs = plain(**inputs_of(batch), labels=batch["targets"].view(5, -1).squeeze(-1)).loss
        mine = TASKS[task].loss(plain).total(plain, batch) / sum(row.supervised for row in bench.dataset.evaluation[:5])
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("task", "method"), sampled([case for case in CASES if "qlora" not in case], SAMPLE.__contains__)
)
def test_a_stopped_run_resumes_byte_for_byte(folder, straight, task, method, tmp_path):
    result, directory = straight(task, method)
    stopped = recipe_for(task, folder, METHODS[method], str(tmp_path / "run"), plan="off", stop_after=3)
    with pytest.raises(StoppedError):
        train(stopped, display=NoDisplay())
    whole = recipe_for(task, folder, METHODS[method], str(tmp_path / "run"), plan="off")
    resumed = train(whole, resume=True, display=NoDisplay())
    assert [(one.step, one.exact) for one in resumed.resumes] == [(3, True)]
    same = differing(load_final(directory.path), load_final(tmp_path / "run"))
    assert len(same) > 10 and all(same.values())
    assert resumed.metrics == result.metrics


def test_numbers_of_rows_are_kept_among_the_scores(straight):
    result, directory = straight("regression", "lora")
    sums = json.loads((directory.path / "scores.json").read_text())["after"]["sums"]
    rows = [json.loads(line) for line in (directory.path.parent / "evaluation.jsonl").read_text().splitlines()]
    assert sums["number_true"] == [row["target"] for row in rows]
    errors = [(one - other) ** 2 for one, other in zip(sums["number_predicted"], sums["number_true"], strict=True)]
    assert sum(errors) / len(errors) == pytest.approx(result.metrics["after"]["loss"], rel=1e-5)
    assert result.metrics["after"]["rmse"] ** 2 == pytest.approx(result.metrics["after"]["loss"], rel=1e-5)


def test_labels_are_named_in_the_record_the_scores_and_the_saved_model(straight):
    result, directory = straight("multi-label-classification", "full")
    names = ["OSError", "Path", "open", "parse_args"]
    sums = json.loads((directory.path / "scores.json").read_text())["after"]["sums"]
    rows = [json.loads(line) for line in (directory.path.parent / "evaluation.jsonl").read_text().splitlines()]
    for name in names:
        assert sums[f"true: {name}"] == [int(name in row["labels"]) for row in rows]
    assert result.data["labels"] == names
    config = json.loads((directory.weights / "config.json").read_text())
    assert (list(config["id2label"].values()), config["problem_type"]) == (names, "multi_label_classification")


def test_a_higher_threshold_predicts_fewer_labels(straight, tmp_path):
    _, directory = straight("multi-label-classification", "full")
    counts = []
    for threshold in ("0.2", "0.5", "0.8"):
        values = evaluate(directory.path, [f"evaluation.threshold={threshold}"])
        counts.append((values["label_f1_micro"], values["loss"]))
    assert len({loss for _, loss in counts}) == 1 and len({value for value, _ in counts}) > 1


@pytest.mark.parametrize("task", sampled(list(FORMATS), ["regression"]))
def test_a_decoder_is_trained_too(folder, task):
    if not (folder / "llama").exists():
        write_model(folder / "llama", "llama")
    result = train(recipe_for(task, folder, METHODS["lora"], f"llama-{task}", "llama"), display=NoDisplay())
    assert result.metrics["after"]["loss"] < 0.97 * result.metrics["before"]["loss"]
    assert evaluate(folder / f"llama-{task}") == pytest.approx(result.metrics["after"], abs=1e-6)


def test_merged_outputs_are_those_of_the_trained_model(folder, straight):
    _, directory = straight("regression", "lora")
    bench = bench_of(folder, "regression", "lora")
    batch = collate(bench.dataset.evaluation[:4], bench.dataset.pad_id)
    mine = bench.recipe.method.load(bench.base.model, directory.weights, {"base_model": bench.base.source})
    expected = logits_of(mine, batch)
    merged = LoRA(**METHODS["lora"]).merge(mine)
    torch.testing.assert_close(logits_of(merged, batch), expected, rtol=0, atol=1e-5)
    assert task_of(merged).name == "regression"


def test_no_text_is_generated(straight):
    with pytest.raises(UsageError, match="is a regression run, which generates no text"):
        generate(straight("regression", "lora")[1].path, "open")


@pytest.mark.parametrize("task", sampled(list(FORMATS), ["regression"]))
def test_the_commands_check_and_plan_the_recipe(folder, task):
    path = folder / f"{task}.yaml"
    path.write_text(dump_recipe(recipe_for(task, folder, METHODS["lora"], "planned")))
    assert answer_apart("check", path, log=folder / "check.log")["ok"]
    assert answer_apart("plan", path, log=folder / "plan.log")["peak_bytes"] > 0
