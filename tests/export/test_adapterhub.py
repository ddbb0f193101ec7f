"""`--to adapters`: AdapterHub's library computes what was trained, or the export is refused in one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig

from peftlab.errors import MethodError
from peftlab.export.adapterhub import configure, write_adapters
from peftlab.export.formats import export
from peftlab.methods import Adapters, LoRA
from peftlab.runs.merge import MergeOptions
from tests.export.peers import needs, run_peer
from tests.export.test_gguf import trained
from tests.methods.tiny import CONFIGS, head_names, tiny_model
from tests.runs.recipes import METHODS

CLASSIFY = "sequence-classification"
IDS = torch.arange(3, 24).reshape(3, 7)


def adapted(model: Any, method: Adapters) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return a model with adapters that change its outputs, and the tensors of its saved copy."""
    torch.manual_seed(1)
    model = method.apply(model, frozenset(head_names(model))).eval()
    stored = method.stored_tensors(model)
    for name, tensor in stored.items():
        tensor.data.normal_(std=0.3 if ".adapter." in name else 0.5)
    return model, {name: tensor.detach().clone() for name, tensor in stored.items()}


def test_names_and_settings_are_that_library_s(tmp_path):
    """By hand, as `save_adapter` of adapters 1.3.0 names them for BertForSequenceClassification."""
    model, stored = adapted(tiny_model("bert", CLASSIFY), Adapters(bottleneck=4, activation="silu"))
    counts = write_adapters(stored, model, Adapters(bottleneck=4, activation="silu"), tmp_path, "my run.1")
    found = load_file(tmp_path / "adapter.safetensors")
    layers = [f"bert.encoder.layer.{layer}.{place}" for layer in (0, 1) for place in ("attention.output", "output")]
    ends = ("adapter_down.0.weight", "adapter_down.0.bias", "adapter_up.weight", "adapter_up.bias")
    assert set(found) == {f"{layer}.adapters.my_run_1.{end}" for layer in layers for end in ends}
    down = "bert.encoder.layer.1.attention.output.adapters.my_run_1.adapter_down.0.weight"
    assert found[down].equal(stored["bert.encoder.layer.1.attention.output.dropout.adapter.down.weight"])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["name"], config["model_class"], config["hidden_size"]) == (
        "my_run_1",
        "BertForSequenceClassification",
        32,
    )
    wanted = {"mh_adapter": True, "output_adapter": True, "cross_adapter": False, "reduction_factor": 8.0}
    wanted |= {"non_linearity": "silu", "is_parallel": False, "original_ln_before": False, "scaling": 1.0}
    assert wanted.items() <= config["config"].items()
    assert set(load_file(tmp_path / "model_head.safetensors")) == {"classifier.weight", "classifier.bias"}
    assert counts == {"of adapters": 16, "of the head": 2}


@pytest.mark.parametrize("width", [1, 3, 5, 7, 31, 32, 48, 100])
def test_the_library_s_division_gives_the_width(width):
    """adapters/methods/bottleneck.py takes int(hidden_size // reduction_factor)."""
    config = AutoConfig.for_model("bert", hidden_size=32)
    assert int(32 // configure(Adapters(bottleneck=width), config, width)["reduction_factor"]) == width


@pytest.mark.parametrize(
    ("family", "method", "message"),
    [
        ("llama", Adapters(placement="parallel"), "before the norm of the feed-forward"),
        ("qwen2", Adapters(), "it has no adapters in qwen2 models; it has them in bart"),
        ("llama", Adapters(modules=("*.self_attn",)), "method.modules puts them where it has none"),
        ("llama", Adapters(train_norms=True), "this run trained .*norm.weight too"),
        ("llama", LoRA(rank=2), "LoRA has no bottleneck adapters; --to peft"),
    ],
)
def test_what_that_library_computes_otherwise_is_refused_in_one_line(family, method, message, tmp_path):
    model = method.apply(tiny_model(family))
    with pytest.raises(MethodError, match=message) as caught:
        write_adapters(method.stored_tensors(model), model, method, tmp_path, "run")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_a_run_is_exported_with_its_head_its_labels_and_how_to_load_it(tmp_path):
    data = {"train": "builtin:topics[train]", "evaluation": "builtin:topics[test]", "format": "classification"}
    run = trained(tmp_path, METHODS["adapters"], model={"task": CLASSIFY}, data=data, training={"steps": 1})
    report = export(run, tmp_path / "out", "adapters")
    head = json.loads((tmp_path / "out" / "head_config.json").read_text())
    assert head["model_class"] == "LlamaForSequenceClassification" and head["num_labels"] == 7
    assert {"adapter.safetensors", "model_head.safetensors", "tokenizer.json"} <= report.files.keys()
    assert "use_safetensors=True" in (tmp_path / "out" / "README.md").read_text()
    assert report.agreement is None and "not compared" in report.notes[0]
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 has no TokenizersBackend


READ = """
import sys, torch, transformers, adapters
from pathlib import Path
from safetensors.torch import save_file
logits, ids = {}, torch.arange(3, 24).reshape(3, 7)
for case in sorted(Path(sys.argv[1]).iterdir()):
    auto = getattr(transformers, (case / "auto").read_text())
    model = auto.from_pretrained(case / "base", attn_implementation="eager")
    adapters.init(model)
    model.load_adapter(str(case / "adapter"), set_active=True, use_safetensors=True)
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    logits[case.name] = model.eval()(input_ids=ids, **more).logits.detach().contiguous()
save_file(logits, sys.argv[2])
"""
SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 67, "max_position_embeddings": 64,
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "xlm-roberta": CONFIGS["roberta"],
    "electra": {**CONFIGS["bert"], "embedding_size": 32},
    "bart": SEQ2SEQ,
    "mbart": SEQ2SEQ,
    "t5": {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 48, "vocab_size": 67},
}
READ_BY_ADAPTERS = [
    *((family, "houlsby") for family in ("bert", "roberta", "xlm-roberta", "electra", "distilbert", "bart")),
    *((family, "houlsby") for family in ("gpt2", "llama", "mistral", "mbart", "t5")),
    *((family, "parallel") for family in ("bert", "roberta", "electra", "distilbert", "bart")),
    *((family, "pfeiffer") for family in ("bert", "gpt2", "llama", "t5")),
]


def family_model(family: str) -> tuple[str, Any]:
    """Return the auto class and a tiny model of a family, in which every bias and norm is random."""
    if family in CONFIGS and family in ("gpt2", "llama", "mistral"):
        return "AutoModelForCausalLM", tiny_model(family)
    decodes = family in ("bart", "mbart", "t5")
    auto = "AutoModelForSeq2SeqLM" if decodes else "AutoModelForSequenceClassification"
    torch.manual_seed(0)
    sizes = MORE.get(family) or CONFIGS[family]
    config = AutoConfig.for_model(family, **sizes, **({} if decodes else {"num_labels": 3}))
    model = getattr(transformers, auto).from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return auto, model


@pytest.mark.slow
@needs("adapters")
def test_that_library_computes_the_same_outputs(tmp_path):
    """The oracle is the library itself on equal base weights, with its own transformers 4."""
    wanted, plain = {}, {}
    for family, placement in READ_BY_ADAPTERS:
        folder = tmp_path / "cases" / f"{family} {placement}"
        auto, model = family_model(family)
        model.save_pretrained(folder / "base")
        (folder / "auto").write_text(auto)
        (folder / "adapter").mkdir()
        more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
        with torch.no_grad():
            plain[folder.name] = model(input_ids=IDS, **more).logits
        method = Adapters(bottleneck=5, placement=placement, activation="gelu" if family != "bert" else "tanh")
        model, stored = adapted(model, method)
        write_adapters(stored, model, method, folder / "adapter", "run")
        with torch.no_grad():
            wanted[folder.name] = model(input_ids=IDS, **more).logits
    run_peer("adapters", READ, str(tmp_path / "cases"), str(tmp_path / "found"), folder=tmp_path)
    found = load_file(tmp_path / "found")
    for name, logits in wanted.items():
        assert (logits - plain[name]).abs().max() > 0.05, name
        torch.testing.assert_close(found[name], logits, atol=2e-5, rtol=2e-5, msg=lambda text, n=name: f"{n}: {text}")
    assert len(found) == len(READ_BY_ADAPTERS)


READ_TOKENIZER = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
found = [tokenizer(text)["input_ids"] for text in json.loads(sys.argv[2])]
print(json.dumps([found, len(tokenizer), tokenizer.all_special_tokens, tokenizer.pad_token_id, tokenizer.eos_token_id]))
"""
TEXTS = ["def add(a, b):\n    return a", " Two  spaces, ünïcode ", "A<extra>B<|endoftext|>", ""]


@pytest.mark.slow
@needs("adapters")
def test_transformers_4_reads_the_exported_tokenizer(tmp_path):
    """The oracle is the tokenizer of the run in this environment's transformers 5."""
    run = trained(tmp_path, METHODS["adapters"], training={"steps": 1})
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "weights")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    tokenizer.save_pretrained(run / "weights")
    export(run, tmp_path / "out", "adapters", MergeOptions(verify=False))
    printed = run_peer("adapters", READ_TOKENIZER, str(tmp_path / "out"), json.dumps(TEXTS), folder=tmp_path)
    found, size, special, *ids = json.loads(printed.splitlines()[-1])
    assert found == [tokenizer(text)["input_ids"] for text in TEXTS] and size == len(tokenizer)
    assert set(special) == set(tokenizer.all_special_tokens) and "<extra>" in special
    assert ids == [tokenizer.pad_token_id, tokenizer.eos_token_id]
