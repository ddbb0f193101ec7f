"""What llama.cpp's format wants of each family: its name there, its metadata, and how tensors are laid out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from peftlab.errors import ModelError, listed


@dataclass(frozen=True)
class Family:
    """A family in GGUF: `arch` is its name, `permutes` that rows of query and key are in the order of llama.cpp's
    rotary embedding, `norm_offset` what is added to the weights of norms, `activations` are names of the only one that
    llama.cpp has there, `slides` says that it knows sliding windows there. `write` adds metadata of its own, `refuse`
    returns why a config cannot be written here, `lacks` what llama.cpp itself cannot compute and a file has no place
    to say, `read_as` the config that a reader of the file needs.
    """

    arch: str
    permutes: bool = False
    norm_offset: float = 0.0
    activations: tuple[str, ...] = ("silu", "swish")
    slides: bool = False
    write: Callable[[Any, PreTrainedConfig], None] = lambda writer, config: None
    refuse: Callable[[PreTrainedConfig], str | None] = lambda config: None
    lacks: Callable[[PreTrainedConfig], str | None] = lambda config: None
    read_as: Callable[[PreTrainedConfig], PreTrainedConfig] = lambda config: config

    def lay_out(self, name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
        """Return a tensor of a transformers model as GGUF has it; `name` is its name in GGUF."""
        if self.permutes and (heads := _rotated_heads(name, config)):
            return permute(tensor, heads)
        if self.norm_offset and "norm" in name:
            return tensor + self.norm_offset
        return tensor


def _rotated_heads(name: str, config: PreTrainedConfig) -> int | None:
    """Return the number of heads of a query or key projection; None for other tensors."""
    if ".attn_q." in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".attn_k." in name else None


def permute(rows: Tensor, heads: int) -> Tensor:
    """Return the rows (outputs) of a projection with the two halves of each head interleaved.

    transformers rotates the halves of a head against each other, llama.cpp neighbouring rows
    (llama.cpp, convert_hf_to_gguf.py, LlamaModel.permute).
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape).contiguous()


def _head_sizes(writer: Any, config: PreTrainedConfig) -> None:
    size = head_size(config)
    writer.add_key_length(size)
    writer.add_value_length(size)


def _llama(writer: Any, config: PreTrainedConfig) -> None:
    writer.add_rope_dimension_count(head_size(config))
    if head_size(config) * config.num_attention_heads != config.hidden_size:
        _head_sizes(writer, config)


def _gemma2(writer: Any, config: PreTrainedConfig) -> None:
    _head_sizes(writer, config)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def _refuse_gemma2(config: PreTrainedConfig) -> str | None:
    if config.query_pre_attn_scalar != head_size(config):
        return "its query_pre_attn_scalar is not the size of its heads, which llama.cpp takes"
    if not config.attn_logit_softcapping or not config.final_logit_softcapping:
        return "it does not cap its logits, which llama.cpp always does"
    return None


def _gemma2_lacks(config: PreTrainedConfig) -> str | None:
    if config.layer_types != [GEMMA2_LAYERS[layer % 2] for layer in range(config.num_hidden_layers)]:
        return "llama.cpp's first layer slides, its second attends to everything, and so in turn"
    return _lacks_biases(config)


def _lacks_biases(config: PreTrainedConfig) -> str | None:
    return "llama.cpp has no biases in its attention" if config.attention_bias else None


def _qwen2_lacks(config: PreTrainedConfig) -> str | None:
    usual = head_size(config) * config.num_attention_heads == config.hidden_size
    return None if usual else "llama.cpp divides its hidden size by its heads"


def _mistral_as_llama(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of a Llama of the same sizes: GGUF has no name of its own for Mistral."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    more = ("num_key_value_heads", "rms_norm_eps", "rope_parameters", "max_position_embeddings", "tie_word_embeddings")
    sizes = {name: getattr(config, name) for name in (*names, *more)}
    return AutoConfig.for_model("llama", head_dim=head_size(config), **sizes)


def head_size(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


GEMMA2_LAYERS = ("sliding_attention", "full_attention")
FAMILIES = {
    "llama": Family("llama", permutes=True, write=_llama),
    "mistral": Family("llama", permutes=True, write=_llama, read_as=_mistral_as_llama),
    "qwen2": Family("qwen2", lacks=_qwen2_lacks),
    "qwen3": Family("qwen3", write=_head_sizes, lacks=_lacks_biases),
    "gemma2": Family(
        "gemma2",
        norm_offset=1.0,
        activations=("gelu_pytorch_tanh", "gelu_new"),
        slides=True,
        write=_gemma2,
        refuse=_refuse_gemma2,
        lacks=_gemma2_lacks,
    ),
}


def find_family(config: PreTrainedConfig) -> Family:
    """Return what GGUF wants of a model's family. Raises ModelError where it cannot be written."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(
            f"GGUF: {config.model_type} models cannot be written; {listed(sorted(FAMILIES))} can. For others, put "
            "llama.cpp's convert_hf_to_gguf.py on the PATH, and it is used"
        )
    refuse_uncomputable(config)
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if reason := family.refuse(config) or (f"its rotary embedding is scaled ({kind})" if kind != "default" else None):
        raise ModelError(
            f"GGUF: this {config.model_type} model cannot be written: {reason}; put llama.cpp's "
            "convert_hf_to_gguf.py on the PATH, and it is used"
        )
    return family


def refuse_uncomputable(config: PreTrainedConfig) -> None:
    """Raise ModelError for a model of a known family that llama.cpp computes otherwise, whoever writes the file."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        return
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    other = f"its activation is {activation}, and llama.cpp computes {family.activations[0]}"
    if reason := family.lacks(config) or (other if activation not in family.activations else None):
        raise ModelError(
            f"GGUF: llama.cpp would compute other outputs of this {config.model_type} model: {reason}; use `peftlab "
            "merge`, for transformers or vLLM"
        )


def as_read(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config with which transformers reads a GGUF file of a model."""
    family = FAMILIES.get(config.model_type)
    return config if family is None else family.read_as(config)


def describe(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the sizes that every family has in GGUF, by the name of the writer's method."""
    return {
        "context_length": min(filter(None, (config.max_position_embeddings, _unknown_window(config)))),
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "head_count": config.num_attention_heads,
        "head_count_kv": config.num_key_value_heads,
        "layer_norm_rms_eps": config.rms_norm_eps,
        "rope_freq_base": (getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10000.0),
        "vocab_size": config.vocab_size,
    }


def _unknown_window(config: PreTrainedConfig) -> int | None:
    """Return the window of a model in which llama.cpp attends to the whole context, so that this must not be longer."""
    layers = getattr(config, "layer_types", None) or ["sliding_attention"]
    slides = "sliding_attention" in layers and not FAMILIES[config.model_type].slides
    return getattr(config, "sliding_window", None) if slides else None


def as_float(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32)
