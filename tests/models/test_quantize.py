"""Quantised bases: which layers, how close, and that PEFT and gradients work on the CPU."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from peftlab.errors import MethodError
from peftlab.models.load import load_model
from peftlab.models.quantize import make_quantizer, quantize_
from peftlab.parameters.trainable import is_quantized, named_parameters
from peftlab.recipe.schema import Model
from tests.gauntlet.small import small_config
from tests.parameters.families import FAMILIES, build

FORMATS = ["nf4", "fp4", "int8"]
# Relative error of normally distributed weights: NF4 leaves 0.09, FP4 0.12, 8 bits 0.006.
CLOSENESS = {"nf4": 0.1, "fp4": 0.13, "int8": 0.01}
IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.mark.parametrize("base_format", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_dense_layer_but_the_head_is_quantised(family, base_format):
    plain, model = build(family), quantize_(build(family), base_format)
    expected = {
        f"{name}.weight"
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and not any(head in name for head in ("lm_head", "classifier", "score", "pooler"))
    }
    assert {name for name, parameter in named_parameters(model).items() if is_quantized(parameter)} == expected
    assert (model.is_loaded_in_4bit, model.is_loaded_in_8bit) == (base_format != "int8", base_format == "int8")


@pytest.mark.parametrize("base_format", FORMATS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_quantised_layers_compute_nearly_what_the_plain_ones_do(family, base_format):
    model = build(family)
    generator = torch.Generator().manual_seed(0)
    expected = {}
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear | Conv1D) and name != "lm_head":
                nn.init.normal_(layer.weight, std=0.1, generator=generator)
                if layer.bias is not None:
                    nn.init.normal_(layer.bias, generator=generator)
                n_in = layer.weight.shape[0 if isinstance(layer, Conv1D) else 1]
                expected[name] = layer(torch.eye(n_in)), layer.weight.norm()
        quantize_(model, base_format)
        for name, (outputs, weight_norm) in expected.items():
            layer = model.get_submodule(name)
            error = (layer(torch.eye(layer.in_features)) - outputs).norm() / weight_norm
            assert error < CLOSENESS[base_format], (name, float(error))


@pytest.mark.parametrize("base_format", FORMATS)
def test_inputs_of_any_number_of_dimensions_give_the_same_rows(base_format):
    """Latent attention passes each head's rows: four dimensions."""
    model = nn.ModuleDict({"body": nn.ModuleList([nn.Linear(16, 24)]), "out": nn.Linear(24, 2)})
    layer, rows = quantize_(model, base_format)["body"][0], torch.randn(2, 3, 5, 16)
    expected = layer(rows.view(30, 16)).view(2, 3, 5, 24)
    torch.testing.assert_close(layer(rows), expected)
    torch.testing.assert_close(layer(rows[0]), expected[0], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(layer(rows[0, 0, 0]), expected[0, 0, 0], rtol=1e-2, atol=1e-2)


def test_a_layer_whose_weight_the_model_reads_stays_plain():
    model = AutoModelForCausalLM.from_config(small_config("mamba"))
    quantize_(model, "nf4")
    names = {name.rpartition(".")[2] for name, one in model.named_modules() if isinstance(one, nn.Linear)}
    plain = {n.rpartition(".")[2] for n, one in model.named_modules() if type(one) is nn.Linear}
    assert plain == {"dt_proj", "lm_head"} and names == plain | {"in_proj", "x_proj", "out_proj"}
    assert torch.isfinite(model(torch.arange(5)[None]).logits).all()


@pytest.mark.parametrize("base_format", ["nf4", "fp4"])
@pytest.mark.parametrize("n_in", [16, 30, 48, 64, 96, 100, 160, 576])
def test_weights_whose_rows_fill_no_whole_blocks_unpack_right(n_in, base_format):
    model = nn.ModuleDict({"body": nn.ModuleList([nn.Linear(n_in, 24)]), "out": nn.Linear(24, 2)})
    weight = nn.init.normal_(model["body"][0].weight, generator=torch.Generator().manual_seed(0)).data.clone()
    quantised = quantize_(model, base_format)["body"][0]
    with torch.no_grad():
        found = quantised(torch.eye(n_in)).T - quantised.bias[:, None]
    # Independent of bitsandbytes' layout: one block of 64 in turn, each with its own largest value.
    flat, blocks = weight.flatten(), found.flatten()
    for start in range(0, flat.numel(), 64):
        block, got = flat[start : start + 64], blocks[start : start + 64]
        assert torch.isclose(got.abs().max(), block.abs().max(), rtol=0.03)
    assert (found - weight).norm() / weight.norm() < CLOSENESS[base_format]


@pytest.mark.parametrize("base_format", FORMATS)
def test_gradients_reach_through_a_quantised_layer(base_format):
    layer = nn.ModuleDict({"body": nn.ModuleList([nn.Linear(48, 20)]), "out": nn.Linear(20, 2)})
    quantised = quantize_(layer, base_format)["body"][0]
    inputs = torch.randn(3, 48, requires_grad=True, generator=torch.Generator().manual_seed(0))
    quantised(inputs).sum().backward()
    with torch.no_grad():
        # The identity through the layer without its bias gives the weight that it stands for.
        weight = quantised(torch.eye(48)) - quantised(torch.zeros(48, 48))
    expected = weight.sum(1)
    assert torch.allclose(inputs.grad, expected.expand(3, -1), atol=2e-2 if base_format == "int8" else 1e-5)


@pytest.mark.parametrize("base_format", FORMATS)
@pytest.mark.parametrize("family", ["qwen2", "gpt2", "bert"])
def test_lora_of_peft_trains_on_a_quantised_base(family, base_format):
    model = quantize_(build(family), base_format)
    target = {"qwen2": "q_proj", "gpt2": "c_attn", "bert": "query"}[family]
    model = get_peft_model(model, LoraConfig(r=2, target_modules=[target], init_lora_weights=False))
    model.train()(input_ids=IDS).logits.sum().backward()
    trained = [p for n, p in model.named_parameters() if "lora_" in n]
    assert len(trained) == 4 and all(p.grad.abs().sum() > 0 for p in trained)


def test_double_quantisation_shrinks_the_scales():
    sizes = {}
    for double in (True, False):
        weight = quantize_(build("llama"), "nf4", double_quantization=double).model.layers[0].mlp.up_proj.weight
        assert weight.quant_state.nested is double
        sizes[double] = weight.quant_state.absmax.nbytes
    assert sizes[False] == 4 * sizes[True]


def test_evaluation_on_the_cpu_leaves_the_packed_weight_alone():
    model = quantize_(build("llama"), "nf4").eval()
    weight = model.model.layers[0].mlp.up_proj.weight
    before = weight.data.clone()
    with torch.no_grad():
        model(input_ids=IDS)
    assert torch.equal(weight.data, before) and weight.data.shape == before.shape


@pytest.mark.parametrize("base_format", FORMATS)
def test_loading_quantised_says_so(decoder, base_format):
    loaded = load_model(Model(name=str(decoder)), base_format=base_format)
    assert loaded.source["quantization"].startswith(base_format)
    assert loaded.model(input_ids=IDS).logits.isfinite().all()


def test_unknown_format_is_refused():
    with pytest.raises(MethodError, match="'nf5'; known: nf4, fp4, int8"):
        quantize_(build("llama"), "nf5")


@pytest.mark.gpu
@pytest.mark.parametrize("base_format", FORMATS)
def test_quantised_model_lives_on_the_gpu(decoder, base_format):
    loaded = load_model(Model(name=str(decoder)), base_format=base_format, device="cuda")
    assert {parameter.device.type for parameter in loaded.model.parameters()} == {"cuda"}
    loaded.model(input_ids=IDS.cuda(), labels=IDS.cuda()).loss.backward()


@pytest.mark.parametrize("base_format", FORMATS)
def test_places_of_a_tied_weight_that_is_packed_when_it_is_read_have_a_layer_each(base_format):
    """As Zamba's shared layers: a merge otherwise finds one of two places."""
    torch.manual_seed(0)
    first, second = nn.Linear(64, 4), nn.Linear(64, 4)
    quantizer = make_quantizer(base_format, True, torch.float32, "cpu")
    quantizer.pack_read(first)
    second.weight = first.weight
    one, other = quantizer.quantized(first), quantizer.quantized(second)
    assert len({id(parameter) for layer in (one, other) for parameter in layer.parameters()}) == 4
    inputs = torch.randn(2, 64)
    torch.testing.assert_close(one(inputs) - first.bias, other(inputs) - second.bias)
    assert one.bias.equal(first.bias) and other.bias.equal(second.bias)
