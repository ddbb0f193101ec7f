"""The tracker: against the allocator's own record, and on steps small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from peftlab.memory.ledger import CATEGORIES, Ledger
from peftlab.memory.private import quantisation_tensors
from tests.memory.real import METHODS, prepare, rows_of, step, tiny_recipe, track, write_model
from tests.sampling import sampled

FLOAT = 4


def test_a_linear_layers_step_is_counted_by_hand():
    """8 -> 4 without bias, batch 2: weight and gradient 128 B each, input 64 B, output 32 B, Adam 2x128 B + step."""
    layer, ledger = nn.Linear(8, 4, bias=False), Ledger()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    inputs = torch.ones(2, 8)
    with ledger.watch(layer, optimizer), ledger:
        ledger.adopt(layer)
        ledger.mark("step")
        layer(inputs).sum().backward()
        optimizer.step()
    held = dict(zip(CATEGORIES, map(int, ledger.segments()["step"][:, -1]), strict=True))
    assert held["trainable_weights"] == held["gradients"] == 8 * 4 * FLOAT
    assert held["optimiser_state"] == 2 * 8 * 4 * FLOAT + FLOAT
    assert held["frozen_weights"] == 0


def test_saved_activations_are_those_that_the_backward_pass_needs():
    """exp saves its result, and sin its input; the product by a number saves nothing."""
    ledger = Ledger()
    weight = torch.ones(1000, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    with ledger.watch(nn.Identity(), optimizer), ledger:
        ledger.track(weight, "trainable_weights")
        ledger.mark("forward")
        loss = (weight * 3.0).sin().exp().sum()
        ledger.mark("backward")
        loss.backward()
    held = dict(zip(CATEGORIES, map(int, ledger.segments()["forward"][:, -1]), strict=True))
    # The product (which sin saves) and exp's result, and the loss itself; sin's result is gone.
    assert held["saved_activations"] == 2 * 1000 * FLOAT + FLOAT
    assert held["workspace"] == 0


def test_a_later_step_probed_alone_has_the_peak_of_a_steady_step(tmp_path):
    recipe = tiny_recipe(write_model(tmp_path, "qwen2"), {"type": "full"}, batch_size=2)
    setup, ledger = prepare(recipe, rows_of(recipe, ragged=True)), Ledger()
    setup.model.train()
    step(setup, 1)
    with ledger.watch(setup.model, setup.optimizer), ledger:
        ledger.adopt(setup.model, setup.optimizer)
        ledger.mark("steady_step")
        step(setup, 2)
    whole = track(recipe, ragged=True).report()
    assert ledger.report().phases["steady_step"] == whole.phases["steady_step"]
    assert ledger.report().categories == whole.categories


def test_a_storage_is_given_back_when_its_last_view_goes():
    ledger = Ledger()
    with ledger, torch.no_grad():
        ledger.mark("all")
        base = torch.zeros(100)
        view = base[:10]
        del base
        still = ledger.segments()["all"][:, -1].sum()
        del view
    assert still == 100 * FLOAT
    assert ledger.segments()["all"][:, -1].sum() == 0


@pytest.mark.parametrize("name", sampled(list(METHODS), ["full", "lora", "qlora"]))
def test_the_tracked_peak_is_the_allocators(tmp_path, name):
    """Oracle: torch's profiler, which records every allocation of the CPU's allocator, operations' own included."""
    recipe = tiny_recipe(write_model(tmp_path, "gpt2"), {"type": name, **METHODS[name]}, batch_size=4)
    tracked = max(track(recipe, ragged=True).report().phases[p] for p in ("first_step", "steady_step"))
    setup = prepare(recipe, rows_of(recipe, ragged=True))
    setup.model.train()
    held = [*setup.model.parameters(), *setup.model.buffers(), *quantisation_tensors(setup.model.parameters())]
    before = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step(setup, 1)
        step(setup, 2)
    assert tracked == pytest.approx(before + peak_of(record), rel=0.01)


def peak_of(record: profile) -> int:
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(changes).max())


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        own = x * 2
        ctx.save_for_backward(own)
        return own + 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]


def test_what_an_own_function_saves_is_a_saved_activation_though_nothing_is_recorded_inside_it():
    ledger, weight = Ledger(), torch.ones(1000, requires_grad=True)
    with ledger.watch(nn.Identity(), torch.optim.SGD([weight], lr=1.0)), ledger:
        ledger.track(weight, "trainable_weights")
        ledger.mark("forward")
        loss = Doubled.apply(weight).sum()
        ledger.mark("backward")
        loss.backward()
    held = dict(zip(CATEGORIES, map(int, ledger.segments()["forward"][:, -1]), strict=True))
    assert held["saved_activations"] == 1000 * FLOAT + FLOAT
    assert held["workspace"] == 0


def test_a_storage_that_fsdp_frees_and_fills_again_counts_while_it_has_memory():
    """FSDP 2 keeps the tensors of gathered weights and takes only their memory away."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param

    ledger = Ledger()
    with ledger:
        gathered = torch.ones(1000)
        for mark, resize in (("freed", _fsdp_param.free_storage), ("filled", _fsdp_param.alloc_storage)):
            resize(gathered)
            ledger.mark(mark)
            torch.ones(1)
        del gathered
        ledger.mark("gone")
        torch.ones(1)
    assert [int(part[:, 0].sum()) for part in ledger.segments().values()] == [0, 1000 * FLOAT, 0]
