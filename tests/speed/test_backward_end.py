"""What frozen parts cost: no graph below the lowest trainable layer, and no input of a frozen linear is saved."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from peftlab.methods import METHODS
from peftlab.models.recompute import recompute_activations

LAYERS = 4


def build(method: str, **fields):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=67,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        pad_token_id=0,
    )
    return METHODS[method](**fields).apply(AutoModelForCausalLM.from_config(config)).train()


def layers_of(model):
    found = {
        name.rpartition(".")[2]: one for name, one in model.named_modules() if name.split(".")[-2:-1] == ["layers"]
    }
    return [found[str(number)] for number in range(LAYERS)]


def run_step(model):
    """Return which layers' outputs are part of a graph, and whether backward keeps the inputs of linears in them."""
    graph, read, saved = {}, {}, set()
    hooks = []
    for number, layer in enumerate(layers_of(model)):
        hooks.append(
            layer.register_forward_hook(
                lambda _, __, output, n=number: graph.__setitem__(
                    n, (output[0] if isinstance(output, tuple) else output).requires_grad
                )
            )
        )
        for name, module in layer.named_modules():
            if name.rpartition(".")[2] in ("q_proj", "down_proj") and isinstance(module, torch.nn.Linear):
                hooks.append(
                    module.register_forward_pre_hook(
                        lambda _, inputs, key=(number, name): read.__setitem__(key, inputs[0])
                    )
                )

    def keep(tensor):
        saved.add(tensor.untyped_storage().data_ptr())
        return tensor

    ids = torch.arange(3, 12).reshape(1, 9)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids).loss
    kept = {key: value.untyped_storage().data_ptr() in saved for key, value in read.items()}
    loss.backward()
    for hook in hooks:
        hook.remove()
    return graph, kept


LATE = {
    "full": {"layers": 1},
    "lora": {"rank": 4, "targets": ("layers.3.self_attn.q_proj",)},
}


@pytest.mark.parametrize("method", LATE)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_below_the_lowest_trainable_one_have_no_graph(method, checkpointing):
    model = build(method, **LATE[method])
    if checkpointing:
        recompute_activations(model)
    graph, _ = run_step(model)
    assert graph == {0: False, 1: False, 2: False, 3: True}


FROZEN = {
    "bitfit": {"add_missing": True},
    "prefix": {"length": 3},
    "adapters": {"bottleneck": 4},
}


@pytest.mark.parametrize("method", FROZEN)
def test_no_input_of_a_frozen_linear_is_saved(method):
    _, kept = run_step(build(method, **FROZEN[method]))
    assert kept and not any(kept.values())


def test_a_trained_linear_saves_its_input():
    _, kept = run_step(build("full"))
    assert len(kept) == 2 * LAYERS and all(kept.values())
