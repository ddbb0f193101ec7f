"""`merge`: the folder that transformers alone reads has the trained model's outputs, or it is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from peftlab.cli.app import run as run_command
from peftlab.errors import MethodError, StorageError, UsageError
from peftlab.export.gguf_model import write_model
from peftlab.methods.lora import LoRA
from peftlab.models.stored_tensors import Safetensors
from peftlab.recipe.schema import Recipe
from peftlab.runs.directory import RunDirectory
from peftlab.runs.merge import MergeOptions, merge
from peftlab.runs.merge_shards import find_stale
from peftlab.runs.run import train

from ..export.test_gguf import small
from ..gauntlet.small import small_config
from ..sampling import sampled
from ..tasks.measuring import recipe_for, write_texts
from ..tasks.tagging import write_model as write_body
from .recipes import METHODS, shallow_model, shallow_sections

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
IDS = torch.arange(5, 25)[None]
CASES: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "rank": 4},
    "rslora with biases of norms": {"type": "lora", "rank": 4, "rslora": True, "unfreeze": ["*norm*"]},
    "dora": {"type": "lora", "rank": 4, "dora": True},
    "all biases": {"type": "lora", "rank": 4, "bias": "all"},
    "dora with the biases of the targets": {"type": "lora", "rank": 4, "dora": True, "bias": "lora-only"},
    "pissa": {"type": "lora", "rank": 4, "init": "pissa"},
    "olora": {"type": "lora", "rank": 4, "init": "olora"},
    "full": {"type": "full"},
    "last layer": {"type": "full", "layers": 1},
}


def trained(folder: Path, method: dict[str, Any], **sections: dict[str, Any]) -> Path:
    """Train a run in `folder`, with the weights alone, and return its directory."""
    kind = method["type"]
    recipe = shallow_sections(kind, folder / "run", learning_rate=1e-2) | {"method": method}
    recipe["evaluation"] = {"generation": {"examples": 0}}
    for name, values in sections.items():
        recipe[name] = recipe[name] | values
    train(Recipe.model_validate(recipe))
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("lora"), METHODS["lora"])


@pytest.fixture(scope="module")
def quantised(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("qlora"), METHODS["qlora"])


@pytest.fixture
def whole(monkeypatch):
    """No merging by shards: the whole model is built."""
    monkeypatch.setattr("peftlab.runs.merge.open_shards", lambda *_: None)


@pytest.mark.parametrize("case", sampled(list(CASES), ["full", "lora", "dora", "all biases"]))
def test_the_folder_has_the_trained_models_outputs(case, tmp_path, monkeypatch):
    run = trained(tmp_path, CASES[case])
    report = merge(run, tmp_path / "out")
    found = report.agreements["original"]
    assert report.effect > 0.1 and found.rms < 1e-4 * report.effect and found.same_top == 1
    assert found.loss_second == pytest.approx(found.loss_first, abs=1e-5)
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["tensors"] == report.tensors
    by_shards = load_file(tmp_path / "out" / "model.safetensors")
    monkeypatch.setattr("peftlab.runs.merge.open_shards", lambda *_: None)
    assert merge(run, tmp_path / "whole", MergeOptions(rows=0)).tensors == report.tensors
    torch.testing.assert_close(by_shards, load_file(tmp_path / "whole" / "model.safetensors"))


def test_what_was_trained_of_a_whole_model_is_counted(tmp_path):
    """A layer here has seven projections with biases and two norms; the other tensors are the base's."""
    run = trained(tmp_path, CASES["last layer"], training={"steps": 1})
    assert merge(run, tmp_path / "out", MergeOptions(rows=0)).tensors == {"trained": 16, "copied": 18}


def updated_by_hand(run: Path) -> dict[str, torch.Tensor]:
    """Return each updated weight by the paper's equation on the stored tensors: W + alpha/rank·B·A."""
    base = AutoModelForCausalLM.from_pretrained(shallow_model()).state_dict()
    adapter = load_file(run / "weights/adapter_model.safetensors")
    found = {}
    for name in (name for name in adapter if "lora_B" in name):
        target = name.removeprefix("base_model.model.").replace("lora_B.weight", "weight")
        found[target] = base[target] + 16 / 4 * adapter[name] @ adapter[name.replace("lora_B", "lora_A")]
    return found


def test_every_updated_weight_is_the_base_plus_its_update(run, tmp_path):
    report = merge(run, tmp_path / "out", MergeOptions(rows=0))
    merged, wanted = load_file(tmp_path / "out" / "model.safetensors"), updated_by_hand(run)
    torch.testing.assert_close({name: merged[name] for name in wanted}, wanted)
    assert report.tensors["merged"] == len(wanted) == 14 and report.agreements == {}


def test_a_hub_s_model_in_the_cache_is_merged_by_shards(tmp_path, monkeypatch):
    """In the cache a model is a folder of links to blobs, as the hub's own client writes it."""
    repository = tmp_path / "cache" / "models--owner--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    for folder in (repository / "refs", repository / "blobs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(snapshot.name)
    for file in shallow_model().iterdir():
        shutil.copy(file, repository / "blobs" / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs", file.name))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(repository.parent))
    run = trained(tmp_path, METHODS["lora"], model={"name": "owner/tiny"}, training={"steps": 1})
    monkeypatch.setattr("peftlab.runs.merge_bases.Merging.load", None)  # no model is built for it
    merge(run, tmp_path / "out", MergeOptions(rows=0))
    merged, wanted = load_file(tmp_path / "out" / "model.safetensors"), updated_by_hand(run)
    torch.testing.assert_close({name: merged[name] for name in wanted}, wanted)


def test_a_process_without_peftlab_and_peft_reads_the_folder(run, tmp_path):
    merge(run, tmp_path / "out")
    code = (
        "import sys; sys.modules['peft'] = sys.modules['peftlab'] = None\n"
        "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'out')!r})\n"
        f"AutoTokenizer.from_pretrained({str(tmp_path / 'out')!r})\n"
        "print(float(model(torch.arange(5, 25)[None]).logits.double().sum()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert found.returncode == 0, found.stderr
    here = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(IDS).logits.double().sum().item()
    assert float(found.stdout) == pytest.approx(float(here), rel=1e-5)


def test_answers_to_prompts_are_compared_by_the_recipe_s_metrics_of_texts(tmp_path):
    """The trained model's value is the one that the run measured after training, on as many prompts."""
    generation = {"max_new_tokens": 8, "examples": 0}
    folder = trained(
        tmp_path, {"type": "lora", "rank": 4}, evaluation={"metrics": ["loss", "rougeL"], "generation": generation}
    )
    report = merge(folder, tmp_path / "out")
    (found,) = report.agreements.values()
    after = RunDirectory.open(folder).read_result().metrics["after"]["rougeL"]
    change = found.metrics["rougeL"]
    assert change.first == pytest.approx(after) and change.second == pytest.approx(after) and change.change[0] == 0


def test_a_classifier_keeps_its_head_and_its_labels(tmp_path):
    data = {"train": "builtin:topics[train]", "evaluation": "builtin:topics[test]", "format": "classification"}
    folder = trained(
        tmp_path,
        METHODS["lora"],
        model={"task": "sequence-classification"},
        data=data,
    )
    report = merge(folder, tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    labels = json.loads((folder / "result.json").read_text())["data"]["labels"]
    assert [model.config.id2label[i] for i in range(7)] == labels
    assert report.agreements["original"].rms < 1e-4 * report.effect and report.tensors["trained"] == 1
    assert report.serve == {}  # servers of language models classify nothing


@pytest.mark.parametrize("rows", [0, 16])
def test_a_decoder_s_head_reads_the_last_token_before_the_tokenizer_s_padding(rows, tmp_path):
    """The base names no padding token. A batch, padded by transformers alone, has the outputs of each text alone."""
    base = write_body(tmp_path / "llama", "llama")
    config = json.loads((base / "config.json").read_text()) | {"pad_token_id": None, "eos_token_id": 3}
    (base / "config.json").write_text(json.dumps(config))
    for part, seed in (("train", 1), ("evaluation", 2)):
        write_texts(tmp_path / f"{part}.jsonl", 24, seed)
    run = tmp_path / "run"
    train(recipe_for("regression", tmp_path, {"type": "full"}, "run", "llama"))
    merge(run, tmp_path / "out", MergeOptions(rows=rows))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    texts = ["open", "the file is OSError", "returns a Path or parse_args the open"]
    with torch.no_grad():
        together = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_the_command_ends_with_how_the_folder_is_served(run, tmp_path, capfd):
    out = tmp_path / "my model"
    assert run_command(["merge", str(run), str(out), "--rows", "2"]) == 0
    shown = "".join(capfd.readouterr().out.split())  # a long path is folded
    assert shown.endswith("".join(f"vLLM: vllm serve '{out}' transformers: transformers serve '{out}'".split()))
    record = json.loads((out / "merge.json").read_text())
    assert record["serve"] == {"vLLM": f"vllm serve '{out}'", "transformers": f"transformers serve '{out}'"}


def test_both_bases_of_a_quantised_run_are_compared_and_the_nearer_one_is_kept(quantised, tmp_path):
    report = merge(quantised, tmp_path / "out")
    packed, plain = report.agreements["dequantised"], report.agreements["original"]
    assert report.base == "dequantised" and packed.rms < 1e-4 * report.effect < plain.rms
    wanted = merge(quantised, tmp_path / "plain", MergeOptions(base="original", tolerance=1.0))
    assert wanted.base == "original" and wanted.agreements["original"].rms == pytest.approx(plain.rms)


def test_another_type_is_written_and_its_rounding_measured(run, tmp_path):
    report = merge(run, tmp_path / "out", MergeOptions(dtype="bfloat16"))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert 0 < report.agreements["original"].rms <= report.limit
    with pytest.raises(StorageError, match="the merged model is not the trained one.*--dtype float32"):
        merge(run, tmp_path / "strict", MergeOptions(dtype="bfloat16", tolerance=1e-6))
    assert not (tmp_path / "strict").exists() and not list(tmp_path.glob(".strict*"))


def wrong_scale(model):
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= 1.1


def dropped_layer(model):
    name, module = next((n, m) for n, m in model.named_modules() if getattr(m, "lora_B", None))
    module.lora_B["default"].weight.data.zero_()


PLANTED = [(wrong_scale, "is not the trained one"), (dropped_layer, "lost what was trained")]


@pytest.mark.parametrize(("fault", "message"), PLANTED)
def test_a_planted_fault_is_refused_and_leaves_nothing(run, whole, tmp_path, monkeypatch, fault, message):
    from copy import deepcopy

    def spoiled(self, model, base=None):
        copied: Any = deepcopy(model)
        fault(copied)
        return copied.merge_and_unload()

    monkeypatch.setattr(LoRA, "merge", spoiled)
    with pytest.raises(StorageError, match=message):
        merge(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("factor", "message"), [(1.1, "is not the trained one"), (None, "lost what was trained")])
def test_a_planted_fault_in_a_shard_is_refused_and_leaves_nothing(run, tmp_path, monkeypatch, factor, message):
    right = LoRA.merge_tensor

    def spoiled(self, name, weight, stored, *, transposed):
        merged = right(self, name, weight, stored, transposed=transposed)
        if merged is None or "layers.0.mlp.up_proj" not in name:
            return merged
        return None if factor is None else weight + 40 * factor * (merged - weight)

    monkeypatch.setattr(LoRA, "merge_tensor", spoiled)
    with pytest.raises(StorageError, match=message):
        merge(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_large_model_is_written_in_several_files_in_the_memory_of_one(run, tmp_path, monkeypatch):
    merge(run, tmp_path / "one", MergeOptions(rows=0))
    monkeypatch.setattr("peftlab.runs.merge_shards.SHARD_BYTES", 200_000)
    merge(run, tmp_path / "many")
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2
    found = {name: one for file in files for name, one in load_file(tmp_path / "many" / file).items()}
    torch.testing.assert_close(found, load_file(tmp_path / "one" / "model.safetensors"), rtol=0, atol=0)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("family", ["llama", pytest.param("qwen2", marks=SLOW), pytest.param("gemma2", marks=SLOW)])
def test_a_base_in_gguf_is_merged_tensor_by_tensor_as_the_whole_model_is(family, tmp_path, monkeypatch):
    write_model(small(tmp_path / "base", family), tmp_path / "base.gguf", "q8_0", "base")
    run = trained(tmp_path, {"type": "lora", "rank": 4}, model={"name": str(tmp_path / "base.gguf")})
    report = merge(run, tmp_path / "out")
    assert report.agreements["original"].rms < 1e-3 * report.effect
    with monkeypatch.context() as patch:
        patch.setattr("peftlab.runs.merge_bases.Merging.load", None)  # no model is built for it
        assert merge(run, tmp_path / "alone", MergeOptions(rows=0)).tensors["merged"] == 14
    monkeypatch.setattr("peftlab.runs.merge.open_shards", lambda *_: None)
    assert merge(run, tmp_path / "whole", MergeOptions(rows=0)).tensors == report.tensors
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "whole"))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("out", "whole")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_merged_folder_is_quantised_again_and_compared(run, kind, tmp_path):
    report = merge(run, tmp_path / "out", MergeOptions(quantize=kind))
    assert report.quantized is not None and 0 < report.quantized.rms <= report.quantized_limit
    assert report.agreements["original"].rms < 1e-3 * report.effect
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["load_in_4bit"] == (kind == "nf4") and not config["load_in_4bit"] == config["load_in_8bit"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    kinds = {name.rpartition(".")[2]: type(one).__name__ for name, one in model.named_modules()}
    assert kinds["down_proj"] == {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[kind] and kinds["lm_head"] == "Linear"
    assert model.generate(IDS, max_new_tokens=2).shape[1] > IDS.shape[1]
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]


def test_what_quantising_breaks_is_refused_and_leaves_nothing(run, tmp_path):
    with pytest.raises(StorageError, match="the model in nf4 is not the trained one.*without --quantize"):
        merge(run, tmp_path / "out", MergeOptions(quantize="nf4", tolerance=1e-6))
    assert list(tmp_path.iterdir()) == []


def test_a_head_apart_from_its_embedding_is_refused_where_a_reload_ties_it(run, whole, tmp_path, monkeypatch):
    def untied(self, model, base=None):
        from copy import deepcopy

        merged = deepcopy(model).merge_and_unload()
        head = merged.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight + 0.1)
        return merged

    monkeypatch.setattr(LoRA, "merge", untied)
    with pytest.raises(StorageError):
        merge(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("head", "stored", "stale"),
    [
        (1.0, {EMBEDDING}, {HEAD}),
        (1.0, set(), set()),
        (1.0, {EMBEDDING, HEAD}, set()),
        (0.9, {EMBEDDING}, set()),
        (None, {EMBEDDING}, set()),
    ],
)
def test_the_copy_of_a_trained_tied_weight_is_found_where_a_reload_ties_it(head, stored, stale, tmp_path):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(small_config("llama", tie_word_embeddings=True))
    embedding = torch.randn(6, 4)
    tensors = {EMBEDDING: embedding} | ({} if head is None else {HEAD: head * embedding})
    save_file(tensors, tmp_path / "model.safetensors")
    assert find_stale(model, Safetensors(tmp_path), stored) == stale
    (tmp_path / "model.safetensors").unlink()
    save_file({HEAD: embedding}, tmp_path / "model.safetensors")
    assert find_stale(model, Safetensors(tmp_path), {EMBEDDING}) == {HEAD}


@pytest.mark.slow
@pytest.mark.parametrize("kept", [("embed", "head"), ("head",), ("embed", "other head")])
def test_a_base_with_two_names_of_a_tied_weight_is_merged_as_it_was_trained(kept, tmp_path):
    """Many folders have both names. A stale copy of the trained one would be read as a head of its own."""
    base = Path(shutil.copytree(shallow_model(), tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    embedding = weights.pop("model.embed_tokens.weight")
    if "embed" in kept:
        weights["model.embed_tokens.weight"] = embedding
    weights["lm_head.weight"] = embedding * 0.9 if "other head" in kept else embedding.clone()
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    method = {"type": "lora", "rank": 2, "unfreeze": ["*embed_tokens*"]}
    run = trained(tmp_path, method, model={"name": str(base)}, training={"steps": 2})
    report = merge(run, tmp_path / "out", MergeOptions(rows=4))
    assert report.agreements["original"].rms < 1e-3 * report.effect
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == ("other head" not in kept)


@pytest.mark.parametrize("method", ["adapters", "prefix"])
def test_a_method_that_cannot_be_merged_says_what_to_do(method, tmp_path, monkeypatch):
    folder = trained(tmp_path, METHODS[method])
    with pytest.raises(MethodError, match="cannot be merged.*folder `weights` with peftlab, or train LoRA"):
        merge(folder, tmp_path / "out")


def test_biases_that_the_plain_model_has_no_place_for_are_refused_before_anything_is_merged(tmp_path, monkeypatch):
    """A Mistral layer has seven projections and no bias; the shipped model has all of them."""
    base = str(small(tmp_path / "base", "mistral"))
    method = {"type": "bitfit", "add_missing": True}
    run = trained(tmp_path, method, model={"name": base}, training={"steps": 1})
    monkeypatch.setattr("peftlab.runs.merge.open_shards", None)
    with pytest.raises(MethodError, match=r"has no model\.layers\..*bias \(14 such.*folder `weights` with peftlab"):
        merge(run, tmp_path / "out", MergeOptions(rows=0))
    monkeypatch.undo()
    run = trained(tmp_path / "whole", method, training={"steps": 1})
    assert merge(run, tmp_path / "out", MergeOptions(rows=4)).agreements["original"].same_top == 1


def test_a_folder_of_others_is_never_replaced(run, tmp_path, capfd):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("x")
    for out, message in (
        (tmp_path / "mine", "contains files that are not a merged model"),
        (run / "weights" / "merged", "is inside the run"),
        (tmp_path / "mine" / "letter.txt", "is not a folder"),
    ):
        with pytest.raises(UsageError, match=message):
            merge(run, out, MergeOptions(rows=0, overwrite=True))
    merge(run, tmp_path / "out", MergeOptions(rows=0))
    with pytest.raises(UsageError, match="--overwrite replaces it"):
        merge(run, tmp_path / "out", MergeOptions(rows=0))
    with pytest.raises(UsageError, match="was trained on plain weights"):
        merge(run, tmp_path / "other", MergeOptions(base="dequantised"))
    assert run_command(["merge", str(run), str(tmp_path / "out"), "--overwrite"]) == 0
    shown = capfd.readouterr().out
    assert "passed: the difference of" in shown and max(map(len, shown.splitlines())) <= 80


def test_the_memory_is_said_before_anything_is_loaded_and_a_merge_without_a_comparison_is_the_way_out(
    run, tmp_path, capfd, monkeypatch
):
    assert run_command(["merge", str(run), str(tmp_path / "out"), "--json"]) == 0
    shown = capfd.readouterr()
    memory = json.loads(shown.out)["memory"]
    assert list(memory["predicted"]["phases"]) == list(memory["measured"]["phases"]) == ["load", "write", "compare"]
    assert shown.err.startswith("peftlab: merging takes about ") and shown.err.rstrip().endswith("of memory is free")
    monkeypatch.setattr("peftlab.runs.merge_memory.free_host_bytes", lambda: 2**20)
    assert run_command(["merge", str(run), str(tmp_path / "other"), "--rows", "2"]) == 0
    shown = capfd.readouterr().err
    assert "but only 1.0 MiB of memory is free; --rows 0 compares nothing and takes" in shown


def test_a_base_that_has_changed_is_refused_whether_the_result_is_compared_or_not(tmp_path):
    shutil.copytree(shallow_model(), base := tmp_path / "base")
    run = trained(tmp_path, METHODS["lora"], model={"name": str(base)}, training={"steps": 1})
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    for rows in (0, 2):
        with pytest.raises(StorageError, match="was trained on .*base .fingerprint sha256:"):
            merge(run, tmp_path / "out", MergeOptions(rows=rows))
        assert not (tmp_path / "out").exists()


def test_a_base_that_is_gone_can_be_named(tmp_path, capsys):
    shutil.copytree(shallow_model(), base := tmp_path / "base")
    run = trained(tmp_path, METHODS["lora"], model={"name": str(base)}, training={"steps": 1})
    base.rename(tmp_path / "moved")
    assert run_command(["merge", str(run), str(tmp_path / "out"), "--rows", "2"]) == 3
    assert "no such file or folder" in (shown := capsys.readouterr().err) and "add model.name=PATH" in shown
    named = f"model.name={tmp_path / 'moved'}"
    assert run_command(["merge", str(run), str(tmp_path / "out"), named, "--rows", "2"]) == 0
