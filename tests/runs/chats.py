"""A base whose end-of-text token is not what ends a turn, as base models with a chat template are, and its chats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.runs.recipes import shallow_model

TEMPLATE = (
    "{% for m in messages %}[|{{ m.role }}|]\n{{ m.content }}<|turn|>\n{% endfor %}"
    "{% if tools %}tools: {{ tools | map(attribute='name') | join(' ') }}\n{% endif %}"
    "{% if add_generation_prompt %}[|assistant|]\n{{ opening or '' }}{% endif %}"
)
WORDS = ("north", "south", "east", "west")


def write_base(folder: Path) -> Path:
    """Write the shallow model with a chat template whose turns end in a token that is no end to the model."""
    model, tokenizer = (one.from_pretrained(shallow_model()) for one in (AutoModelForCausalLM, AutoTokenizer))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    model.resize_token_embeddings(len(tokenizer))
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_chats(path: Path) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"walk {word}"}, {"role": "assistant", "content": f"going {word}"}]}
        for word in WORDS
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def chat_sections(folder: Path, **generation: Any) -> dict[str, Any]:
    """Return a recipe that learns the chats by heart; its files are in `folder`."""
    chats = str(write_chats(folder / "chats.jsonl"))
    return {
        "model": {"name": str(write_base(folder / "base"))},
        "method": {"type": "lora", "rank": 8, "unfreeze": ["embed_tokens"]},
        "data": {"train": chats, "evaluation": chats, "format": "chat", "max_length": 64},
        "training": {"steps": 60, "batch_size": 4, "learning_rate": 5e-3},
        "evaluation": {
            "metrics": ["loss", "exact_match", "bleu"],
            "generation": {"max_new_tokens": 16, "examples": 1, **generation},
        },
        "run": {"output": str(folder / "run"), "device": "cpu", "plan": "off"},
    }
