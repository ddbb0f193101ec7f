"""Recomputed layers: which they are, how many, and that no bit of a step depends on them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM
from transformers.modeling_layers import GradientCheckpointingLayer

from peftlab.errors import MethodError
from peftlab.methods import LoRA, Prefix
from peftlab.methods.adapters import Adapters
from peftlab.methods.full import Full
from peftlab.models.recompute import is_recomputed, recompute_activations
from peftlab.parameters.layers import all_layers, reached_layers
from peftlab.reports import CheckpointingReport
from peftlab.speed.apply import speed_up
from tests.training.small import small_recipe, tiny_llama

LAYERS = 5


def deep(method, **changes) -> nn.Module:
    return method.apply(tiny_llama(num_hidden_layers=LAYERS, **changes)).train()


def recomputed(model: nn.Module) -> list[int]:
    return [number for number, layer in enumerate(all_layers(model)) if is_recomputed(layer)]


def count_calls(model: nn.Module) -> list[int]:
    """Return how often the feed-forward of each layer is computed in one step."""
    calls = [0] * LAYERS
    handles = []
    for number, layer in enumerate(all_layers(model)):

        def count(*_, number=number):
            calls[number] += 1

        handles.append(layer.mlp.gate_proj.register_forward_hook(count))
    step(model)
    for handle in handles:
        handle.remove()
    return calls


def step(model: nn.Module, seed: int = 1) -> dict[str, torch.Tensor]:
    """Return the loss and the gradients of one batch."""
    model.zero_grad()
    torch.manual_seed(seed)
    ids = torch.randint(1, 60, (2, 11))
    # Recomputing turns the cache off, whose copies of keys and values some processors multiply in another order.
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("wanted", [0, 1, 3, LAYERS, True, False, "auto"])
def test_the_first_layers_are_computed_twice_and_the_others_once(wanted):
    model = deep(Full())
    count = {True: LAYERS, False: 0, "auto": 0}[wanted] if isinstance(wanted, bool | str) else wanted
    assert recompute_activations(model, wanted) == CheckpointingReport(layers=count, of=LAYERS if count else 0)
    assert recomputed(model) == list(range(count))
    assert count_calls(model) == [2] * count + [1] * (LAYERS - count)


def test_layers_below_the_lowest_trainable_one_are_not_counted():
    model = deep(LoRA(rank=2, targets=("layers.2", "layers.3", "layers.4")))
    assert reached_layers(model) == all_layers(model)[2:]
    assert recompute_activations(model, 2) == CheckpointingReport(layers=2, of=3)
    assert recomputed(model) == [2, 3]
    assert count_calls(model) == [1, 1, 2, 2, 1]


def test_learned_tokens_reach_every_layer():
    model = deep(Prefix(kind="prompt", length=3))
    assert recompute_activations(model, 2) == CheckpointingReport(layers=2, of=LAYERS)


def test_an_encoder_comes_before_its_decoder():
    config = AutoConfig.for_model("t5", d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8, vocab_size=64)
    model = Full().apply(AutoModelForSeq2SeqLM.from_config(config))
    assert recompute_activations(model, 3) == CheckpointingReport(layers=3, of=4)
    assert recomputed(model) == [0, 1, 2]


def test_the_number_can_be_changed_on_the_same_model():
    model = deep(LoRA(rank=2))
    for wanted in (True, 2, 0, 4, "auto", 1):
        count = recompute_activations(model, wanted).layers
        assert recomputed(model) == list(range(count))


@pytest.mark.parametrize("switch", ["off", "auto"])
@pytest.mark.parametrize("method", [Full(), LoRA(rank=2, dropout=0.2), Adapters(bottleneck=4)], ids=lambda m: m.type)
def test_no_bit_of_loss_or_gradients_depends_on_the_number(method, switch):
    def results(wanted) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = deep(method, attention_dropout=0.1)
        recompute_activations(model, wanted)
        speed = {name: switch for name in small_recipe().training.speed.model_dump()}
        speed_up(model, small_recipe(speed=speed))
        return step(model)

    plain = results(False)
    for wanted in (1, 3, True):
        found = results(wanted)
        assert found.keys() == plain.keys()
        assert [name for name, one in found.items() if not torch.equal(one, plain[name])] == []


def test_inputs_that_wait_elsewhere_give_the_same_bits():
    """The mechanism of `offload`, with the memory of this machine in place of a device's."""
    kept: list[torch.Size] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor.clone()

    model = deep(LoRA(rank=2))
    plain = step(model)
    report = recompute_activations(
        model, "offload", keep=lambda: torch.autograd.graph.saved_tensors_hooks(pack, torch.clone)
    )
    assert report == CheckpointingReport(layers=LAYERS, of=LAYERS, on_host=True)
    found = step(model)
    assert kept == [torch.Size([2, 11, 32])] * LAYERS  # each layer's input, and nothing else
    assert [name for name, one in found.items() if not torch.equal(one, plain[name])] == []


def test_more_layers_than_there_are_is_an_error():
    with pytest.raises(MethodError, match="training.gradient_checkpointing=6: gradients reach 5 layers of this model"):
        recompute_activations(deep(Full()), 6)


def test_a_model_that_can_only_recompute_all_says_so(monkeypatch):
    monkeypatch.setattr("peftlab.models.recompute.GradientCheckpointingLayer", type("Other", (nn.Module,), {}))
    assert issubclass(type(all_layers(tiny_llama())[0]), GradientCheckpointingLayer)
    with pytest.raises(MethodError, match="all of its layers or none"):
        recompute_activations(deep(Full()), 2)
    assert recompute_activations(deep(Full()), True).layers == LAYERS
