"""Tiny encoders with decoders, and a language to translate word by word: what runs of sequence-to-sequence train on."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from peftlab.recipe.schema import Recipe

WORDS = ["one", "two", "three", "four", "five", "six"]
OTHERS = ["un", "deux", "trois", "quatre", "cinq", "six6"]
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
FAMILIES: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"},
    "bart": {"encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
    "marian": {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
}
FLAT = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "max_position_embeddings": 32}
METHODS = {
    "full": {"type": "full"},
    "lora": {"type": "lora", "rank": 4},
    "qlora": {"type": "qlora", "rank": 4},
    "adapters": {"type": "adapters", "bottleneck": 8},
    "prefix": {"type": "prefix", "kind": "prompt", "length": 3},
    "bitfit": {"type": "bitfit"},
}


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words that closes each text with its end token."""
    vocabulary = {word: number for number, word in enumerate([PAD, END, UNKNOWN, *WORDS, *OTHERS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def write_family(folder: Path, family: str, **changes) -> Path:
    """Write a tiny model of random weights, and its tokenizer, with the family's own dropout."""
    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    sizes = FAMILIES[family] | ({} if family == "t5" else FLAT) | changes
    start = tokenizer.eos_token_id if family == "bart" else tokenizer.pad_token_id
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        decoder_start_token_id=start,
        forced_eos_token_id=None,
        **sizes,
    )
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_pairs(path: Path, count: int, seed: int) -> Path:
    random = Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            numbers = [random.randrange(6) for _ in range(random.randint(1, 5))]
            prompt, answer = " ".join(WORDS[i] for i in numbers), " ".join(OTHERS[i] for i in numbers)
            file.write(json.dumps({"prompt": prompt, "completion": answer}) + "\n")
    return path


def answering_recipe(folder: Path, family: str, method: dict[str, Any], output: str, **run) -> Recipe:
    """Return a recipe over the files in `folder`; ten steps of eight rows, a checkpoint every five."""
    return Recipe.model_validate(
        {
            "model": {"name": str(folder / family), "task": "sequence-to-sequence"},
            "method": method,
            "data": {
                "train": str(folder / "train.jsonl"),
                "evaluation": str(folder / "evaluation.jsonl"),
                "max_length": 16,
                "max_target_length": 12,
            },
            "training": {"steps": 10, "batch_size": 8, "learning_rate": 2e-2, "warmup": 2},
            "evaluation": {
                "metrics": ["loss", "perplexity", "exact_match", "bleu"],
                "generation": {"max_new_tokens": 8, "rows": 12},
            },
            "run": {"output": str(folder / output), "device": "cpu", "save_every": 5, **run},
        }
    )
