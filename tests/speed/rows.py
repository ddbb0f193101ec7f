"""Tiny models of many families with every method, random rows of them, and a step's loss and gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from peftlab.data.batches import Layout, PackedBatch
from peftlab.data.token_rows import IGNORED, TagRow, TextRow, TokenRow
from peftlab.losses.base import Loss
from peftlab.losses.cross_entropy import PositionCrossEntropy
from peftlab.losses.selection import find_head
from peftlab.methods import BitFit, Full, LoRA, Prefix, QLoRA
from peftlab.methods.adapters import Adapters
from peftlab.models.build import attention_argument
from peftlab.models.quantize import quantize_
from peftlab.recipe.schema import Model
from peftlab.speed.attention import attention_of_rows
from tests.methods.tiny import CONFIGS, GATED, SIZES

WINDOW = 4
WINDOWED = {**GATED, "sliding_window": WINDOW}
HEADS = {"head_dim": 16, "num_hidden_layers": 4}
FAMILIES = {
    **CONFIGS,
    "mistral": WINDOWED,
    "gemma2": {**WINDOWED, **HEADS, "query_pre_attn_scalar": 16},
    "gemma3_text": {**WINDOWED, **HEADS, "num_hidden_layers": 6, "query_pre_attn_scalar": 16},
    "phi3": {**WINDOWED},
    "mixtral": {**GATED, "num_local_experts": 4},
    "gpt_oss": {**WINDOWED, **HEADS, "num_local_experts": 4},
    "modernbert": {**SIZES, "intermediate_size": 48, "local_attention": 8},
}
PADDED = {
    "gpt_neo": {
        **{"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 67, "max_position_embeddings": 64},
        **{"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 67},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 67},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 67, "rotary_dim": 4},
}
# Encoders whose heads of whole rows are made in other ways: a pooler for one token, a mean.
POOLED = {
    "albert": {**SIZES, "intermediate_size": 48, "embedding_size": 16},
    "electra": {**SIZES, "intermediate_size": 48, "embedding_size": 16},
    "xlm-roberta": {**SIZES, "intermediate_size": 48},
}
MIXTURES = ("mixtral", "gpt_oss")
ENCODERS = ("bert", "roberta", "distilbert", "modernbert")
METHODS = {
    "full": Full(),
    "lora": LoRA(rank=2),
    "qlora": QLoRA(rank=2),
    "adapters": Adapters(bottleneck=4),
    "prefix": Prefix(length=3),
    "bitfit": BitFit(add_missing=True),
}


def small_model(family: str, seed: int = 0, scale: float = 2.0, pooled: bool = False, **changes) -> nn.Module:
    """Return a random model whose attention matters: weights are larger than a fresh model's, dropout is off.

    `pooled` gives it a head that takes whole rows.
    """
    torch.manual_seed(seed)
    sizes = {**(FAMILIES | PADDED | POOLED)[family], "pad_token_id": 0, "num_labels": 3, **changes}
    auto = AutoModelForTokenClassification if family in ENCODERS else AutoModelForCausalLM
    auto = AutoModelForSequenceClassification if pooled else auto
    config = AutoConfig.for_model(family, **sizes)
    model = auto.from_config(config, **attention_argument(Model(name="unused"), config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def with_method(family: str, name: str, pooled: bool = False, **changes) -> nn.Module:
    method = METHODS[name]
    model = small_model(family, scale=1.0 if name == "qlora" else 2.0, pooled=pooled, **changes)
    if method.base_format != "plain":
        quantize_(model, method.base_format, compute_dtype=torch.float32)
    head = frozenset(n for n, _ in model.named_parameters() if n.startswith(("score.", "classifier.", "head.")))
    model = method.apply(model, head if pooled or family in ENCODERS else frozenset()).eval()
    with torch.no_grad():  # LoRA's B and an adapter's last layer are zero at first
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return precise(model, family) if name != "qlora" else model


def precise(model: nn.Module, family: str) -> nn.Module:
    """Return the model in float64 where it can be, so that rounding hides nothing."""
    return model if family in MIXTURES else model.double()


def random_rows(family: str, lengths, seed: int = 0) -> list[TokenRow]:
    """Return rows of these lengths, of which about half of the tokens are targets."""
    chance = np.random.default_rng(seed)
    rows: list[TokenRow] = []
    for length in lengths:
        ids = chance.integers(3, 67, length).astype(np.int32)
        labels = chance.integers(0, 3, length) if family in ENCODERS else ids.copy()
        labels = np.where(chance.random(length) < 0.5, IGNORED, labels).astype(np.int32)
        labels[-1] = 1
        rows.append((TagRow if family in ENCODERS else TextRow)(ids, labels))
    return rows


def total_and_gradients(
    model: nn.Module, family: str, layout: Layout, batches, loss: Loss | None = None
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss summed over batches of rows, and its gradients by name."""
    loss = loss or PositionCrossEntropy(None if family in ENCODERS else find_head(model))
    model.zero_grad()
    total = 0.0
    for rows in batches:
        batch = layout.batch(rows)
        with attention_of_rows(model, batch.groups if isinstance(batch, PackedBatch) else None):
            part = loss.total(model, batch)
            part.backward()
        total += part.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
