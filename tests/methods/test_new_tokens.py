"""Rows of new tokens: only they train of the embeddings, counted, saved, merged and read by PEFT itself."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from peftlab.errors import MethodError, ModelError
from peftlab.methods import METHODS
from peftlab.models.build import build_meta
from peftlab.models.load import load_model, load_tokenizer
from peftlab.models.reference import resolve
from peftlab.parameters.shape import shape_of
from peftlab.parameters.trainable import named_parameters, trainable_parameters
from peftlab.recipe.schema import Model
from peftlab.runs.loading import apply_method
from tests.sampling import diagonals

TOKENS = ("<|tool|>", "zyzzyva")
METHOD_NAMES = ("lora", "qlora", "adapters", "bitfit")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny models with the shipped tokenizer: tied, untied, and one whose embedding has rows to spare."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(resolve("builtin:tiny").folder)
    for name, tied, spare in (("tied", True, 0), ("untied", False, 0), ("spare", True, 8)):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer) + spare,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            tie_word_embeddings=tied,
            attention_bias=True,
            max_position_embeddings=128,
        )
        LlamaForCausalLM(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


def section(folder, tokens=TOKENS) -> Model:
    return Model(name=str(folder), add_tokens=tokens)


def method(name):
    return METHODS[name](type=name) if name != "lora" else METHODS[name](rank=4)


def loaded(folder, name="lora"):
    model_section = section(folder)
    one = method(name)
    base = load_model(model_section, **one.base_storage)
    return one, base, load_tokenizer(model_section)


@pytest.mark.parametrize("kind", ["tied", "untied", "spare"])
def test_a_new_row_begins_as_the_mean_of_its_pieces_rows(folders, kind):
    _, base, tokenizer = loaded(folders / kind)
    plain_tokenizer = AutoTokenizer.from_pretrained(folders / kind)
    plain = AutoModelForCausalLM.from_pretrained(folders / kind)
    tables = ["get_input_embeddings", *(["get_output_embeddings"] if kind == "untied" else [])]
    for token in TOKENS:
        pieces = plain_tokenizer(token, add_special_tokens=False)["input_ids"]
        (row,) = tokenizer(token, add_special_tokens=False)["input_ids"]
        assert len(pieces) > 1 and row >= len(plain_tokenizer)
        for table in tables:
            expected = getattr(plain, table)().weight[pieces].mean(dim=0)
            assert torch.equal(getattr(base.model, table)().weight[row], expected)
    rows = base.model.get_input_embeddings().weight.shape[0]
    assert rows == len(tokenizer) + (6 if kind == "spare" else 0)


@pytest.mark.parametrize(("kind", "name"), diagonals(["tied", "untied"], METHOD_NAMES, every=2))
def test_only_the_new_rows_of_the_embeddings_train_and_are_counted(folders, name, kind):
    one, base, _ = loaded(folders / kind, name)
    plain = one.count_trainable(shape_of(load_model(Model(name=str(folders / kind)), **one.base_storage).model))
    meta, fresh = build_meta(section(folders / kind))
    expected = plain + len(TOKENS) * 32 * (2 if kind == "untied" else 1)
    assert one.count_trainable(shape_of(meta, fresh)) == expected
    model, report = apply_method(one, base.model, "causal-lm", base.fresh)
    assert report.trainable == expected
    tables = {n for n in named_parameters(model) if "embed_tokens" in n or "lm_head" in n}
    trained = tables & set(trainable_parameters(model))
    assert {n for n in tables if n.endswith(".weight")} == tables - trained
    assert len(trained) == (2 if kind == "untied" else 1)


def train_rows(model, ids):
    optimizer = torch.optim.SGD(trainable_parameters(model).values(), lr=0.5)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


@pytest.mark.parametrize(("kind", "name"), diagonals(["tied", "untied"], METHOD_NAMES, every=2))
def test_trained_rows_are_saved_loaded_and_merged_with_the_same_logits(folders, tmp_path, name, kind):
    one, base, tokenizer = loaded(folders / kind, name)
    model, _ = apply_method(one, base.model, "causal-lm", base.fresh)
    ids = tokenizer("call <|tool|> the zyzzyva now", return_tensors="pt")["input_ids"]
    train_rows(model.train(), ids)
    model.eval()
    logits = model(input_ids=ids).logits
    one.save(model, tmp_path / "weights", {"base_model": base.source})
    again = one.load(loaded(folders / kind, name)[1].model, tmp_path / "weights", {"base_model": base.source}).eval()
    assert torch.equal(again(input_ids=ids).logits, logits)
    if one.mergeable:
        merged = one.merge(model)
        assert isinstance(merged, LlamaForCausalLM) and not any("token_adapter" in n for n in merged.state_dict())
        torch.testing.assert_close(merged.eval()(input_ids=ids).logits, logits, atol=1e-5, rtol=1e-4)
        new = tokenizer.convert_tokens_to_ids(list(TOKENS))
        others = [i for i in range(len(tokenizer)) if i not in new]
        before = loaded(folders / kind, name)[1].model.get_input_embeddings().weight
        after = merged.get_input_embeddings().weight
        assert torch.equal(after[others], before[others]) and not torch.equal(after[new], before[new])
        assert torch.equal(model(input_ids=ids).logits, logits)


@pytest.mark.parametrize("kind", ["tied", "untied", "spare"])
def test_peft_itself_loads_the_folder_on_a_resized_base(folders, tmp_path, kind):
    one, base, tokenizer = loaded(folders / kind)
    model, _ = apply_method(one, base.model, "causal-lm", base.fresh)
    ids = tokenizer("call <|tool|> the zyzzyva now", return_tensors="pt")["input_ids"]
    train_rows(model, ids)
    logits = model.eval()(input_ids=ids).logits
    one.save(model, tmp_path, {"base_model": base.source})
    tokenizer.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(folders / kind)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    if len(saved) > plain.get_input_embeddings().weight.shape[0]:
        plain.resize_token_embeddings(len(saved))
    peer = PeftModel.from_pretrained(plain, tmp_path).eval()
    assert saved("<|tool|>", add_special_tokens=False)["input_ids"] == [tokenizer.convert_tokens_to_ids("<|tool|>")]
    torch.testing.assert_close(peer(input_ids=ids).logits, logits, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"type": "prefix", "length": 2},
            "prefix tuning cannot train rows of new tokens alone: its PEFT",
        ),
        (
            {"type": "full", "layers": 1},
            "full fine-tuning cannot train rows of new tokens alone: it stores",
        ),
    ],
)
def test_a_method_that_cannot_store_rows_refuses_new_tokens(folders, settings, message):
    one = METHODS[settings["type"]](**settings)
    with pytest.raises(MethodError, match=message):
        one.apply(load_model(section(folders / "tied")).model)


@pytest.mark.parametrize("settings", [{"type": "full"}, {"type": "full", "layers": 1, "unfreeze": ["embed_tokens"]}])
def test_embeddings_that_train_as_a_whole_contain_the_new_rows(folders, tmp_path, settings):
    one = METHODS["full"](**settings)
    base = load_model(section(folders / "tied"))
    model, report = apply_method(one, base.model, "causal-lm", base.fresh)
    assert not any("token_adapter" in name for name in named_parameters(model))
    assert "model.embed_tokens.weight" in trainable_parameters(model)
    one.save(model, tmp_path, {"base_model": base.source})
    again = one.load(load_model(section(folders / "tied")).model, tmp_path, {"base_model": base.source})
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_a_token_that_the_tokenizer_has_is_refused(folders):
    known = AutoTokenizer.from_pretrained(folders / "tied").convert_ids_to_tokens(300)
    with pytest.raises(ModelError, match=r"model\.add_tokens: .* is already a token of the model's tokenizer"):
        load_tokenizer(section(folders / "tied", (known,)))
