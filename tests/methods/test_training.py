"""What training does to a model with each method: only what trains moves, also under checkpointing."""

import pytest
import torch

from peftlab.methods import METHODS, Adapters, BitFit, LoRA, Prefix, QLoRA
from peftlab.models.quantize import quantize_
from peftlab.parameters.trainable import named_parameters, trainable_parameters
from tests.methods.tiny import head_names, tiny_batch, tiny_model

ALL = {
    **{kind: cls() for kind, cls in METHODS.items() if kind != "qlora"},
    "lora": LoRA(rank=2, bias="lora-only", freeze=("h.0",)),
    "qlora": QLoRA(rank=2, unfreeze=("ln_f",)),
    "parallel adapters": Adapters(placement="parallel", train_norms=True),
    "projected prefix": Prefix(projection=True),
    "prompt": Prefix(kind="prompt"),
}


def built(method, family="gpt2", task="causal-lm", dtype=torch.float32):
    model = tiny_model(family, task).to(dtype)
    fresh = head_names(model) if task != "causal-lm" else frozenset()
    if method.base_format != "plain":
        quantize_(model, method.base_format)
    return method.apply(model, fresh)


def loss_of(model):
    return model(**tiny_batch()).logits.float().square().mean()


@pytest.mark.parametrize("label", ALL)
def test_frozen_bytes_stay_and_all_that_trains_moves(label):
    model = built(ALL[label]).train()
    before = {name: parameter.detach().clone() for name, parameter in named_parameters(model).items()}
    trainable = trainable_parameters(model)
    optimizer = torch.optim.AdamW(trainable.values(), lr=0.01)
    for _ in range(3):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, parameter in named_parameters(model).items() if not torch.equal(parameter, before[name])}
    assert moved == set(trainable)


@pytest.mark.parametrize("label", [*ALL, "pfeiffer adapters"])
def test_half_precision_base_trains_in_float32(label):
    method = ALL.get(label, Adapters(placement="pfeiffer"))
    model = built(method, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in trainable_parameters(model).values()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        loss_of(model).backward()
    assert all(parameter.grad is not None for parameter in trainable_parameters(model).values())


def test_half_precision_base_keeps_its_frozen_type():
    model = built(Adapters(), dtype=torch.bfloat16)
    types = {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad}
    assert types == {torch.bfloat16}
    assert model(**tiny_batch()).logits.dtype == torch.bfloat16


CHECKPOINTED = {
    "adapters": Adapters(init="near-identity"),
    "parallel": Adapters(placement="parallel", init="near-identity"),
    "bitfit": BitFit(),
    "lora": LoRA(rank=2),
    "prompt": Prefix(kind="prompt", length=3),
}


@pytest.mark.parametrize("label", CHECKPOINTED)
@pytest.mark.parametrize(("family", "task"), [("gpt2", "causal-lm"), ("bert", "sequence-classification")])
def test_checkpointing_gives_the_same_gradients(label, family, task):
    method = CHECKPOINTED[label]
    assert method.supports_gradient_checkpointing
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(2)
        model = built(method, family, task)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        loss_of(model).backward()
        gradients.append({name: parameter.grad for name, parameter in trainable_parameters(model).items()})
    plain, recomputed = gradients
    for name, gradient in plain.items():
        assert gradient is not None, name
        torch.testing.assert_close(recomputed[name], gradient)


def test_prefixes_in_the_cache_refuse_checkpointing_and_prompts_do_not():
    assert not Prefix().supports_gradient_checkpointing
    assert Prefix(kind="prompt").supports_gradient_checkpointing
