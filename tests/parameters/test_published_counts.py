"""Published parameter counts, reproduced exactly from sizes on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from peftlab.parameters.report import parameter_report
from peftlab.parameters.shape import shape_of
from tests.parameters import vision

GPT2 = {"vocab_size": 50257, "n_positions": 1024}
BERT = {"vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2}
LLAMA = {"vocab_size": 128256, "num_key_value_heads": 8, "tie_word_embeddings": False}


def gpt2(width: int, layers: int, heads: int):
    return ("gpt2", AutoModelForCausalLM, {**GPT2, "n_embd": width, "n_layer": layers, "n_head": heads})


def bert(width: int, layers: int, heads: int):
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return ("bert", AutoModel, {**BERT, **sizes, "intermediate_size": 4 * width})


def llama(width: int, intermediate: int, layers: int, heads: int):
    sizes = {"hidden_size": width, "intermediate_size": intermediate, "num_hidden_layers": layers}
    return ("llama", AutoModelForCausalLM, {**LLAMA, **sizes, "num_attention_heads": heads})


ROBERTA_BASE = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
MIXTRAL_8X22B = {
    "vocab_size": 32000,
    "hidden_size": 6144,
    "intermediate_size": 16384,
    "num_hidden_layers": 56,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}
MODELS = {
    "GPT-2 medium, 355M": (gpt2(1024, 24, 16), 354_823_168),
    "GPT-2 large, 774M": (gpt2(1280, 36, 20), 774_030_080),
    "GPT-2 XL, 1.5B": (gpt2(1600, 48, 25), 1_557_611_200),
    "BERT-base, 110M": (bert(768, 12, 12), 109_482_240),
    "BERT-large, 340M": (bert(1024, 24, 16), 335_141_888),
    "RoBERTa-base, 125M": (("roberta", AutoModel, ROBERTA_BASE), 124_645_632),
    "Llama 3 8B": (llama(4096, 14336, 32, 32), 8_030_261_248),
    "Llama 3.1 405B": (llama(16384, 53248, 126, 128), 405_853_388_800),
    "Mixtral 8x22B": (("mixtral", AutoModelForCausalLM, MIXTRAL_8X22B), 140_620_634_112),
}
NETWORKS = {
    "LeNet-5, 60 thousand": (vision.lenet5, 61_706),
    "AlexNet, 60M": (vision.alexnet, 60_965_224),
    "VGG-16, 138M": (vision.vgg16, 138_357_544),
    "ResNet-50, 25.6M": (vision.resnet50, 25_557_032),
    "logistic regression on MNIST": (lambda: nn.Linear(784, 10), 7_850),
}
LAYERS = {
    "dense with bias": (lambda: nn.Linear(768, 3072), 2_362_368),
    "GPT-2's transposed dense": (lambda: Conv1D(3072, 768), 2_362_368),
    "convolution": (lambda: nn.Conv2d(64, 128, 3), 73_856),
    "embedding": (lambda: nn.Embedding(50_257, 768), 38_597_376),
    "layer norm": (lambda: nn.LayerNorm(768), 1_536),
    "multi-head attention": (lambda: nn.MultiheadAttention(768, 12), 2_362_368),
    "feed-forward": (lambda: nn.Sequential(nn.Linear(768, 3072), nn.Linear(3072, 768)), 4_722_432),
}


def build(family, auto, sizes):
    with torch.device("meta"):
        return auto.from_config(AutoConfig.for_model(family, **sizes))


def assert_rows_add_up(report):
    for rows in (report.kinds, report.layers):
        assert sum(row.total for row in rows) == report.total
        assert sum(row.trainable for row in rows) == report.trainable


@pytest.mark.parametrize("name", MODELS)
def test_language_model_has_its_published_count(name):
    (family, auto, sizes), published = MODELS[name]
    model = build(family, auto, sizes)
    report = parameter_report(model)
    assert report.total == published == shape_of(model).total
    assert_rows_add_up(report)


@pytest.mark.parametrize("name", [*NETWORKS, *LAYERS])
def test_network_or_layer_has_its_published_count(name):
    make, published = {**NETWORKS, **LAYERS}[name]
    with torch.device("meta"):
        report = parameter_report(make())
    assert report.total == report.trainable == published
    assert_rows_add_up(report)


def test_mixtral_uses_39_billion_parameters_for_a_token():
    (family, auto, sizes), total = MODELS["Mixtral 8x22B"]
    report = parameter_report(build(family, auto, sizes))
    # Six of eight experts idle: 56 layers, three matrices of 6144 × 16384 in each expert.
    assert report.active == total - 6 * 56 * 3 * 6144 * 16384 == 39_152_031_744
    assert report.active < report.total


def test_gpt2_counts_by_kind_as_by_hand():
    (family, auto, sizes), _ = MODELS["GPT-2 medium, 355M"]
    width, layers = 1024, 24
    kinds = {row.name: row.total for row in parameter_report(build(family, auto, sizes)).kinds}
    assert kinds == {
        "attention": layers * 4 * width * width,
        "feed-forward": layers * 8 * width * width,
        "norm": (2 * layers + 1) * 2 * width,
        "bias": layers * (3 + 1 + 4 + 1) * width,
        "embedding": (50257 + 1024) * width,
    }


def test_last_two_layers_of_gpt2_medium_have_25_19_million():
    (family, auto, sizes), _ = MODELS["GPT-2 medium, 355M"]
    rows = {row.name: row.total for row in parameter_report(build(family, auto, sizes)).layers}
    assert rows["layers.22"] + rows["layers.23"] == 25_192_448


def test_vision_kinds_follow_the_layer_type():
    with torch.device("meta"):
        kinds = {row.name: row.total for row in parameter_report(vision.resnet50()).kinds}
    assert kinds == {"convolution": 23_454_912, "norm": 53_120, "head": 2048 * 1000 + 1000}
