"""Sizes of ten published models, from MiniLM to Llama 3.1 70B, without weights."""

from __future__ import annotations

from functools import cache

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from peftlab.parameters.shape import shape_of
from peftlab.shapes import ModelShape
from tests.methods.tiny import head_names

BERT = {"vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2}
ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
GPT2 = {"vocab_size": 50257, "n_positions": 1024}
LLAMA3 = {"vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 8192, "tie_word_embeddings": False}


def sizes(width: int, inner: int, layers: int, heads: int) -> dict[str, int]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return dict(zip(names, (width, inner, layers, heads), strict=True))


# name: (family, whether it classifies, sizes)
MODELS = {
    "all-MiniLM-L6": ("bert", True, {**BERT, **sizes(384, 1536, 6, 12)}),
    "BERT-base": ("bert", True, {**BERT, **sizes(768, 3072, 12, 12)}),
    "RoBERTa-base": ("roberta", True, {**ROBERTA, **sizes(768, 3072, 12, 12)}),
    "SmolLM2-135M": (
        "llama",
        False,
        {
            **sizes(576, 1536, 30, 9),
            "vocab_size": 49152,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "GPT-2 medium": ("gpt2", False, {**GPT2, "n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "Qwen2-0.5B": (
        "qwen2",
        False,
        {
            **sizes(896, 4864, 24, 14),
            "vocab_size": 151936,
            "num_key_value_heads": 2,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
        },
    ),
    "Pythia-1.4B": (
        "gpt_neox",
        False,
        {**sizes(2048, 8192, 24, 16), "vocab_size": 50304, "max_position_embeddings": 2048},
    ),
    "Phi-2": ("phi", False, {**sizes(2560, 10240, 32, 32), "vocab_size": 51200, "max_position_embeddings": 2048}),
    "Llama 3 8B": ("llama", False, {**LLAMA3, **sizes(4096, 14336, 32, 32)}),
    "Llama 3.1 70B": ("llama", False, {**LLAMA3, **sizes(8192, 28672, 80, 64), "max_position_embeddings": 131072}),
}


@cache
def published_shape(name: str) -> ModelShape:
    """Return the shape of one of `MODELS`; a classifier has a new head of seven classes."""
    family, classifies, settings = MODELS[name]
    auto = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(AutoConfig.for_model(family, **settings, **({"num_labels": 7} if classifies else {})))
    task = "sequence-classification" if classifies else "causal-lm"
    return shape_of(model, head_names(model) if classifies else frozenset(), task)
