"""`push`: weights and a card arrive whole and once, privately, and nothing else of the run leaves this machine."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from peftlab.cli.app import run as run_command
from peftlab.cli.render import render_result, show
from peftlab.errors import StorageError, UsageError
from peftlab.export.formats import export
from peftlab.metrics import METRICS
from peftlab.quantities import format_bytes, format_count, format_seconds, format_share
from peftlab.runs.card import write_card
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.loading import load_trained
from peftlab.runs.merge import MergeOptions, merge
from peftlab.runs.push import loads_of, push
from peftlab.runs.reopen import load_run_recipe
from peftlab.runs.run import train
from peftlab.runs.scores import read_scores
from tests.runs.hub import Hub
from tests.runs.recipes import shallow_recipe

# huggingface_hub 2.4 sends files as bytes in a way that its own HTTP client deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("push") / "run"
    recipe = shallow_recipe("lora", folder, steps=2)
    train(recipe.model_copy(update={"run": recipe.run.model_copy(update={"save_every": 1})}), display=NoDisplay())
    return folder


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr("peftlab.runs.push.HfApi", lambda: api_of(hub))
    yield hub
    hub.close()


def api_of(hub):
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.address, token="hf_test")


def test_weights_and_card_arrive_whole_in_a_private_repository(run, hub):
    found = push(run, "me/mine")
    assert hub.private == {"me/mine": True} and found.url
    assert set(hub.files) == set(found.files) == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "generation_config.json",
        "peftlab_adapter.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    for name in found.files:
        if name != "README.md":
            assert hub.files[name] == (run / "weights" / name).read_bytes()
    assert (run / "checkpoints").is_dir() and (run / "metrics.jsonl").is_file()


def test_an_interrupted_upload_is_finished_by_the_next_and_sends_large_files_once(run, hub):
    hub.breaks = 1
    with pytest.raises(StorageError, match="the hub refused.*run the command again"):
        push(run, "me/mine")
    assert hub.files == {} and len(hub.objects) == 1
    push(run, "me/mine")
    assert set(hub.puts.values()) == {1} and hub.commits == 1 and "adapter_model.safetensors" in hub.files


def test_an_upload_that_breaks_between_large_files_continues_with_those_that_are_missing(run, hub):
    hub.large = (".safetensors", "tokenizer.json")
    hub.broken_puts = {2}
    with pytest.raises(StorageError, match="run"):
        push(run, "me/mine")
    assert hub.files == {} and hub.commits == 0 and len(hub.objects) == 1
    found = push(run, "me/mine")
    assert hub.commits == 1 and set(hub.files) == set(found.files)
    assert sorted(hub.puts.values()) == [1, 1]
    for name in hub.large[1:]:
        assert hub.files[name] == (run / "weights" / name).read_bytes()


def test_a_dry_run_sends_nothing_and_says_what_it_would(run, hub, capsys):
    assert run_command(["push", str(run), "me/mine", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "adapter_model.safetensors" in text and "total" in text and "would be uploaded to me/mine" in text
    assert hub.private == {} and hub.objects == {}
    assert push(run, "me/mine", dry_run=True).bytes > 100_000


def test_a_merged_folder_is_pushed_with_its_card(run, hub, tmp_path):
    merge(run, tmp_path / "merged", MergeOptions(rows=4))
    assert push(tmp_path / "merged", "me/merged", public=True).private is False
    assert "model.safetensors" in hub.files and hub.private == {"me/merged": False}
    card = ModelCard(hub.files["README.md"].decode())
    assert "Difference from the trained model" in card.text and "AutoModelForCausalLM.from_pretrained" in card.text


def write(run, folder, **options):
    directory = RunDirectory.open(run)
    options = {"loads": "peft", "place": "me/mine"} | options
    return ModelCard.load(write_card(folder, load_run_recipe(directory), directory, **options))


def test_the_card_is_valid_and_says_what_the_record_says(run, hub, tmp_path):
    result = RunDirectory.open(run).read_result()
    card = write(run, tmp_path)
    card.validate(repo_type="model")
    assert card.data.library_name == "peft" and card.data.tags == ["peftlab", "lora"]
    measured = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert measured == result.metrics["after"]
    for wanted in (
        f"{result.parameters.trainable:,} of {result.parameters.total:,}",
        result.data["train"]["sha256"][:16],
        "train/evaluation: 0 rows",
        "PeftModel.from_pretrained",
        result.environment["versions"]["torch"],
        result.environment["platform"],
        "peak memory, measured",
        "rank: 4",
        "data, `builtin:docstrings[train]`: psf-2.0",
        "not known to peftlab",
    ):
        assert wanted in card.text, wanted


def test_the_card_s_intervals_are_quantiles_of_the_rows_drawn_again(run, tmp_path):
    """The oracle draws rows by another generator: quantiles of the mean loss per token."""
    card, scores = write(run, tmp_path), read_scores(RunDirectory.open(run).scores)["after"]
    losses, counts = np.asarray(scores.loss), np.asarray(scores.count)
    places = np.random.default_rng(9).integers(len(losses), size=(20_000, len(losses)))
    wanted = np.quantile(losses[places].sum(1) / counts[places].sum(1), (0.025, 0.975))
    row = next(line for line in card.text.splitlines() if line.startswith("| loss |"))
    low, high = map(float, re.findall(r"\[([\d.]+), ([\d.]+)\]", row)[-1])
    assert (low, high) == pytest.approx(tuple(wanted), abs=0.05 * (wanted[1] - wanted[0]))
    assert low < RunDirectory.open(run).read_result().metrics["after"]["loss"] < high


def code_of(card) -> str:
    return re.search(r"## Load\n\n```python\n(.*?)\n```", card.text, re.S)[1]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("full", "qlora", "prefix", "bitfit")]


@pytest.mark.parametrize("method", ["lora", "adapters", *SLOW])
def test_three_lines_of_the_card_load_the_trained_model(method, tmp_path, request):
    run = request.getfixturevalue("run") if method == "lora" else tmp_path / "run"
    if method != "lora":
        train(shallow_recipe(method, run, steps=2), display=NoDisplay())
    directory = RunDirectory.open(run)
    recipe, weights = load_run_recipe(directory), directory.weights
    code = code_of(write(run, tmp_path, loads=loads_of(recipe, weights), place=str(weights)))
    assert len(code.splitlines()) == 3
    names: dict = {}
    exec(code, names)
    ids = torch.arange(10).view(1, 10)
    with torch.no_grad():
        # On some CPUs bitsandbytes computes in bfloat16 outside of training. Nothing here drops out.
        found = names["model"].train(method == "qlora")(ids).logits
        wanted = load_trained(recipe, weights, torch.device("cpu")).eval()(ids).logits
    torch.testing.assert_close(found.float(), wanted.float(), rtol=1e-4, atol=1e-4)
    assert names["tokenizer"]("a")["input_ids"]


def test_each_figure_is_the_same_wherever_it_stands(run, tmp_path, capsys):
    result = RunDirectory.open(run).read_result()
    show(render_result(result))
    terminal = capsys.readouterr().out
    assert run_command(["runs", "list", str(run), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["runs"]
    assert run_command(["runs", "list", str(run)]) == 0
    table = " ".join(capsys.readouterr().out.split())
    card = write(run, tmp_path)
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluated = {line["step"]: line for line in events if line["event"] == "evaluation"}
    rows = read_scores(run / "scores.json")
    for name, after in result.metrics["after"].items():
        before = result.metrics["before"][name]
        shown = f"{before:.4f} +{after:.4f}"
        assert re.search(rf"^{name} +{shown}$", terminal, re.M), terminal
        assert re.search(rf"^\| {name} \| {before:.4f}.* \| {after:.4f}", card.text, re.M)
        assert [evaluated[step][name] for step in (0, result.progress.step)] == [before, after]
        assert [METRICS[name].of_rows(rows[when]) for when in ("before", "after")] == [before, after]
        assert listed[f"after.{name}"] == after
    assert "loss" in table and f"{result.metrics['after']['loss']:.4f}" in table
    peak, trained = result.memory["measured"].peak_bytes, result.parameters
    counts = f"{trained.trainable:,} of {trained.total:,} ({format_share(trained.fraction)})"
    assert counts in terminal and f"| trained parameters | {counts} |" in card.text
    assert format_bytes(peak) in terminal and f"| peak memory, measured | {format_bytes(peak)} |" in card.text
    assert format_bytes(peak) in table and format_count(trained.trainable) in table
    assert (listed["peak_bytes"], listed["trainable"]) == (peak, trained.trainable)
    seconds = result.seconds["total"]
    assert f"seconds      {format_seconds(seconds)}," in terminal and f"| seconds, total | {seconds:.0f} |" in card.text
    assert listed["seconds"] == seconds and format_seconds(seconds) in table


def test_what_cannot_be_pushed_is_refused(run, tmp_path):
    with pytest.raises(UsageError, match="is not the name of a repository"):
        push(run, "a/b/c")
    with pytest.raises(UsageError, match="neither a run nor a folder"):
        push(tmp_path, "me/mine")
    assert json.loads((run / "result.json").read_text())["status"] == "finished"


def test_scores_that_changed_are_in_no_card(run, tmp_path):
    scores = run / "scores.json"
    kept = scores.read_bytes()
    scores.write_bytes(kept.replace(b"1", b"2", 1))
    try:
        for make in (
            lambda: push(run, "me/mine", dry_run=True),
            lambda: merge(run, tmp_path / "merged", MergeOptions(rows=0)),
            lambda: export(run, tmp_path / "out", "peft"),
        ):
            with pytest.raises(StorageError, match=r"scores\.json: is damaged"):
                make()
    finally:
        scores.write_bytes(kept)
