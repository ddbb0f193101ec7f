"""Tiny configurations of every model family that the methods support, built without any file."""

from __future__ import annotations

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 67}
GATED = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
CONFIGS = {
    "llama": GATED,
    "qwen2": GATED,
    "mistral": GATED,
    "gemma": {**GATED, "head_dim": 12},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 67},
    "gpt_neox": {**SIZES, "intermediate_size": 48, "max_position_embeddings": 64},
    "opt": {**SIZES, "ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
    "phi": {**SIZES, "intermediate_size": 48, "max_position_embeddings": 64},
    "bert": {**SIZES, "intermediate_size": 48, "max_position_embeddings": 64},
    "roberta": {**SIZES, "intermediate_size": 48, "max_position_embeddings": 66},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 67},
}
ENCODERS = ("bert", "roberta", "distilbert")
DECODERS = tuple(name for name in CONFIGS if name not in ENCODERS)
CLASSIFIERS = tuple(CONFIGS)


def tiny_config(family: str, **changes):
    return AutoConfig.for_model(family, **{**CONFIGS[family], "pad_token_id": 0, "num_labels": 3, **changes})


def tiny_model(family: str, task: str = "causal-lm", seed: int = 0, **changes):
    """Return a tiny random model in evaluation mode; every bias is random too, so that it matters."""
    torch.manual_seed(seed)
    auto = AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
    model = auto.from_config(tiny_config(family, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tiny_batch(rows: int = 3, length: int = 9, seed: int = 1) -> dict[str, torch.Tensor]:
    """Return token ids with right padding of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 67, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, length - row :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def head_names(model) -> frozenset[str]:
    """Return the parameters of a classification head."""
    heads = ("score.", "classifier.", "pre_classifier.")
    return frozenset(name for name, _ in model.named_parameters() if name.startswith(heads))


transformers.logging.set_verbosity_error()
