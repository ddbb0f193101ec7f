"""A tiny encoder, and sentences in which the word alone gives the tag: what runs of token classification train on."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from peftlab.recipe.schema import Recipe
from tests.tasks.tokenizers_of_words import train_wordpiece

METHODS = {
    "full": {"type": "full"},
    "lora": {"type": "lora", "rank": 4},
    "qlora": {"type": "qlora", "rank": 4},
    "adapters": {"type": "adapters", "bottleneck": 8},
    "prefix": {"type": "prefix", "length": 3},
    "bitfit": {"type": "bitfit"},
}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TAGS = {"open": "B-F", "parse_args": "B-F", "OSError": "B-E", "Path": "B-T", "standard": "B-T", "library": "I-T"}
OTHERS = ["the", "a", "returns", "or", "raises", "is", "file", "from", "reading"]


def write_model(folder: Path, family: str = "bert") -> Path:
    """Write a pretrained body without a head, and its tokenizer, with 10 % dropout."""
    tokenizer = train_wordpiece()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id, **SIZES
    )
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_sentences(path: Path, count: int, seed: int) -> Path:
    """Write random sentences in which each known word always has the same tag."""
    random = Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            words = [random.choice([*TAGS, *OTHERS]) for _ in range(random.randint(3, 9))]
            file.write(json.dumps({"words": words, "tags": [TAGS.get(word, "O") for word in words]}) + "\n")
    return path


def tagging_recipe(folder: Path, method: dict[str, Any], output: str, model: Path | None = None, **run) -> Recipe:
    """Return a recipe over the files in `folder`; six steps of eight rows, a checkpoint every three."""
    return Recipe.model_validate(
        {
            "model": {"name": str(model or folder / "bert"), "task": "token-classification"},
            "method": method,
            "data": {
                "train": str(folder / "train.jsonl"),
                "evaluation": str(folder / "evaluation.jsonl"),
                "format": "tokens",
                "max_length": 32,
            },
            "training": {"steps": 6, "batch_size": 8, "learning_rate": 1e-2, "warmup": 2},
            "evaluation": {"metrics": ["loss", "span_f1", "span_precision", "span_recall"]},
            "run": {"output": str(folder / output), "device": "cpu", "save_every": 3, "plan": "off", **run},
        }
    )
