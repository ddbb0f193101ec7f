"""`--to peft`: PEFT alone gives the trained model. `compare-weights`: any two models, on a run's rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from peftlab.cli.app import run as run_command
from peftlab.errors import MethodError, ModelError, StorageError, UsageError
from peftlab.export.formats import export
from peftlab.export.gguf_model import write_model
from peftlab.export.weights import compare_weights
from peftlab.runs.merge import MergeOptions, merge
from tests.export.test_gguf import small, trained
from tests.runs.recipes import METHODS, shallow_model

IDS = torch.arange(5, 45)[None]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A run, and its result merged, as GGUF and for PEFT."""
    folder = tmp_path_factory.mktemp("weights")
    run = trained(folder, METHODS["lora"])
    merge(run, folder / "merged", MergeOptions(rows=0))
    export(run, folder / "gguf", "gguf", MergeOptions(dtype="float32", rows=0))
    return {name: folder / name for name in ("run", "merged", "gguf")}


def test_two_forms_of_one_model_agree_and_the_base_does_not(folders):
    names = {name: str(path) for name, path in folders.items()}
    for first, second in (("run", "merged"), ("merged", "gguf"), ("gguf", "run")):
        found = compare_weights(names[first], names[second])
        assert found.agreement.rms < 1e-3 and found.agreement.same_top == 1 and found.part == "evaluation"
    far = compare_weights("base", names["merged"])
    assert far.agreement.rms > 0.1 and far.agreement.loss_second < far.agreement.loss_first


def test_logits_that_are_compared_are_those_of_the_folders(folders, tmp_path):
    """The oracle is a folder whose every logit is one larger: the difference is 1, the distribution the same."""
    from peftlab.export import weights

    model = AutoModelForCausalLM.from_pretrained(folders["merged"])
    model.save_pretrained(tmp_path / "twin")
    plain = weights._open_folder

    def shifted(path, bench):
        model = plain(path, bench)
        if path == tmp_path / "twin":
            head = model.get_output_embeddings()
            head.register_forward_hook(lambda module, given, out: out + 1)
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "_open_folder", shifted)
        found = compare_weights(str(folders["merged"]), str(tmp_path / "twin"), run=folders["run"]).agreement
    assert found.rms == pytest.approx(1, abs=1e-4) and found.kl < 1e-6 and found.same_top == 1


def test_peft_alone_reads_the_export(folders, tmp_path):
    report = export(folders["run"], tmp_path / "out", "peft")
    assert report.agreement.rms <= 1e-5 and report.agreement.same_top == 1 and report.notes == []
    base = AutoModelForCausalLM.from_pretrained(shallow_model(), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    merged = AutoModelForCausalLM.from_pretrained(folders["merged"], dtype=torch.float32)
    assert (model(IDS).logits - merged(IDS).logits).abs().max() < 0.2  # the merged weights are bfloat16
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(shallow_model().resolve()) and not config["modules_to_save"]
    served = (
        f"vllm serve {shallow_model().resolve()} --enable-lora --max-lora-rank 8 --lora-modules run={tmp_path / 'out'}"
    )
    assert report.serve == {"vLLM": served}


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ({"type": "lora", "rank": 4, "dora": True}, "DoRA"),
        ({"type": "lora", "rank": 4, "unfreeze": ["*norm*"]}, "tensors beside A and B"),
        (METHODS["prefix"], "not a LoRA"),
    ],
)
def test_what_a_server_of_adapters_refuses_is_said(method, reason, tmp_path):
    report = export(trained(tmp_path, method, training={"steps": 1}), tmp_path / "out", "peft", MergeOptions(rows=4))
    assert report.serve == {} and reason in report.notes[0] and "peftlab merge" in report.notes[0]


def lack_a_tensor(folders, folder: Path) -> Path:
    shutil.copytree(folders["merged"], folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: one for name, one in tensors.items() if "layers.1.mlp.up_proj.weight" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_another_model(folders, folder: Path) -> Path:
    write_model(small(folder / "base", "llama"), folder / "other.gguf", "float32", "other")
    return folder / "other.gguf"


def write_a_deeper_one(folders, folder: Path) -> Path:
    """The run's sizes but for one more layer: what a reader that ignores the rest of a file takes for the run's."""
    config = AutoConfig.from_pretrained(folders["merged"])
    config.num_hidden_layers += 1
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(folders["merged"]).save_pretrained(folder / "base")
    write_model(folder / "base", folder / "deeper.gguf", "float32", "deeper")
    return folder / "deeper.gguf"


def write_no_gguf(folders, folder: Path) -> Path:
    folder.mkdir()
    (folder / "other.gguf").write_bytes(b"GGUF no more")
    return folder / "other.gguf"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lack_a_tensor, StorageError, "it lacks model.layers.1.mlp.up_proj.weight"),
        (
            write_another_model,
            ModelError,
            "it is of another model than the run's: its hidden_size is 64, the run's 192",
        ),
        (write_a_deeper_one, ModelError, "another model than the run's: its num_hidden_layers is 3, the run's 2"),
        (write_no_gguf, ModelError, "cannot be read"),
    ],
)
def test_what_is_no_form_of_the_model_is_refused_in_one_line(make, error, message, folders, tmp_path):
    other = make(folders, tmp_path / "other")
    with pytest.raises(error, match=message) as refused:
        compare_weights(str(other), "base", run=folders["run"], rows=2)
    assert "\n" not in str(refused.value) and str(other) in str(refused.value)


def test_an_adapter_of_a_base_in_one_file_says_that_vllm_serves_none_beside_it(tmp_path):
    write_model(small(tmp_path / "base", "llama"), tmp_path / "base.gguf", "float32", "base")
    run = trained(tmp_path, METHODS["lora"], model={"name": str(tmp_path / "base.gguf")}, training={"steps": 1})
    report = export(run, tmp_path / "out", "peft", MergeOptions(rows=4))
    assert (
        report.notes == ["the base is one file (base.gguf), beside which vLLM serves no adapter: merge the run"]
        and report.serve == {}
    )
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str((tmp_path / "base.gguf").resolve())


def test_what_has_no_form_in_peft_and_names_of_nothing_are_refused(folders, tmp_path, capsys):
    with pytest.raises(MethodError, match="BitFit is not a method of PEFT"):
        export(trained(tmp_path, METHODS["bitfit"], training={"steps": 1}), tmp_path / "out", "peft")
    with pytest.raises(UsageError, match="is not a run, a folder of transformers or a .gguf file"):
        compare_weights(str(folders["run"]), str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="name the run whose rows to use"):
        compare_weights("base", str(tmp_path))
    assert run_command(["compare-weights", str(folders["run"]), "base", "--json", "--rows", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["agreement"]["rows"] == 2
