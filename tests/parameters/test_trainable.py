"""Names, the trainable set and logical sizes."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn

from peftlab.errors import MethodError
from peftlab.models.quantize import quantize_
from peftlab.parameters.trainable import (
    freeze_all,
    logical_count,
    logical_shape,
    named_parameters,
    set_trainable,
    trainable_parameters,
)
from tests.parameters.families import build

PROMPTS = [
    PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
]


@pytest.mark.parametrize("config", [LoraConfig(r=1, target_modules="all-linear"), *PROMPTS], ids=lambda c: c.peft_type)
def test_names_inside_peft_are_those_of_the_plain_model(config):
    plain = build("llama")
    wrapped = named_parameters(get_peft_model(build("llama"), config))
    added = {"lora_A.weight", "lora_B.weight"}
    kept = [n for n in wrapped if not n.startswith("prompt_encoder") and n.split("_proj.")[-1] not in added]
    assert kept == [name for name, _ in plain.named_parameters()]


def test_a_model_whose_body_is_called_base_model_keeps_its_names():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = build("llama")

    assert list(named_parameters(Wrapper())) == [name for name, _ in build("llama").named_parameters()]


def test_exactly_the_named_parameters_train():
    model = build("gpt2")
    wanted = {"transformer.h.0.attn.c_attn.bias", "transformer.ln_f.weight"}
    set_trainable(model, wanted)
    assert set(trainable_parameters(model)) == wanted
    set_trainable(model, {"transformer.wpe.weight"})
    assert list(trainable_parameters(model)) == ["transformer.wpe.weight"]


def test_tied_weight_is_trainable_once():
    model = build("llama", tie_word_embeddings=True)
    set_trainable(model, {"model.embed_tokens.weight"})
    assert model.lm_head.weight.requires_grad
    assert list(trainable_parameters(model)) == ["model.embed_tokens.weight"]


def test_unknown_name_is_refused_before_anything_changes():
    model = build("llama")
    before = set(trainable_parameters(model))
    with pytest.raises(MethodError, match=r"no parameter 'model.norm.wieght'; did you mean 'model.norm.weight'"):
        set_trainable(model, {"model.norm.wieght"})
    assert set(trainable_parameters(model)) == before


def test_quantised_weight_cannot_be_trained():
    with pytest.raises(MethodError, match="quantised and cannot train"):
        set_trainable(quantize_(build("llama"), "nf4"), {"model.layers.0.mlp.up_proj.weight"})


def test_freezing_reaches_the_copies_that_peft_sets_aside():
    model = get_peft_model(build("bert"), LoraConfig(r=1, target_modules=["query"], task_type="SEQ_CLS"))
    freeze_all(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("base_format, stored", [("nf4", 48 * 32 // 2), ("int8", 48 * 32)])
def test_logical_size_is_that_of_the_plain_weight(base_format, stored):
    weight = quantize_(build("llama"), base_format).model.layers[0].mlp.up_proj.weight
    assert weight.numel() == stored
    assert logical_shape(weight) == (48, 32) and logical_count(weight) == 48 * 32


def test_logical_size_of_a_plain_tensor_is_its_own():
    assert logical_shape(nn.Parameter(torch.empty(3, 5))) == (3, 5)
