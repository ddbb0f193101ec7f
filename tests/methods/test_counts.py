"""Each method's formula, from sizes alone, against the built model, and against published counts."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from peftlab.methods import METHODS, Adapters, BitFit, Full, LoRA, Prefix, QLoRA
from peftlab.parameters.shape import shape_of
from peftlab.parameters.trainable import logical_shape, named_parameters, trainable_parameters
from tests.methods.tiny import CONFIGS, ENCODERS, head_names, tiny_batch, tiny_config, tiny_model
from tests.sampling import diagonals

METHODS_TO_COUNT = {
    "full": Full(),
    "last layer": Full(layers=1),
    "unfreeze and freeze": Full(layers=1, unfreeze=("0",), freeze=("1",)),
    "lora": LoRA(rank=4),
    "lora attention": LoRA(rank=2, targets="attention", dora=True),
    "lora with biases": LoRA(rank=2, bias="all"),
    "lora with its biases": LoRA(rank=2, bias="lora-only"),
    "qlora": QLoRA(rank=2),
    "houlsby": Adapters(bottleneck=5),
    "pfeiffer": Adapters(placement="pfeiffer", train_norms=True),
    "parallel": Adapters(placement="parallel", reduction_factor=8),
    "prefix": Prefix(length=3),
    "projection": Prefix(length=3, projection=True, projection_dim=10),
    "prompt": Prefix(kind="prompt", length=3),
    "bitfit": BitFit(),
    "bitfit subset": BitFit(terms="subset"),
    "bitfit added": BitFit(add_missing=True, norms=True),
    "bitfit subset added": BitFit(terms="subset", add_missing=True),
}
WITHOUT_BIASES = {"llama", "mistral", "gemma"}
CASES = [
    (family, task)
    for family in CONFIGS
    for task in ("causal-lm", "sequence-classification")
    if task != "causal-lm" or family not in ENCODERS
]


def cannot(family: str, task: str, label: str) -> bool:
    """Whether the method is to refuse this model."""
    needs_bias = label in ("lora with biases", "lora with its biases", "bitfit", "bitfit subset")
    return (
        (family in WITHOUT_BIASES and needs_bias)
        or (family == "distilbert" and label in ("prefix", "projection"))
        or (label == "prompt" and task == "sequence-classification" and family not in ENCODERS)
    )


@pytest.mark.parametrize(("family", "task", "label"), diagonals(CASES, METHODS_TO_COUNT))
def test_formula_names_and_counts_what_trains(family, task, label):
    method, model = METHODS_TO_COUNT[label], on_meta(family, task)
    fresh = head_names(model)
    shape, base = shape_of(model, fresh, task), set(named_parameters(model))
    assert bool(method.check(shape)) == cannot(family, task, label), method.check(shape)
    if cannot(family, task, label):
        return
    model = method.apply(model, fresh)
    expected = {site.name: site.shape for site in method.trainable_sites(shape)}
    assert {name: logical_shape(p) for name, p in trainable_parameters(model).items()} == expected
    assert set(named_parameters(model)) - base == {site.name for site in method.added_parameters(shape)}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == method.count_trainable(shape)


def on_meta(family, task):
    from transformers import AutoModelForSequenceClassification

    auto = AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
    with torch.device("meta"):
        return auto.from_config(tiny_config(family))


@pytest.mark.parametrize(("family", "task", "kind"), diagonals(CASES, METHODS))
def test_built_model_starts_as_the_base_where_the_method_says_so(family, task, kind):
    method = {"bitfit": BitFit(add_missing=True), "lora": LoRA(rank=2), "qlora": QLoRA(rank=2)}.get(kind)
    method = method or METHODS[kind]()
    model = tiny_model(family, task)
    if method.check(shape_of(model, frozenset(), task)):
        pytest.skip(f"{kind} does not apply to {family}")
    before = model(**tiny_batch()).logits
    after = method.apply(model, head_names(model)).eval()(**tiny_batch()).logits
    assert after.shape == before.shape
    assert torch.equal(after, before) == method.starts_as_base


def test_llama_405b_is_counted_on_the_meta_device():
    config = AutoConfig.for_model(
        "llama", hidden_size=16384, num_hidden_layers=126, num_attention_heads=128, num_key_value_heads=8,
        intermediate_size=53248, vocab_size=128256, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    d, kv, ff, r = 16384, 1024, 53248, 16
    per_layer = r * (2 * (d + d) + 2 * (d + kv) + 3 * (d + ff))
    model = LoRA(rank=r).apply(model)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 126 * per_layer


def shape_from(model_type, **sizes):
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(model_type, **sizes))
    return shape_of(model)


BERT_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
MEDIUM = {"n_embd": 1024, "n_layer": 24, "n_head": 16}
LARGE = {"n_embd": 1280, "n_layer": 36, "n_head": 20}

# (source's row, model, sizes, method, exact count, the printed figure, its unit)
PUBLISHED = [
    ("LoRA paper, RoBERTa-base, BitFit", "roberta", ROBERTA, BitFit(), 102_912, "0.1"),
    # r=8 on query and value.
    ("LoRA paper, RoBERTa-base, LoRA", "roberta", ROBERTA, LoRA(rank=8, targets=("query", "value")), 294_912, "0.3"),
    # One adapter a layer; the paper gives no widths, and 16 and 48 are the powers and halves that print so.
    (
        "LoRA paper, RoBERTa-base, adapters", "roberta", ROBERTA,
        Adapters(bottleneck=16, placement="pfeiffer"), 304_320, "0.3",
    ),
    (
        "LoRA paper, RoBERTa-base, adapters", "roberta", ROBERTA,
        Adapters(bottleneck=48, placement="pfeiffer"), 894_528, "0.9",
    ),
    # The paper's adapters carry a layer norm of their own (2·d), which weighs as much as one unit of width here.
    (
        "LoRA paper, GPT-2 medium, adapters", "gpt2", MEDIUM,
        Adapters(bottleneck=7, placement="pfeiffer"), 368_808, "0.37",
    ),
    (
        "LoRA paper, GPT-2 medium, adapters", "gpt2", MEDIUM,
        Adapters(bottleneck=225, placement="pfeiffer"), 11_089_176, "11.09",
    ),
    ("LoRA paper, GPT-2 medium, last two layers", "gpt2", MEDIUM, Full(layers=2), 25_192_448, "25.19"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "model_type", "sizes", "method", "count", "printed"), PUBLISHED)
def test_published_count_is_reproduced(row, model_type, sizes, method, count, printed):
    assert method.count_trainable(shape_from(model_type, **sizes)) == count
    decimals = len(printed.split(".")[1])
    assert f"{count / 1e6:.{decimals}f}" == printed


# What the LoRA paper prints for GPT-2 does not follow from its own formula 2·L·d·r·2 (query and value,
# 393,216 and 737,280): 0.35M is 11 % below, 0.77M 4 % above. No whole prefix length gives 0.35M either.
UNREPRODUCED = [
    (MEDIUM, LoRA(rank=4, targets=("c_attn",)), 24 * 4 * 2 * 2 * 1024, 0.35e6),
    (LARGE, LoRA(rank=4, targets=("c_attn",)), 36 * 4 * 2 * 2 * 1280, 0.77e6),
    (MEDIUM, Prefix(length=7), 2 * 24 * 1024 * 7, 0.35e6),
]


@pytest.mark.parametrize(("sizes", "method", "formula", "printed"), UNREPRODUCED)
def test_published_count_that_differs_is_the_formula_within_13_percent(sizes, method, formula, printed):
    count = method.count_trainable(shape_from("gpt2", **sizes))
    assert count == formula
    assert 0.005 < abs(count / printed - 1) < 0.13


@pytest.mark.parametrize(
    ("sizes", "method", "count", "percent"),
    [
        ({}, BitFit(), 102_912, 0.09),
        (BERT_LARGE, BitFit(), 272_384, 0.08),
        ({}, BitFit(terms="subset"), 12 * (768 + 3072), 0.04),
    ],
)
def test_published_share_of_bert_is_reproduced(sizes, method, count, percent):
    shape = shape_from("bert", **sizes)
    assert method.count_trainable(shape) == count
    assert round(100 * count / shape.total, 2) == percent


def test_houlsby_share_of_bert_large_brackets_the_papers():
    """The paper prints 2.1 % for width 64 (here 1.92 %) and 3.6 % for the best widths of 8, 64 and 256 by task."""
    shape = shape_from("bert", **BERT_LARGE)
    norms = 2 * 1024 * (2 * 24 + 1)
    share = {}
    for width in (8, 64, 256):
        count = Adapters(bottleneck=width, train_norms=True).count_trainable(shape)
        assert count == 48 * (2 * 1024 * width + width + 1024) + norms
        share[width] = 100 * count / shape.total
    assert round(share[64], 2) == 1.92
    assert share[8] < 2.1 < 3.6 < share[256]


def test_prefix_counts_key_value_heads_and_their_own_size():
    shape = shape_of(tiny_model("gemma"))
    assert Prefix(length=5).count_trainable(shape) == 2 * 2 * (2 * 12) * 5
