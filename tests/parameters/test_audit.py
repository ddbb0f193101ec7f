"""The audit notices dead, unmoved and wrongly changed tensors, down to one bit."""

from __future__ import annotations

import pytest
import torch

from peftlab.models.quantize import quantize_
from peftlab.parameters.audit import Audit, fingerprint
from peftlab.parameters.trainable import named_parameters, set_trainable, trainable_parameters
from tests.parameters.families import build

IDS = torch.tensor([[5, 6, 7, 8]])
TRAINED = {"model.norm.weight", "model.layers.0.input_layernorm.weight", "model.layers.1.mlp.up_proj.weight"}


def train(model, audit, steps=2, rate=0.1):
    optimizer = torch.optim.SGD(trainable_parameters(model).values(), lr=rate)
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        audit.observe_gradients(model)
        optimizer.step()
        optimizer.zero_grad()


def audited(model, names=TRAINED, **kwargs):
    set_trainable(model, names)
    audit = Audit(model)
    train(model, audit, **kwargs)
    return audit


def test_honest_training_is_clean():
    model = build("llama")
    report = audited(model).finish(model)
    assert report.clean and report.steps == 2


def test_dead_parameter_is_named():
    model = build("llama")
    model.dead = torch.nn.Parameter(torch.ones(3))
    report = audited(model, TRAINED | {"dead"}).finish(model)
    assert report.without_gradient == report.unmoved == ["dead"]
    assert report.frozen_changed == [] and not report.clean


def test_parameter_whose_gradient_is_always_zero_is_named():
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
    set_trainable(model, TRAINED)
    audit = Audit(model)
    train(model, audit)
    assert audit.finish(model).without_gradient == ["model.layers.1.mlp.up_proj.weight"]


def test_gradient_seen_in_one_step_is_enough():
    model = build("llama")
    set_trainable(model, {"model.norm.weight"})
    audit = Audit(model)
    for gradient in (torch.zeros(32), torch.ones(32), torch.zeros(32)):
        model.model.norm.weight.grad = gradient
        audit.observe_gradients(model)
    assert audit.finish(model).without_gradient == []


def test_trainable_tensor_that_stays_is_named():
    model = build("llama")
    report = audited(model, rate=0.0).finish(model)
    assert set(report.unmoved) == TRAINED and report.without_gradient == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_changed_byte_of_any_frozen_tensor_is_noticed(dtype):
    model = build("llama").to(dtype)
    set_trainable(model, TRAINED)
    for name, parameter in named_parameters(model).items():
        if name in TRAINED:
            continue
        audit = Audit(model)
        parameter.data.view(-1).view(torch.uint8)[-1] ^= 1
        assert audit.finish(model).frozen_changed == [name]


@pytest.mark.parametrize("base_format", ["nf4", "int8"])
def test_one_changed_byte_of_a_quantised_weight_is_noticed(base_format):
    model = quantize_(build("llama"), base_format)
    set_trainable(model, {"model.norm.weight"})
    audit = Audit(model)
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data.view(-1)[3] ^= 1
    assert audit.finish(model).frozen_changed == ["model.layers.0.mlp.up_proj.weight"]


def test_changed_scale_of_a_quantised_weight_is_noticed():
    model = quantize_(build("llama"), "nf4")
    set_trainable(model, {"model.norm.weight"})
    audit = Audit(model)
    model.model.layers[0].mlp.up_proj.weight.quant_state.absmax[0] += 1
    assert audit.finish(model).frozen_changed == ["model.layers.0.mlp.up_proj.weight.absmax"]


@pytest.mark.parametrize("base_format", ["nf4", "fp4", "int8"])
def test_quantised_weights_stay_through_training_and_evaluation(base_format):
    model = quantize_(build("qwen2"), base_format).train()
    audit = audited(model, {"model.norm.weight", "model.layers.0.input_layernorm.weight"})
    with torch.no_grad():
        model.eval()(input_ids=IDS)
    assert audit.finish(model).clean


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int8])
@pytest.mark.parametrize("size", [1, 7, 8, 31])
def test_every_single_bit_changes_the_fingerprint(dtype, size):
    tensor = (torch.randn(size, generator=torch.Generator().manual_seed(0)) * 40).to(dtype)
    before = fingerprint(tensor)
    for byte in range(size * tensor.element_size()):
        for bit in range(8):
            changed = tensor.clone()
            changed.view(torch.uint8)[byte] ^= 1 << bit
            assert not torch.equal(fingerprint(changed), before)
    assert torch.equal(fingerprint(tensor.clone()), before)


def test_wrapping_the_model_after_the_audit_began_changes_no_name():
    model = build("llama")
    audit = audited(model)
    assert audit.finish(torch.nn.DataParallel(model)).clean
