from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from peftlab.errors import MissingRequirementError
from peftlab.methods import Prefix
from peftlab.optimization.dropout import disable_dropout
from peftlab.optimization.schedule import build_optimizer, build_schedule, parameter_groups, warmup_steps
from peftlab.optimizers import SGD, AdamW
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


def test_sgd_with_momentum_steps_by_hand():
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = SGD(momentum=0.5).build([{"params": [weight], "weight_decay": 0.0}], 0.1, CPU)
    for gradient in (2.0, 1.0):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
    assert weight.item() == pytest.approx(1 - 0.1 * 2 - 0.1 * (0.5 * 2 + 1))


@pytest.mark.parametrize("config", [AdamW(), AdamW(betas=(0.8, 0.9), eps=1e-6), SGD(), SGD(momentum=0.9)])
def test_an_optimizer_counts_the_state_of_its_parameters(config):
    """Oracle: the states of torch's optimiser after a step."""
    weight = nn.Parameter(torch.ones(7, 3))
    optimizer = config.build([{"params": [weight], "weight_decay": 0.0}], 0.1, CPU)
    weight.grad = torch.ones(7, 3)
    optimizer.step()
    held = {name: value for name, value in optimizer.state[weight].items() if torch.is_tensor(value)}
    planned = config.state_tensors(weight.numel())
    assert {name: (value.numel(), str(value.dtype)) for name, value in held.items()} == {
        name: (one.length, f"torch.{one.dtype}") for name, one in planned.items()
    }
    assert config.count_saved_bytes(weight.numel()) == sum(value.nbytes for value in held.values())


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("adamw", AdamW()),
        ("adamw_8bit", AdamW(bits=8)),
        ("paged_adamw", AdamW(paged=True)),
        ("paged_adamw_8bit", AdamW(bits=8, paged=True)),
        ("sgd", SGD()),
        ({"type": "sgd", "momentum": 0.9, "nesterov": True}, SGD(momentum=0.9, nesterov=True)),
    ],
)
def test_recipes_and_records_name_optimizers_shortly_or_whole(written, read):
    recipe = small_recipe(optimizer=written)
    assert recipe.training.optimizer == read
    assert small_recipe(optimizer=recipe.model_dump(mode="json")["training"]["optimizer"]).training.optimizer == read


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_eight_bit_optimisers_need_cuda():
    with pytest.raises(MissingRequirementError, match="adamw_8bit needs CUDA; on cpu use bits: 32 and paged"):
        build_optimizer(tiny_llama(), small_recipe(optimizer="paged_adamw_8bit"), CPU)


def test_frozen_dropout_can_be_switched_off():
    model = tiny_llama(attention_dropout=0.5)
    model.add_module("extra", nn.Dropout(0.5))
    ids = torch.arange(1, 9)[None]
    model.train()
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    disable_dropout(model)
    assert model.extra.p == 0.0
    torch.testing.assert_close(model(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=0)


def steps_of(optimizer: torch.optim.Optimizer, seeds: range) -> list[torch.Tensor]:
    """Take a step on random gradients for each seed, and return the weights."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for seed in seeds:
        chance = torch.Generator().manual_seed(seed)
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=chance)
        optimizer.step()
    return [weight.detach().clone() for weight in weights]


def two_groups(seed: int = 0) -> list[dict]:
    chance = torch.Generator().manual_seed(seed)
    weights = [nn.Parameter(torch.randn(size, generator=chance)) for size in ((33, 7), (5,))]
    return [{"params": [weight], "weight_decay": decay} for weight, decay in zip(weights, (0.1, 0.0), strict=True)]


def test_the_update_on_the_cpu_is_that_of_torchs_own_loop():
    found = steps_of(AdamW().build(two_groups(), 0.01, CPU), range(5))
    right = steps_of(torch.optim.AdamW(two_groups(), lr=0.01, foreach=False), range(5))
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_state_of_an_earlier_version_resumes_with_the_update_that_it_had():
    """Its states are those of torch's loop, whose rounding stays, to the bit."""
    earlier = torch.optim.AdamW(two_groups(), lr=0.01, fused=False)
    begun = steps_of(earlier, range(3))
    groups = two_groups()
    with torch.no_grad():
        for group, weight in zip(groups, begun, strict=True):
            group["params"][0].copy_(weight)
    resumed = AdamW().build(groups, 0.01, CPU)
    resumed.load_state_dict(deepcopy(earlier.state_dict()))
    for one, other in zip(steps_of(resumed, range(3, 6)), steps_of(earlier, range(3, 6)), strict=True):
        assert torch.equal(one, other)
