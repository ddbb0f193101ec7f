"""Runs of token classification: every method trains, is saved, loads elsewhere, and resumes exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModelForTokenClassification
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification

from peftlab.cli.app import run as run_command
from peftlab.data.batches import collate
from peftlab.errors import StoppedError, UsageError
from peftlab.losses.cross_entropy import inputs_of
from peftlab.models.quantize import quantize_
from peftlab.recipe.dump import dump_recipe
from peftlab.runs.bench import Bench
from peftlab.runs.bench import prepare as prepare_bench
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.generation import generate
from peftlab.runs.params import count
from peftlab.runs.run import train
from peftlab.runs.use import evaluate
from peftlab.runs.verify import differing, load_final
from peftlab.world.open import open_world
from tests.cli.commands import answer_apart
from tests.sampling import sampled
from tests.tasks.tagging import METHODS, tagging_recipe, write_model, write_sentences

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tagging")
    write_model(folder / "bert")
    write_sentences(folder / "train.jsonl", 48, seed=1)
    write_sentences(folder / "evaluation.jsonl", 24, seed=2)
    return folder


@pytest.fixture(scope="module")
def straight(folder):
    """Return a function from a method's name to its run's result and directory; each runs once."""
    done = {}

    def run(name: str):
        if name not in done:
            result = train(tagging_recipe(folder, METHODS[name], name), display=NoDisplay())
            done[name] = result, RunDirectory.open(folder / name)
        return done[name]

    return run


def bench_of(folder: Path, name: str) -> Bench:
    return prepare_bench(tagging_recipe(folder, METHODS[name], name), open_world("cpu"))


@torch.no_grad()
def logits_of(model, batch) -> torch.Tensor:
    """Return the logits at the rows' tokens, which come after a prefix."""
    return model.eval()(**inputs_of(batch)).logits[:, -batch["input_ids"].shape[1] :]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_the_tags(straight, method):
    result, _ = straight(method)
    assert result.audit.clean and result.status == "finished"
    before, after = result.metrics["before"], result.metrics["after"]
    assert after["loss"] < 0.9 * before["loss"]
    trained = {row.name: row.trainable for row in result.parameters.kinds}
    assert trained["head"] == 32 * 5 + 5, "the new head, five tags wide, trains with every method"


def test_evaluating_says_what_was_cut_and_left_out(straight, folder, capsys):
    """Metrics are of the words that are left: a reader who counts the words of the file finds others."""
    straight("lora")
    rows = [json.loads(line) for line in (folder / "evaluation.jsonl").read_text().splitlines()]
    rows[3] = {"words": ["open"] * 60, "tags": ["B-F"] * 60}
    (folder / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = {
        "cut": "data.evaluation: 1 of 24 rows are longer than data.max_length (32): cut; 1 of them lost supervised",
        "skip": "data.evaluation: 1 row longer than data.max_length (32): left out (data.long: skip)",
    }
    asked = ["evaluate", str(folder / "lora"), f"data.evaluation={folder / 'long.jsonl'}"]
    for how, note in wanted.items():
        assert run_command([*asked, f"data.long={how}"]) == 0
        assert note in capsys.readouterr().err
    assert run_command([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"][0].startswith(wanted["cut"])
    assert run_command(asked[:2]) == 0 and "note" not in capsys.readouterr().err


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_run_evaluates_as_it_did(straight, method):
    result, directory = straight(method)
    assert evaluate(directory.path) == pytest.approx(result.metrics["after"], abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_head_is_saved_once_with_its_tags(straight, method):
    _, directory = straight(method)
    (file,) = directory.weights.glob("*.safetensors")
    heads = [name for name in load_file(file) if "classifier" in name]
    assert sorted(name.rpartition("classifier.")[2] for name in heads) == ["bias", "weight"]
    manifest = json.loads((directory.weights / "peftlab_adapter.json").read_text())
    assert manifest["context"]["labels"] == ["O", "B-E", "B-F", "B-T", "I-T"]


@pytest.mark.parametrize("method", ["lora", "qlora", "prefix"])
def test_plain_peft_gives_equal_logits(folder, straight, method):
    _, directory = straight(method)
    bench = bench_of(folder, method)
    batch = collate(bench.dataset.evaluation[:4], bench.dataset.pad_id)
    mine = bench.recipe.method.load(bench.base.model, directory.weights, {"base_model": bench.base.source})
    config = json.loads((directory.weights / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("TOKEN_CLS", ["classifier", "score"])
    base = AutoModelForTokenClassification.from_pretrained(folder / "bert", num_labels=5)
    if bench.recipe.method.base_format != "plain":
        quantize_(base, bench.recipe.method.base_format)
    plain = PeftModelForTokenClassification.from_pretrained(base, directory.weights)
    torch.testing.assert_close(logits_of(plain, batch), logits_of(mine, batch), rtol=0, atol=1e-6)
    targets = config.get("target_modules") or []
    assert not [name for name in targets if "classifier" in name], "an update beside the head would train it twice"


def test_transformers_loads_what_full_fine_tuning_saved(folder, straight):
    _, directory = straight("full")
    bench = bench_of(folder, "full")
    batch = collate(bench.dataset.evaluation[:4], bench.dataset.pad_id)
    mine = bench.recipe.method.load(bench.base.model, directory.weights, {"base_model": bench.base.source})
    plain = AutoModelForTokenClassification.from_pretrained(directory.weights)
    torch.testing.assert_close(logits_of(plain, batch), logits_of(mine, batch), rtol=0, atol=0)
    assert plain.config.id2label == dict(enumerate(["O", "B-E", "B-F", "B-T", "I-T"]))


@pytest.mark.parametrize(
    "method", sampled(["full", "lora", "adapters", "prefix", "bitfit"], ["full", "lora", "prefix"])
)
def test_a_stopped_run_resumes_byte_for_byte(folder, straight, method, tmp_path):
    _, directory = straight(method)
    stopped = tagging_recipe(folder, METHODS[method], str(tmp_path / "run"), stop_after=2)
    with pytest.raises(StoppedError):
        train(stopped, display=NoDisplay())
    whole = tagging_recipe(folder, METHODS[method], str(tmp_path / "run"))
    resumed = train(whole, resume=True, display=NoDisplay())
    assert [(one.step, one.exact) for one in resumed.resumes] == [(2, True)]
    same = differing(load_final(directory.path), load_final(tmp_path / "run"))
    assert len(same) > 10 and all(same.values())
    assert resumed.metrics == straight(method)[0].metrics


def test_scores_of_rows_are_kept_with_their_spans(straight):
    result, directory = straight("lora")
    scores = json.loads((directory.path / "scores.json").read_text())["after"]
    hits, predicted, true = (sum(scores["sums"][f"span_{name}"]) for name in ("hits", "predicted", "true"))
    assert 2 * hits / (predicted + true) == pytest.approx(result.metrics["after"]["span_f1"])
    sentences = [json.loads(line) for line in (directory.path.parent / "evaluation.jsonl").read_text().splitlines()]
    assert scores["count"] == [len(sentence["words"]) for sentence in sentences]


def test_prompt_tuning_trains_an_encoder(folder):
    method = {"type": "prefix", "kind": "prompt", "length": 3}
    result = train(tagging_recipe(folder, method, "prompt"), display=NoDisplay())
    assert result.metrics["after"]["loss"] < result.metrics["before"]["loss"]
    assert evaluate(folder / "prompt") == pytest.approx(result.metrics["after"], abs=1e-6)


def test_a_decoder_is_trained_too(folder):
    llama = write_model(folder / "llama", "llama")
    for method in ("lora", "prefix"):
        result = train(tagging_recipe(folder, METHODS[method], f"llama-{method}", llama), display=NoDisplay())
        assert result.metrics["after"]["loss"] < 0.9 * result.metrics["before"]["loss"]
        assert evaluate(folder / f"llama-{method}") == pytest.approx(result.metrics["after"], abs=1e-6)


def test_no_text_is_generated(straight):
    with pytest.raises(UsageError, match="is a token-classification run, which generates no text"):
        generate(straight("lora")[1].path, "open")


@pytest.mark.parametrize("method", METHODS)
def test_the_count_from_sizes_is_the_run_s(folder, straight, method):
    assert count(tagging_recipe(folder, METHODS[method], method)).trainable == straight(method)[0].parameters.trainable


def test_the_commands_check_count_and_plan_the_recipe(folder):
    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(tagging_recipe(folder, METHODS["lora"], "planned")))
    checked = answer_apart("check", path, log=folder / "check.log")
    counted = answer_apart("params", path, log=folder / "params.log")
    planned = answer_apart("plan", path, log=folder / "plan.log")
    assert checked["ok"]
    adapters = 2 * 4 * (4 * (32 + 32) + 2 * (32 + 48))
    assert counted["trainable"] == adapters + 32 * 5 + 5
    assert planned["peak_bytes"] > 0
