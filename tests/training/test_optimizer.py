from __future__ import annotations

import pytest
import torch
from torch import nn

from peftlab.errors import MissingRequirementError
from peftlab.methods import Prefix
from peftlab.optimization.dropout import disable_dropout
from peftlab.optimization.schedule import build_optimizer, build_schedule, parameter_groups, warmup_steps
from tests.training.small import CPU, small_recipe, tiny_llama


def test_weight_decay_never_reaches_biases_norms_and_prefixes():
    model = tiny_llama(attention_bias=True)
    model.add_module("prompt_encoder", nn.Embedding(3, 4))
    decayed, plain = parameter_groups(model, Prefix(), 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    spared = {names[id(p)] for p in plain["params"]}
    assert "prompt_encoder.weight" in spared
    assert all("norm" in name or "bias" in name or "prompt" in name for name in spared)
    assert not any("norm" in names[id(p)] or "bias" in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


def test_only_what_trains_is_optimised():
    model = tiny_llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1.mlp" in name)
    optimizer = build_optimizer(model, small_recipe(), CPU)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3


@pytest.mark.parametrize(("warmup", "steps", "expected"), [(5, 100, 5), (0.1, 50, 5), (0.0, 50, 0), (0, 50, 0)])
def test_warmup_is_steps_or_a_fraction_of_them(warmup, steps, expected):
    assert warmup_steps(warmup, steps) == expected


def rates(schedule: str, steps: int, warmup) -> list[float]:
    recipe = small_recipe(schedule=schedule, warmup=warmup, learning_rate=1.0, steps=steps)
    optimizer = build_optimizer(tiny_llama(), recipe, CPU)
    course = build_schedule(optimizer, recipe.training, steps)
    values = []
    for _ in range(steps):
        values.append(course.get_last_lr()[0])
        optimizer.step()
        course.step()
    return values


def test_the_linear_schedule_rises_and_falls_by_hand():
    assert rates("linear", 6, 2) == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25])


def test_the_constant_schedule_stays_after_the_warmup():
    assert rates("constant", 4, 2) == pytest.approx([0, 0.5, 1, 1])


def test_the_cosine_schedule_is_half_way_down_in_the_middle():
    assert rates("cosine", 4, 0)[2] == pytest.approx(0.5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_eight_bit_optimisers_need_cuda():
    with pytest.raises(MissingRequirementError, match="paged_adamw_8bit needs CUDA; use adamw"):
        build_optimizer(tiny_llama(), small_recipe(optimizer="paged_adamw_8bit").training, CPU)


def test_frozen_dropout_can_be_switched_off():
    model = tiny_llama(attention_dropout=0.5)
    model.add_module("extra", nn.Dropout(0.5))
    ids = torch.arange(1, 9)[None]
    model.train()
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    disable_dropout(model)
    assert model.extra.p == 0.0
    torch.testing.assert_close(model(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=0)
