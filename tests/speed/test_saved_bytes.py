"""What a Llama layer keeps for the backward pass, counted by distinct storages."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

from peftlab.methods import METHODS
from peftlab.speed.apply import speed_up
from tests.speed.test_layers import make_recipe

# The proportions of Llama-3.1-8B: intermediate 3.5h, a quarter as many keys, heads of 128; LoRA's rank is h / 256.
HIDDEN, ROWS, LENGTH = 512, 2, 64
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": 7 * HIDDEN // 2,
    "num_attention_heads": HIDDEN // 128,
    "num_key_value_heads": HIDDEN // 512,
    "vocab_size": 67,
}


def saved_bytes(layers: int, method: str, switch: str, **fields: object) -> int:
    """Return the bytes that a forward pass in bfloat16 keeps beside the model's own tensors."""
    torch.manual_seed(0)
    model: nn.Module = LlamaModel(LlamaConfig(num_hidden_layers=layers, **SIZES)).to(torch.bfloat16)
    model = METHODS[method](**fields).apply(model).train()
    speed_up(model, make_recipe(switch, loss="off"))
    own = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda one: one), torch.autocast("cpu", torch.bfloat16):
        kept = model(input_ids=torch.zeros(ROWS, LENGTH, dtype=torch.int64), use_cache=False)
    del kept
    return sum(size for address, size in found.items() if address not in own)


def per_token_and_layer(method: str, switch: str, **fields: object) -> float:
    """Return the bytes of one more layer, for each token, in units of the hidden size."""
    more, fewer = (saved_bytes(layers, method, switch, **fields) for layers in (3, 2))
    return (more - fewer) / (ROWS * LENGTH * HIDDEN)


def test_lora_saves_what_no_product_gives_back():
    outputs_of_norms, attention, inner = 2 * 2, 2 * (1 + 1 / 4 + 1 / 4 + 1), 2 * 3.5 * 2
    low, maxima = 7 * 2 * 2 / HIDDEN, 4 * HIDDEN // 128 / HIDDEN  # x·Aᵀ of 7 layers; one number for each head
    inputs_of_norms = 2 * (2 + 4 / HIDDEN)  # and one number a row
    expected = outputs_of_norms + attention + inner + low + maxima + inputs_of_norms
    assert per_token_and_layer("lora", "auto", rank=2) == expected


def test_full_and_bitfit_and_adapters_save_less_than_the_plain_path():
    fields: dict[str, dict] = {"full": {}, "bitfit": {"add_missing": True}, "adapters": {"bottleneck": 2}}
    for method, own in fields.items():
        plain, fast = (per_token_and_layer(method, switch, **own) for switch in ("off", "auto"))
        assert plain - fast >= 2 * 3.5  # one inner row, in 16 bits
