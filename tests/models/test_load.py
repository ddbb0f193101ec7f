"""Loading: fresh heads, random weights, damaged checkpoints, identity."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from peftlab.errors import MissingRequirementError, ModelError
from peftlab.models.build import build_meta
from peftlab.models.config import one_line_errors
from peftlab.models.load import fit_tokenizer, load_model, load_tokenizer
from peftlab.models.reference import resolve
from peftlab.parameters.report import parameter_report
from peftlab.parameters.trainable import named_parameters
from peftlab.recipe.schema import Model
from tests.parameters.families import SIDES, SMALL, build

LABELS = ["no", "maybe", "yes"]


def classifier(folder, **fields):
    return Model(name=str(folder), task="sequence-classification", **fields)


def refuse(section, *parts, error=ModelError, **arguments):
    with pytest.raises(error) as caught:
        load_model(section, **arguments)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_loaded_weights_are_the_checkpoints(decoder):
    loaded = load_model(Model(name=str(decoder)))
    stored = load_file(decoder / "model.safetensors")
    assert loaded.fresh == frozenset() and set(stored) == set(named_parameters(loaded.model))
    for name, parameter in named_parameters(loaded.model).items():
        assert torch.equal(parameter, stored[name])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_the_recipes(decoder, dtype):
    loaded = load_model(Model(name=str(decoder), dtype=dtype))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {getattr(torch, dtype)}
    assert loaded.source["dtype"] == dtype


def test_attention_implementation_is_the_recipes(decoder):
    assert load_model(Model(name=str(decoder), attention="eager")).model.config._attn_implementation == "eager"


def test_missing_classifier_is_fresh_and_has_the_labels(encoder):
    loaded = load_model(classifier(encoder), labels=LABELS)
    assert loaded.fresh == {"classifier.weight", "classifier.bias"}
    assert loaded.model.classifier.weight.shape == (3, 32)
    assert loaded.model.config.id2label == dict(enumerate(LABELS)) and loaded.model.config.label2id["yes"] == 2


def test_missing_pooler_is_fresh_too(encoder):
    file = encoder / "model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if "pooler" not in n}, file, {"format": "pt"})
    wanted = {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert load_model(classifier(encoder), labels=LABELS).fresh == wanted
    assert build_meta(classifier(encoder), LABELS)[1] == wanted


def test_classifier_of_another_size_is_fresh(tmp_path):
    build("bert", num_labels=5).save_pretrained(tmp_path)
    assert load_model(classifier(tmp_path), labels=LABELS).fresh == {"classifier.weight", "classifier.bias"}


def test_stored_classifier_of_the_same_size_is_kept(tmp_path):
    build("bert", num_labels=3).save_pretrained(tmp_path)
    assert load_model(classifier(tmp_path), labels=LABELS).fresh == frozenset()


@pytest.mark.parametrize("family, head", [("llama", "score.weight"), ("gpt2", "score.weight")])
def test_decoder_gets_a_classifier_and_a_padding_token(tmp_path, family, head):
    model = build(family)
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path)
    loaded = load_model(classifier(tmp_path), labels=LABELS)
    assert loaded.fresh == {head} and loaded.model.config.pad_token_id is not None
    assert loaded.model(torch.tensor([[5, 6], [7, 8]])).logits.shape == (2, 3)


@pytest.mark.parametrize("init", ["pretrained", "random"])
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_meta_model_agrees_with_the_loaded_one(request, kind, init):
    folder = request.getfixturevalue(kind)
    section, labels = classifier(folder, init=init), LABELS
    loaded, (meta, fresh) = load_model(section, labels=labels), build_meta(section, labels)
    assert fresh == loaded.fresh and fresh
    assert all(parameter.is_meta for parameter in meta.parameters())
    shapes = {name: parameter.shape for name, parameter in named_parameters(loaded.model).items()}
    assert shapes == {name: parameter.shape for name, parameter in named_parameters(meta).items()}


def test_random_weights_need_only_a_config_and_follow_the_seed(decoder):
    (decoder / "model.safetensors").unlink()
    section = Model(name=str(decoder), init="random")
    models = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        models.append(load_model(section))
    same, again, other = (torch.cat([p.flatten() for p in one.model.parameters()]) for one in models)
    assert torch.equal(same, again) and not torch.equal(same, other)
    assert models[0].fresh == frozenset() and models[0].source["init"] == "random"


def test_checkpoint_without_weights_is_one_line(decoder):
    (decoder / "model.safetensors").unlink()
    refuse(Model(name=str(decoder)), "cannot be loaded", str(decoder))


@pytest.mark.parametrize("keep", [0, 5, 400, 0.6])
def test_truncated_checkpoint_is_one_line(decoder, keep):
    file = decoder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    refuse(Model(name=str(decoder)), "cannot be loaded")


def test_missing_shard_is_one_line(tmp_path):
    build("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    next(tmp_path.glob("model-00002*")).unlink()
    refuse(Model(name=str(tmp_path)), "cannot be loaded")


def test_damaged_config_is_one_line(decoder):
    (decoder / "config.json").write_text("{'hidden")
    refuse(Model(name=str(decoder)), "cannot be read")


def test_another_models_weights_are_refused_not_replaced(decoder, tmp_path):
    other = tmp_path / "other"
    build("llama", intermediate_size=64).save_pretrained(other)
    shutil.copy(other / "model.safetensors", decoder)
    refuse(Model(name=str(decoder)), "lacks 6 parameters of LlamaForCausalLM", "other sizes")


def test_checkpoint_that_lost_a_layer_is_refused(decoder):
    file = decoder / "model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if "layers.1." not in n}, file, {"format": "pt"})
    refuse(Model(name=str(decoder)), "lacks 9 parameters", "model.layers.1.")


def test_task_that_the_family_lacks_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    refuse(Model(name=str(tmp_path)), "no causal-lm model of type 't5'")


def test_unknown_model_type_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llamma"}))
    refuse(Model(name=str(tmp_path)), "cannot be read", "llamma")


@pytest.mark.skipif(torch.cuda.is_available(), reason="flash attention may be usable here")
def test_unavailable_attention_is_a_missing_requirement(decoder):
    refuse(Model(name=str(decoder), attention="flash_attention_2"), "lash", error=MissingRequirementError)


def test_a_fingerprint_depends_on_the_content_and_not_on_the_place(decoder, tmp_path):
    section = Model(name=str(decoder))
    first = load_model(section).source["fingerprint"]
    shutil.copytree(decoder, tmp_path / "copy")
    assert load_model(Model(name=str(tmp_path / "copy"))).source["fingerprint"] == first
    file = decoder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert first.startswith("sha256:") and load_model(section).source["fingerprint"] != first


def test_large_file_is_fingerprinted_by_its_edges(decoder, monkeypatch):
    monkeypatch.setattr("peftlab.models.checkpoint.HASHED_WHOLE_BYTES", 1000)
    monkeypatch.setattr("peftlab.models.checkpoint.EDGE_BYTES", 100)
    assert load_model(Model(name=str(decoder))).source["fingerprint"].startswith("sha256-edges:")


def test_builtin_tiny_loads_and_its_tokenizer_fits():
    section = Model(name="builtin:tiny")
    loaded, tokenizer = load_model(section), load_tokenizer(section)
    fit_tokenizer(loaded.model, tokenizer)
    assert loaded.fresh == frozenset() and tokenizer.padding_side == "right"
    assert tokenizer.pad_token_id is not None and loaded.model.config.pad_token_id == tokenizer.pad_token_id


def test_a_padding_token_beyond_the_embedding_is_replaced_by_one_inside(decoder):
    model, tokenizer = load_model(Model(name=str(decoder))).model, load_tokenizer(Model(name="builtin:tiny"))
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(100)
    fit_tokenizer(model, tokenizer)
    assert tokenizer.eos_token_id < 64 and model.config.pad_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "camembert", "longformer", "mpnet", "bert", "bart"])
def test_a_padding_token_of_the_tokenizer_leaves_what_a_model_computes_when_it_is_read_again(family, tmp_path):
    """RoBERTa's positions begin behind its padding token, so that another one in its folder gives other positions."""
    settings = {**SMALL, **SIDES} if family == "bart" else {**SMALL, "attention_window": 4}
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **settings | {"pad_token_id": 1})).eval()
    tokenizer = load_tokenizer(Model(name="builtin:tiny"))
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(5)
    fit_tokenizer(model, tokenizer)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[0, 7, 5, 9, 5, 11, 5, 2]])
    with torch.no_grad():
        expected, found = (one(input_ids=ids).last_hidden_state for one in (model, again))
    assert torch.equal(found, expected)


def test_folder_without_a_tokenizer_is_one_line(decoder):
    with pytest.raises(ModelError) as caught:
        load_tokenizer(Model(name=str(decoder)))
    assert "\n" not in str(caught.value)
    assert "the folder has no tokenizer (such as tokenizer.json); set model.tokenizer" in str(caught.value)


def test_minilm_is_whole_but_for_its_classifier(minilm):
    loaded = load_model(minilm, labels=LABELS)
    assert loaded.fresh == build_meta(minilm, LABELS)[1] == {"classifier.weight", "classifier.bias"}
    # all-MiniLM-L6-v2 is a 22.7M BERT; its classifier here has three classes.
    assert parameter_report(loaded.model).total == 22_713_216 + 3 * 384 + 3


def test_smollm2_reads_from_gguf_and_answers(smollm2, tmp_path):
    section, loaded, tokenizer = smollm2
    assert loaded.fresh == frozenset() == build_meta(section)[1]
    assert parameter_report(loaded.model).total == 134_515_008
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = loaded.model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])


def test_gguf_model_saves_as_a_plain_folder(smollm2, tmp_path):
    _, loaded, _ = smollm2
    loaded.model.save_pretrained(tmp_path)
    again = load_model(Model(name=str(tmp_path)))
    assert again.fresh == frozenset() and again.source["fingerprint"] != loaded.source["fingerprint"]
    for name, parameter in named_parameters(loaded.model).items():
        assert torch.equal(parameter, named_parameters(again.model)[name])


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "page.gguf").write_bytes(b"<html>not found</html>")
    refuse(Model(name=str(tmp_path / "page.gguf")), "is not a GGUF file: it does not begin with GGUF")


def test_damaged_gguf_is_one_line(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\x03\x00\x00\x00 and nothing more")
    refuse(Model(name=str(tmp_path / "broken.gguf")), "cannot be read")


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (torch.distributed.DistNetworkError("Failed to recv, got 0 bytes."), torch.distributed.DistNetworkError),
        (RuntimeError("[/src/gloo/transport/tcp/pair.cc:537] Connection closed by peer"), RuntimeError),
        (RuntimeError("The size of tensor a (4) must match"), ModelError),
    ],
    ids=["store", "gloo", "weights"],
)
def test_a_process_that_is_lost_while_parts_are_loaded_is_no_damaged_model(error, found):
    with pytest.raises(Exception) as caught, one_line_errors(resolve("builtin:tiny"), "loaded"):
        raise error
    assert type(caught.value) is found
