"""The sizes of built models: roles, widths, fresh heads."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM

from peftlab.architectures import ARCHITECTURES, ATTENTION_ROLES, FEED_FORWARD_ROLES, architecture_of
from peftlab.errors import MethodError
from peftlab.models.quantize import quantize_
from peftlab.parameters.shape import count_positions, shape_of
from tests.parameters.families import ENCODER_DECODERS, FAMILIES, SMALL, build

KEY_WIDTHS = {**dict.fromkeys(FAMILIES, 32), **dict.fromkeys(("llama", "mistral", "qwen2", "phi3", "mixtral"), 16)}
KEY_WIDTHS |= {"qwen3": 16, "gemma": 32, "gemma2": 16, "gemma3_text": 16, "qwen3_moe": 16}


def test_every_known_architecture_has_a_family_to_test_it():
    assert set(ARCHITECTURES) == {*FAMILIES, *ENCODER_DECODERS}


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_every_module_that_an_architecture_names_exists_in_every_layer_of_both_sides(family):
    """And every projection in a layer has a role but those that only other models of the family have."""
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(family, **ENCODER_DECODERS[family]))
    encoder, shape = architecture_of(family), shape_of(model, task="sequence-to-sequence")
    for side, known in (("encoder", encoder), ("decoder", encoder.decoder)):
        exits = {known.attention_exit, known.feed_forward_entry, known.feed_forward_exit, *known.norms}
        exits |= {known.cross_attention_exit} - {None}
        layers = next(m for m in getattr(model, "model", model).get_submodule(side).modules() if is_list(m))
        for layer in layers:
            names = {name for name, _ in layer.named_modules()}
            assert exits <= names
            # T5's feed-forward is gated in some models, and then has other projections.
            assert all("DenseReluDense.wi" in name for name in known.roles.keys() - names)
    assert {site.role for site in shape.linears if site.layer is not None} <= {*ATTENTION_ROLES, *FEED_FORWARD_ROLES}
    assert (shape.layers, [site.layer for site in shape.parameters if site.layer is not None][-1]) == (5, 4)


def is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_module_that_an_architecture_names_exists_in_every_layer(family):
    model, known = build(family, device="meta"), architecture_of(family)
    names = {*known.roles, known.attention_exit, known.feed_forward_entry, known.feed_forward_exit, *known.norms}
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    for layer in layers:
        assert names <= {name for name, _ in layer.named_modules()}


@pytest.mark.parametrize("family", FAMILIES)
def test_exits_give_one_tensor_of_the_hidden_size_at_every_token(family):
    model, known = build(family).eval(), architecture_of(family)
    layer = next(module for module in model.modules() if isinstance(module, nn.ModuleList))[0]
    seen = {}
    for name in (known.attention_exit, known.feed_forward_exit):
        layer.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: seen.setdefault(name, out))
    entry = layer.get_submodule(known.feed_forward_entry)
    entry.register_forward_pre_hook(lambda module, inputs: seen.setdefault("entry", inputs[0]))
    model(input_ids=torch.tensor([[5, 6, 7]]))
    assert {name: out.reshape(-1, 32).shape for name, out in seen.items()} == dict.fromkeys(seen, (3, 32))
    assert len(seen) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_every_dense_layer_of_a_layer_has_a_role(family):
    shape = shape_of(build(family, device="meta"))
    for layer in (0, 1):
        roles = [site.role for site in shape.linears if site.layer == layer]
        assert sorted(roles) == sorted(architecture_of(family).roles.values())
        assert set(roles) <= {*ATTENTION_ROLES, *FEED_FORWARD_ROLES}
    assert (shape.hidden_size, shape.layers, shape.vocabulary) == (32, 2, 64)
    assert shape.kv_width == KEY_WIDTHS[family]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_dense_sizes_are_those_that_the_weights_have(family):
    model = build(family)
    for site in shape_of(model).linears:
        module = model.get_submodule(site.name)
        inputs = torch.zeros(1, site.n_in)
        assert module(inputs).shape == (1, site.n_out)
        assert site.bias == (module.bias is not None)


def test_tied_output_head_is_a_head():
    shape = shape_of(build("llama", tie_word_embeddings=True, device="meta"))
    assert [site.name for site in shape.linears if site.role == "head"] == ["lm_head"]
    assert "lm_head.weight" not in shape.by_name


@pytest.mark.parametrize("base_format", ["nf4", "int8"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta"])
def test_quantised_model_has_the_plain_models_sizes(family, base_format):
    plain, quantised = shape_of(build(family)), shape_of(quantize_(build(family), base_format))
    assert quantised.linears == plain.linears
    assert {(s.name, s.count, s.kind, s.layer) for s in quantised.parameters} == {
        (s.name, s.count, s.kind, s.layer) for s in plain.parameters
    }


def test_wrapped_model_keeps_the_plain_models_dense_layers():
    wrapped = get_peft_model(build("opt"), LoraConfig(r=1, target_modules="all-linear"))
    assert shape_of(wrapped).linears == shape_of(build("opt")).linears


def test_fresh_parameters_are_of_the_kind_head():
    fresh = frozenset({"bert.pooler.dense.weight", "classifier.weight", "no.such.parameter"})
    shape = shape_of(build("bert", device="meta"), fresh, "sequence-classification")
    assert shape.fresh == {"bert.pooler.dense.weight", "classifier.weight"}
    assert {shape.by_name[name].kind for name in shape.fresh} == {"head"}
    assert shape.task == "sequence-classification"


def test_unknown_family_takes_roles_from_namesakes():
    shape = shape_of(build("stablelm", device="meta"))
    roles = {site.name.rpartition(".")[2]: site.role for site in shape.linears if site.layer == 0}
    assert roles["q_proj"] == "query" and roles["down_proj"] == "feed-forward-output"
    assert shape.model_type not in ARCHITECTURES and shape.layers == 2


def test_unknown_architecture_is_an_error_that_lists_the_known():
    with pytest.raises(MethodError, match=r"'lama'; did you mean 'llama'\?; known: bart, bert, .*xlm-roberta"):
        architecture_of("lama")


def test_plain_module_without_a_config_has_sizes_too():
    model = nn.ModuleDict({"body": nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)]), "head": nn.Linear(3, 1)})
    shape = shape_of(model)
    assert (shape.model_type, shape.layers, shape.total) == ("", 2, 28)
    assert [site.role for site in shape.linears] == ["other", "other", "head"]


@pytest.mark.parametrize(("given", "expected"), [(64, 64), (-1, 0), (0, 0), (None, 0)])
def test_positions_of_a_config_that_has_no_limit_are_none(given, expected):
    model = nn.Linear(1, 1)
    model.config = AutoConfig.for_model("llama")
    vars(model.config)["max_position_embeddings"] = given
    assert count_positions(model) == expected
    assert count_positions(nn.Linear(1, 1)) == 0


@pytest.mark.parametrize(
    "family",
    ["roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "ibert", "data2vec-text", "bert", "electra", "gpt2"],
)
def test_the_longest_row_is_one_that_the_model_takes_and_no_longer_one_is(family):
    """RoBERTa and its relatives count positions from their padding token on: of 514, 512 can be used."""
    settings = {**SMALL, "pad_token_id": 3, "attention_window": 4, "max_position_embeddings": 24}
    model = AutoModel.from_config(AutoConfig.for_model(family, **settings)).eval()
    longest = count_positions(model)
    ids = torch.full((1, longest), 7)
    with torch.no_grad():
        model(input_ids=ids)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, longest + 1), 7))
