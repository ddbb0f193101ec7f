"""Small configurations of every model type that transformers can build, made from each type's own defaults."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, PreTrainedConfig

import peftlab
from peftlab.family_traits import NEEDS_MORE
from peftlab.tasks import TASKS

VOCABULARY = 4096
"""That of `builtin:tiny`, whose tokenizer writes the rows."""

WIDTH, HEADS, KEY_HEADS, LAYERS, POSITIONS, EXPERTS = 32, 4, 2, 2, 256, 4
HEAD = WIDTH // HEADS

SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "decoder_vocab_size", "text_vocab_size"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "emb_dim", "true_hidden_size"), WIDTH),
    **dict.fromkeys(("embedding_size", "word_embed_proj_dim", "attention_hidden_size", "embedding_dim"), WIDTH),
    **dict.fromkeys(("input_embedding_size", "hidden_size_global", "lru_width", "hidden_size_per_layer_input"), WIDTH),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "hidden_dim", "ffn_hidden_size"), 2 * WIDTH),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_inner", "dff", "intermediate_size_mlp"), 2 * WIDTH),
    **dict.fromkeys(("expert_ffn_hidden_size", "moe_intermediate_size", "shared_expert_intermediate_size"), WIDTH),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "shared_intermediate_size"), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"), LAYERS),
    **dict.fromkeys(("decoder_layers", "num_decoder_layers", "num_encoder_layers", "num_blocks"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("decoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "kv_n_heads", "multi_query_group_num"), KEY_HEADS),
    **dict.fromkeys(("head_dim", "d_kv", "attention_head_dim", "kv_channels", "head_size", "d_head"), HEAD),
    **dict.fromkeys(("v_head_dim", "qk_nope_head_dim", "linear_key_head_dim", "linear_value_head_dim"), HEAD),
    **dict.fromkeys(("qk_rope_head_dim", "mamba_d_head", "mamba_head_dim", "mamba_headdim"), HEAD),
    **dict.fromkeys(("swa_head_dim", "swa_v_head_dim", "global_head_dim", "index_head_dim", "qk_head_dim"), HEAD),
    **dict.fromkeys(("linear_num_key_heads",), KEY_HEADS),
    **dict.fromkeys(("linear_num_value_heads", "index_n_heads"), HEADS),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"), POSITIONS),
    **dict.fromkeys(("context_length", "max_length", "seq_length", "block_size"), POSITIONS),
    **dict.fromkeys(("max_source_positions", "max_target_positions"), POSITIONS),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "n_group", "topk_group"), 1),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), HEADS),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "mamba_d_ssm"), 8),
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "o_lora_rank": 16,
    "o_groups": 2,
    "index_topk": 64,
    "mamba_n_groups": 1,
    "n_groups": 1,
    "mamba_chunk_size": 16,
    "chunk_size": 16,
    "image_size": 28,
    "patch_size": 14,
    "num_mel_bins": 16,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "decoder_start_token_id": 0,
    "use_mamba_kernels": False,
    "vocab_size_per_layer_input": VOCABULARY,
}
"""Sizes by the names that configurations have for them; a name that a type lacks is ignored."""

OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": HEADS, "mamba_d_head": 2 * WIDTH // HEADS},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {"attn_config": {"kv_n_heads": KEY_HEADS, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "deberta": {"pooler_hidden_size": WIDTH},
    "deberta-v2": {"pooler_hidden_size": WIDTH},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lilt": {"channel_shrink_ratio": 2, "hidden_size": 48, "intermediate_size": 64},
    "mobilebert": {"true_hidden_size": WIDTH, "intra_bottleneck_size": WIDTH},
    "qwen4_exp_text": {
        "indexer_n_heads": HEADS,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
        "hc_lowrank": 8,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "t5": {"decoder_start_token_id": 0},
    "blt": {"encoder_hash_byte_group_vocab": 64, "num_hidden_layers": LAYERS},  # its cache asks for them
    "codegen": {"rotary_dim": HEAD},
    "gptj": {"rotary_dim": HEAD},
    "dots3_note_audio_encoder": {
        **dict.fromkeys(("adapter_input_size", "adapter_out_dim"), WIDTH),
        "downsample_hidden_size": 8,
    },
    "dots3_note_text": {
        **dict.fromkeys(("num_key_value_heads", "swa_num_attention_heads", "swa_num_key_value_heads"), HEADS),
        **dict.fromkeys(("swa_q_lora_rank", "swa_kv_lora_rank", "swa_head_dim"), 2 * HEAD),
        **dict.fromkeys(("swa_qk_nope_head_dim", "swa_v_head_dim"), HEAD),
        "shared_experts_intermediate_size": WIDTH,
    },
    "dots3_note_vision_encoder": {
        **dict.fromkeys(("adapter_in_dim", "adapter_out_dim"), WIDTH),
        "mlp_layer_types": ["dense", "sparse"],
    },
    "esmc": {"num_key_value_heads": HEADS},
    "falcon_h1": {"mamba_d_ssm": WIDTH, "mamba_d_head": HEAD},
    "gemma4_assistant": {
        "text_config": {
            "model_type": "gemma4_text",
            **dict.fromkeys(("hidden_size_per_layer_input", "vocab_size_per_layer_input"), 0),
        }
    },
    # A tower of the package timm, of which this is its smallest.
    "gemma3n": {"vision_config": {"model_type": "gemma3n_vision", "architecture": "test_resnet"}},
    "gemma3n_text": {"activation_sparsity_pattern": [0.0, 0.0], "num_kv_shared_layers": 0, "altup_num_inputs": 2},
    "gemma4_unified": {"image_token_id": 4095, "video_token_id": 4094, "audio_token_id": 4093},
    "gpt_bigcode": {"num_key_value_heads": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 8},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": HEADS,
        "mamba_d_head": 2 * WIDTH // HEADS,
    },
    "hunyuan_v1_dense": {"head_dim": HEAD},
    "hunyuan_v1_moe": {"head_dim": HEAD},
    "hrm_text": {
        "num_layers_per_stack": None,
        "num_hidden_layers": 1,
        "H_cycles": 1,
        "L_cycles": 1,
        "L_bp_cycles": [1],
    },
    "kimi_linear": {"linear_head_dim": HEAD},
    "laguna": {"num_attention_heads_per_layer": [HEADS, HEADS]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "layoutlmv3": {"hidden_size": 48, "coordinate_size": 8, "shape_size": 8},
    "longcat_flash": {"qk_head_dim": 2 * HEAD, "head_dim": HEAD, "num_layers": 1, "num_hidden_layers": 2},
    "luke": {"entity_vocab_size": 64, "entity_emb_size": WIDTH},
    "mamba2": {"num_heads": HEADS, "head_dim": 2 * WIDTH // HEADS, "n_groups": 1},
    "mistral4": {"qk_head_dim": 2 * HEAD, "head_dim": 2 * HEAD},
    "ministral": {"head_dim": HEAD},
    "perceiver": {"d_latents": WIDTH, "num_latents": 16, "qk_channels": WIDTH, "v_channels": WIDTH},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds_dim": [8, 24],
        "axial_pos_shape": [16, 16],
        "attn_layers": ["local", "lsh"],
        "num_buckets": 4,
        "local_attn_chunk_length": 16,
        "lsh_attn_chunk_length": 16,
    },
    "prophetnet": {"pad_token_id": 0},  # its positions count from it: only 0 generates in transformers
    "rembert": {"output_embedding_size": WIDTH},
    "roc_bert": {
        "shape_vocab_size": VOCABULARY,
        "shape_embed_dim": WIDTH,
        "pronunciation_vocab_size": VOCABULARY,
        "pronunciation_embed_dim": WIDTH,
    },
    # Its heads are as wide as its width allows in whole 64s.
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "chunk_size": 64},
    "xmod": {"default_language": "en_XX"},
    "zamba": {  # the attention of one hybrid layer is shared with another
        "layer_types": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
        "attention_hidden_size": 2 * WIDTH,
        "attention_head_dim": 2 * HEAD,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"],
        **dict.fromkeys(("attention_hidden_size", "intermediate_size"), 2 * WIDTH),
        "attention_head_dim": 2 * HEAD,
        "num_key_value_heads": HEADS,
        "mamba_headdim": 2 * HEAD,
        "adapter_rank": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""What a type needs beside `SIZES`."""


def small_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """Return a configuration of a few thousand parameters beside the embeddings.

    Skips the test where this version of transformers does not have the family.
    """
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    plain = AutoConfig.for_model(model_type).to_dict()
    return AutoConfig.for_model(model_type, **(_shrink(plain, model_type) | changes))


def _shrink(config: dict[str, Any], model_type: str) -> dict[str, Any]:
    shrunk = {name: _shrunk(name, value) for name, value in config.items() if name not in DERIVED}
    shrunk |= _few_layers(config)
    if config.get("is_encoder_decoder") and "decoder" not in config:
        shrunk.setdefault("decoder_start_token_id", 0)
    if "kv_lora_rank" in config:  # latent attention has one key a query
        shrunk |= {name: HEADS for name in ("num_key_value_heads",) if name in config}
    return shrunk | OWN.get(model_type, {})


def _few_layers(config: dict[str, Any]) -> dict[str, Any]:
    """Return one layer of each kind that the type's own defaults have, and at least two."""
    kinds = list(dict.fromkeys(config.get("layer_types") or ()))
    if len(kinds) < 2:
        return {}
    count = {"num_hidden_layers": len(kinds)} if "num_hidden_layers" in config else {}
    return {"layer_types": kinds, **count}


DERIVED = (
    *("layer_types", "mlp_layer_types", "per_layer_config", "layers_block_type", "hybrid_layer_ids"),
    *("attention_layers", "model_type", "transformers_version", "id2label", "label2id"),
)
"""What a configuration derives from its other sizes, or what `AutoConfig.for_model` takes by position."""


def _shrunk(name: str, value: Any) -> Any:
    if isinstance(value, dict) and (name.endswith("_config") or "model_type" in value):
        inner = str(value.get("model_type", ""))
        return _shrink(value, inner) | ({"model_type": inner} if inner else {})
    if name in SIZES and not (value is None and name in UNSET):
        return SIZES[name]
    return value


UNSET = ("n_inner", "q_lora_rank", "head_dim")
"""Sizes that stay None where a type's defaults leave them out: they select another form of the model."""


def model_types() -> list[str]:
    """Return every type that an auto class of one of peftlab's tasks builds."""
    autos = [getattr(transformers, task.auto_class) for task in TASKS.values()]
    return sorted({config.model_type for auto in autos for config in auto._model_mapping})


LARGEST = 5_000_000


def build(model_type: str, task: str, root: Path) -> Path | str:
    """Save a small pretrained model of a type with its tokenizer; return its folder, or why it cannot be built.

    A model that cannot read a row of token ids in transformers itself counts as one that cannot be built.
    """
    folder = root / f"{model_type}-{task}"
    if model_type in NEEDS_MORE:  # is refused for its type alone, and some of these need other packages
        AutoConfig.for_model(model_type, **OWN.get(model_type, {})).save_pretrained(folder)
        _save_tokenizer(folder, ends=False)
        return folder
    try:
        torch.manual_seed(0)
        model = getattr(transformers, TASKS[task].auto_class).from_config(small_config(model_type))
        if (size := sum(p.numel() for p in model.parameters())) > LARGEST:
            return f"{size:,} parameters at the smallest"
        _spread_biases(model)
        _read(model)
        model.save_pretrained(folder)
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    _save_tokenizer(folder, ends=model.config.is_encoder_decoder)
    return folder


@torch.no_grad()
def _spread_biases(model: torch.nn.Module) -> None:
    """Make biases and norms random: zeros and ones would hide a layer that is left out."""
    for parameter in model.parameters():
        if parameter.ndim == 1 and parameter.is_floating_point():
            parameter.add_(0.05 * torch.randn_like(parameter))


@torch.no_grad()
def _read(model: torch.nn.Module) -> None:
    ids = torch.cat([torch.arange(5, 20), torch.zeros(1, dtype=torch.int64)])[None]
    beside = model.config.is_encoder_decoder and "decoder_input_ids" in inspect.signature(model.forward).parameters
    model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **({"decoder_input_ids": ids} if beside else {}))


def _save_tokenizer(folder: Path, *, ends: bool) -> None:
    """Save the built-in tokenizer; encoder-decoders' classifiers read the end token, so theirs adds it."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(Path(peftlab.__path__[0]) / "builtin" / "tiny")
    if ends:
        end = tokenizer.eos_token
        tokenizer._tokenizer.post_processor = TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
        )
    tokenizer.save_pretrained(folder)
