"""QLoRA's formats crossed with LoRA's variants: refused by name, or trained, read by PEFT alone and merged."""

from __future__ import annotations

import itertools

import pytest
import torch
from peft import PeftModel

from peftlab.errors import MethodError
from peftlab.methods import QLoRA
from peftlab.models.quantize import quantize_
from peftlab.parameters.trainable import trainable_parameters
from tests.methods.saved import logits_of
from tests.methods.tiny import tiny_batch, tiny_model
from tests.sampling import diagonals

FORMATS = ("nf4", "fp4", "int8")
VARIANTS = {
    "plain": {},
    "dora": {"dora": True},
    "rslora": {"rslora": True},
    "gaussian": {"init": "gaussian"},
    "dora, all biases": {"dora": True, "bias": "all"},
    "unfrozen norms": {"unfreeze": ("*norm*",)},
}
NEEDS_PLAIN = ("orthogonal", "pissa", "olora")
TYPES = ("qwen2", "bert", "opt")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "ffn_dim": 128, "word_embed_proj_dim": 64}
"""Rows of whole quantisation blocks, as in real models."""


def quantised(family: str, base_format: str):
    task = "causal-lm" if family != "bert" else "sequence-classification"
    return quantize_(tiny_model(family, task, **WIDE), base_format)


def train_one_step(model) -> None:
    """Move what trains so far that it matters, by the gradient of the logits' squares."""
    model.train()(**tiny_batch()).logits.square().mean().backward()
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "base_format", "variant"), diagonals(TYPES, list(itertools.product(FORMATS, VARIANTS)))
)
def test_a_format_with_a_variant_is_read_by_peft_alone_and_merges(family, base_format, variant, tmp_path):
    """Oracle: PEFT's own loader on an equal base, and the merged model's logits."""
    settings = dict(VARIANTS[variant])
    if family == "bert" and "unfreeze" in settings:
        settings["unfreeze"] = ("*LayerNorm*",)
    method = QLoRA(rank=2, quantization=base_format, **settings)
    if base_format == "int8" and method.dora:
        assert [field for field, _ in method.check_settings()] == ["dora"]
        return
    model = method.apply(quantised(family, base_format))
    train_one_step(model)
    method.save(model, tmp_path, {})
    trained = logits_of(model)
    read = logits_of(PeftModel.from_pretrained(quantised(family, base_format), tmp_path))
    assert torch.equal(read, trained)
    merged = logits_of(method.merge(model))
    # int8 rounds what goes into a product, which the merged weights do not.
    assert (merged - trained).abs().max() <= (0.05 if base_format == "int8" else 0.01) * trained.abs().max()


@pytest.mark.parametrize("init", NEEDS_PLAIN)
@pytest.mark.parametrize("base_format", FORMATS)
def test_an_init_that_needs_plain_weights_is_refused_without_a_model(init, base_format):
    problems = QLoRA(rank=2, quantization=base_format, init=init).check_settings()
    assert [(field, init in message) for field, message in problems] == [("init", True)]


def test_magnitudes_beside_rows_of_broken_blocks_are_refused():
    """On the CPU bitsandbytes unpacks such rows wrongly for PEFT, and the merged model would be another one."""
    with pytest.raises(MethodError, match="needs inputs in multiples of 64"):
        QLoRA(rank=2, dora=True).apply(quantize_(tiny_model("llama"), "nf4"))
