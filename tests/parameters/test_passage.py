"""What a pass of a text through a copy without weights shows, against the same pass through real weights."""

from __future__ import annotations

import pytest
import torch
import transformers

from peftlab.parameters.passage import pass_text
from tests.gauntlet.small import small_config

CAUSAL = transformers.AutoModelForCausalLM
CLASSIFY = transformers.AutoModelForSequenceClassification
PAIR = transformers.AutoModelForSeq2SeqLM
TAG = transformers.AutoModelForTokenClassification
ONE_SIZE = ["llama", "falcon", "gemma3_text", "mistral", "gpt_oss", "qwen2_moe", "opt"]
NO_PREFIX = {
    "qwen3_next": (CAUSAL, "without keys and values"),
    "mamba": (CAUSAL, "takes no keys and values"),
    "deepseek_v3": (CAUSAL, "of several sizes"),
    "distilbert": (CLASSIFY, "takes no keys and values"),
    "modernbert": (CLASSIFY, "takes no keys and values"),
}


def build(model_type: str, auto=CAUSAL, device: str = "meta"):
    with torch.device(device):
        return auto.from_config(small_config(model_type)).eval()


@pytest.mark.parametrize("model_type", ONE_SIZE)
def test_the_sizes_of_keys_and_values_are_those_of_a_real_cache(model_type):
    model = build(model_type, device="cpu")
    with torch.no_grad():
        cache = model(torch.ones(1, 5, dtype=torch.int64), use_cache=True).past_key_values
    found = pass_text(model).key_values
    for layer in cache.layers:
        assert layer.keys.shape == layer.values.shape == (1, found.heads, 5, found.head_size)


def test_a_falcon_of_one_key_head_has_one():
    assert pass_text(build("falcon")).key_values.heads == 1


@pytest.mark.parametrize("model_type", NO_PREFIX)
def test_a_model_that_can_take_no_prefix_says_why(model_type):
    auto, reason = NO_PREFIX[model_type]
    assert reason in pass_text(build(model_type, auto)).no_prefix


def test_a_window_that_is_shorter_than_the_pass_is_named():
    config = small_config("mistral")
    config.sliding_window = 4
    with torch.device("meta"):
        assert "(a sliding window)" in pass_text(CAUSAL.from_config(config).eval()).no_prefix


def test_a_tagger_has_the_cache_of_its_body():
    assert pass_text(build("falcon", TAG)).key_values == pass_text(build("falcon")).key_values


def test_a_text_does_not_reach_a_vision_tower():
    assert pass_text(build("gemma3")).towers == ("model.vision_tower", "model.multi_modal_projector")


def test_a_decoder_without_its_encoder_does_not_use_its_attention_to_it():
    towers = pass_text(build("bigbird_pegasus")).towers
    assert towers == tuple(f"model.decoder.layers.{layer}.encoder_attn" for layer in range(2))


@pytest.mark.parametrize("model_type", ["llama", "bert", "mixtral"])
def test_a_text_reaches_all_of_a_plain_model(model_type):
    passage = pass_text(build(model_type, CAUSAL if model_type != "bert" else CLASSIFY))
    assert passage.known and not passage.idle and not passage.towers


def test_a_single_layer_that_is_not_called_is_idle_but_no_tower():
    """It may be used through its weight, as `torch.nn.MultiheadAttention` uses its output projection."""
    passage = pass_text(build("luke", CLASSIFY))
    assert not passage.known or not passage.towers


def test_what_is_not_of_transformers_is_unknown():
    assert not pass_text(torch.nn.Linear(2, 2)).known


def test_no_weight_is_read_or_changed():
    model = build("llama", device="cpu")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pass_text(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.get_default_dtype() == torch.float32


READ = {
    "mamba": (CAUSAL, {"dt_proj"}),
    "deepseek_v32": (CAUSAL, {"weights_proj"}),
    "gemma3n_text": (CAUSAL, {"prediction_coefs", "correction_coefs"}),
    "layoutlmv3": (CLASSIFY, {"rel_pos_bias", "rel_pos_x_bias", "rel_pos_y_bias"}),
    "llama": (CAUSAL, set()),
}


@pytest.mark.parametrize("model_type", READ)
def test_dense_layers_whose_weights_others_read_are_found_also_where_the_pass_cannot_end(model_type):
    auto, names = READ[model_type]
    found = {name.rpartition(".")[2] for name in pass_text(build(model_type, auto)).read}
    assert found - {"lm_head"} == names


EMBEDDED = {
    "llama": (CAUSAL, True),
    "bert": (CLASSIFY, True),
    "t5gemma": (PAIR, True),
    "t5": (CLASSIFY, False),
    "esmc": (TAG, False),
    "layoutlmv3": (CLASSIFY, False),
    "deepseek_v4": (CAUSAL, False),
}


@pytest.mark.parametrize("model_type", EMBEDDED)
def test_embeddings_in_place_of_ids_are_taken_where_a_real_model_takes_them(model_type):
    auto, takes = EMBEDDED[model_type]
    model = build(model_type, auto, device="cpu")
    ids = torch.full((1, 5), 7)
    beside = {"decoder_input_ids": ids} if model.config.is_encoder_decoder and auto is PAIR else {}
    try:
        model(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=torch.ones_like(ids), **beside)
    except (NotImplementedError, TypeError, ValueError, AttributeError):
        assert not takes
    else:
        assert takes
    assert pass_text(model).takes_embeddings is takes


def test_what_one_expert_reads_of_its_own_layers_the_others_read_too():
    """Where a router without values takes one path, one expert of four is reached."""
    read = pass_text(build("switch_transformers", PAIR)).read
    experts = "encoder.block.1.layer.1.mlp.experts"
    assert {f"{experts}.expert_{number}.wo" for number in range(4)} <= read
    assert not {f"{experts}.expert_{number}.wi" for number in range(4)} & read
