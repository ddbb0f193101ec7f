"""Reports on wrapped, tied, quantised and partly trained models."""

from __future__ import annotations

import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from peftlab.models.quantize import quantize_
from peftlab.parameters.report import parameter_report
from peftlab.parameters.trainable import freeze_all, set_trainable
from tests.parameters.families import FAMILIES, GROUPED, build


def rows(report, of="kinds"):
    return {row.name: (row.total, row.trainable) for row in getattr(report, of)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_counted_whole_and_leaves_nothing_unexplained(family):
    model = build(family, device="meta")
    report = parameter_report(model)
    assert report.total == sum(parameter.numel() for parameter in model.parameters())
    assert sum(row.total for row in report.kinds) == sum(row.total for row in report.layers) == report.total
    assert {"attention", "feed-forward", "norm", "embedding"} <= set(rows(report)) and "other" not in rows(report)
    assert [row.name for row in report.layers] == ["layers.0", "layers.1", "outside"]
    assert report.layers[0].total == report.layers[1].total


def test_tied_embedding_counts_once_and_as_embedding():
    tied, untied = (parameter_report(build("llama", tie_word_embeddings=tie)) for tie in (True, False))
    assert untied.total - tied.total == 64 * 32
    assert "head" not in rows(tied) and rows(untied)["head"] == (64 * 32, 64 * 32)


def test_nothing_of_a_frozen_model_trains():
    model = build("gpt2")
    freeze_all(model)
    report = parameter_report(model)
    assert (report.trainable, report.fraction, report.stored_bytes) == (0, 0.0, 0)


def test_stored_bytes_are_those_of_the_trainable_tensors_or_of_all():
    model = build("bert").to(torch.bfloat16)
    set_trainable(model, {"classifier.weight", "classifier.bias"})
    model.classifier.float()
    trained = 2 * 32 + 2
    report = parameter_report(model)
    assert report.trainable == trained and report.stored_bytes == 4 * trained
    assert parameter_report(model, stored="all").stored_bytes == 2 * (report.total - trained) + 4 * trained


@pytest.mark.parametrize("dora", [False, True])
def test_lora_of_peft_is_counted_as_adapter_and_the_base_as_before(dora):
    base = rows(parameter_report(build("qwen2")))
    config = LoraConfig(r=2, target_modules=["q_proj"], use_dora=dora)
    report = parameter_report(get_peft_model(build("qwen2"), config))
    added = 2 * (2 * (32 + 32) + (32 if dora else 0))
    assert rows(report) == {**{kind: (total, 0) for kind, (total, _) in base.items()}, "adapter": (added, added)}
    assert rows(report, "layers")["layers.0"][1] == added // 2


def test_a_method_of_peft_that_peftlab_does_not_have_is_counted_as_adapter_in_its_layers():
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    report = parameter_report(get_peft_model(build("llama"), config))
    base = rows(parameter_report(build("llama")))
    added = report.total - sum(total for total, _ in base.values())
    assert added == report.trainable > 0
    assert rows(report) == {**{kind: (total, 0) for kind, (total, _) in base.items()}, "adapter": (added, added)}
    assert rows(report, "layers")["layers.1"][1] == added // 2


def test_prefix_of_peft_is_counted_as_adapter_outside_the_layers():
    config = PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    report = parameter_report(get_peft_model(build("llama"), config))
    added = 3 * 2 * 2 * 16
    assert rows(report)["adapter"] == (added, added)
    assert rows(report, "layers")["outside"][1] == report.trainable == added


def test_copy_that_peft_sets_aside_is_not_counted():
    plain = build("bert")
    wrapped = get_peft_model(build("bert"), LoraConfig(r=1, target_modules=["query"], task_type="SEQ_CLS"))
    report = parameter_report(wrapped)
    added = 2 * (32 + 32)
    assert report.total == parameter_report(plain).total + added
    assert report.trainable == added + 2 * 32 + 2
    assert rows(report)["head"] == (32 * 32 + 32 + 2 * 32 + 2, 2 * 32 + 2)


@pytest.mark.parametrize("base_format", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_quantised_weights_count_as_what_they_stand_for(family, base_format):
    plain = parameter_report(build(family))
    quantised = parameter_report(quantize_(build(family), base_format))
    assert {row.name: row.total for row in quantised.kinds} == {row.name: row.total for row in plain.kinds}
    assert quantised.total == plain.total and quantised.trainable < plain.trainable


@pytest.mark.parametrize("family, experts, used", [("mixtral", 4, 2), ("qwen3_moe", 4, 2)])
def test_active_count_leaves_out_idle_experts_only(family, experts, used):
    model = build(family)
    idle = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n) * (experts - used) // experts
    report = parameter_report(model)
    assert idle > 0 and report.active == report.total - idle


MIXTURES = {
    "aria_text": ({**GROUPED, "moe_num_experts": 4, "moe_topk": 1, "moe_num_shared_experts": 1}, 1),
    "gemma4_text": (
        {**GROUPED, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16,
         "head_dim": 8, "hidden_size_per_layer_input": 0},
        2,
    ),
    "dbrx": (
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 64, "max_seq_len": 40,
         "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
         "ffn_config": {"moe_num_experts": 4, "moe_top_k": 3, "ffn_hidden_size": 16, "hidden_size": 32}},
        3,
    ),
    "switch_transformers": (
        {"d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8, "vocab_size": 64, "num_experts": 4,
         "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
        1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", MIXTURES)
def test_every_name_of_the_experts_that_a_token_passes_is_read(family):
    fields, used = MIXTURES[family]
    kind = AutoModelForSeq2SeqLM if family == "switch_transformers" else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(AutoConfig.for_model(family, **fields))
    held = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    report = parameter_report(model)
    assert held and report.active == report.total - held * (4 - used) // 4


def test_dense_model_is_wholly_active():
    report = parameter_report(build("llama"))
    assert report.active == report.total


def test_plain_network_has_rows_too():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    model[1].weight.requires_grad_(False)
    assert rows(parameter_report(model)) == {
        "embedding": (20, 20),
        "feed-forward": (24, 0),
        "norm": (12, 12),
        "bias": (6, 6),
        "head": (14, 14),
    }
