"""Sizes of public models, from their own config.json: enough to plan, without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def decoder(
    kind: str, hidden: int, inner: int, layers: int, heads: int, keys: int, vocabulary: int, **others: Any
) -> dict[str, Any]:
    return {
        "model_type": kind.lower(), "architectures": [f"{kind}ForCausalLM"], "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": keys, "head_dim": hidden // heads, "vocab_size": vocabulary,
        "max_position_embeddings": 32768, "tie_word_embeddings": False,
    } | others  # fmt: skip


SHAPES = {
    "smollm2-135m": decoder("Llama", 576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True),
    "qwen2.5-0.5b": decoder("Qwen2", 896, 4864, 24, 14, 2, 151936, tie_word_embeddings=True),
    "llama-3.2-1b": decoder("Llama", 2048, 8192, 16, 32, 8, 128256, tie_word_embeddings=True),
    "llama-3.1-8b": decoder("Llama", 4096, 14336, 32, 32, 8, 128256),
    "mistral-7b": decoder("Mistral", 4096, 14336, 32, 32, 8, 32000),
    "roberta-base": {
        "model_type": "roberta", "architectures": ["RobertaForMaskedLM"], "hidden_size": 768,
        "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 50265,
        "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1,
    },
    "bloomz-560m": {
        "model_type": "bloom", "architectures": ["BloomForCausalLM"], "hidden_size": 1024, "n_layer": 24,
        "n_head": 16, "vocab_size": 250880, "seq_length": 2048,
    },
    "gpt2-medium": {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 1024, "n_layer": 24, "n_head": 16,
        "n_positions": 1024, "vocab_size": 50257,
    },
}  # fmt: skip


def write_shape(folder: Path, name: str) -> Path:
    """Return a folder that has a model's sizes, and no weights."""
    path = folder / name
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(SHAPES[name]))
    return path
