"""CUDA's choices on the CPU: its types, its autocast, its branches of bitsandbytes; for tests that run recipes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from peftlab.world import dtypes
from peftlab.world.cuda_rules import cuda_rules

# Widths that blocks of 64 divide, so that no layer is the CPU's own (`UnalignedFourBitLinear`).
WIDTHS = {"vocab_size": 4096, "pad_token_id": 1}
MODELS = {
    "biases": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 64,
        **WIDTHS,
    },
    "none": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        **WIDTHS,
    },
}


@contextmanager
def simulated_cuda() -> Iterator[None]:
    """Choose on the CPU what a CUDA device would be given."""
    with mock.patch.object(dtypes, "default_type", lambda device: torch.bfloat16), cuda_rules():
        yield


def write_config(folder: Path, kind: str) -> Path:
    """Write the configuration of a tiny model with or without biases; its weights are random."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(MODELS[kind]), encoding="utf-8")
    return folder
