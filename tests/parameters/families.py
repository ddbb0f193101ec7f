"""Tiny configurations of every known family, as a `config.json` gives them."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}

DECODERS = {
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "gemma": {**GROUPED, "head_dim": 16},
    "gemma2": {**GROUPED, "head_dim": 8},
    "gemma3_text": {**GROUPED, "head_dim": 8},
    "phi": SMALL,
    "phi3": GROUPED,
    "mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**GROUPED, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 40},
    "gpt_neox": SMALL,
    "opt": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32},
}
ENCODERS = {
    "bert": SMALL,
    "roberta": SMALL,
    "xlm-roberta": SMALL,
    "electra": {**SMALL, "embedding_size": 16},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "vocab_size": 64, "pad_token_id": 0},
}
FAMILIES = {**DECODERS, **ENCODERS}
SIDES = {
    **{f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in {"attention_heads": 4}.items()},
    **{"encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "d_model": 32},
    **{"vocab_size": 64, "max_position_embeddings": 40, "pad_token_id": 0},
}
STACKS = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
STACKS |= {"vocab_size": 64, "pad_token_id": 0, "decoder_start_token_id": 0}
ENCODER_DECODERS = {
    "t5": STACKS,
    "mt5": {**STACKS, "feed_forward_proj": "gated-gelu"},
    **dict.fromkeys(("bart", "mbart", "marian", "pegasus", "m2m_100", "blenderbot"), SIDES),
}
UNKNOWN = {"stablelm": GROUPED}


def build(family: str, classify: bool | None = None, device: str = "cpu", **changes):
    """Return a tiny model: a decoder's language model or an encoder's classifier, unless another is asked for."""
    config = AutoConfig.for_model(family, **{**{**FAMILIES, **UNKNOWN}[family], **changes})
    classify = family in ENCODERS if classify is None else classify
    auto = AutoModelForSequenceClassification if classify else AutoModelForCausalLM
    with torch.device(device):
        return auto.from_config(config)
