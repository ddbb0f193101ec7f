"""What cannot work is refused from sizes alone, in one line with the place and the remedy."""

from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from peftlab.errors import MethodError
from peftlab.methods import Adapters, AnyMethod, BitFit, Full, LoRA, Prefix, QLoRA
from peftlab.parameters.shape import shape_of
from peftlab.parameters.trainable import trainable_parameters
from tests.methods.tiny import head_names, tiny_model

REFUSED = [
    (
        "llama",
        LoRA(rank=33),
        "rank",
        "k_proj has 16 outputs, so that rank 33 does not fit; use at most 16, or leave it",
    ),
    ("llama", LoRA(rank=17), "rank", "k_proj has 16 outputs, so that rank 17 does not fit"),
    ("llama", LoRA(targets=("q_prj",)), "targets", "'q_prj' matches no linear layer; candidates: q_proj"),
    ("llama", LoRA(targets=("q_proj", "embed_tokens")), "targets", "'embed_tokens' matches no linear layer"),
    ("llama", LoRA(targets=("lm_head",)), "targets", "it is the head, which trains through `unfreeze`"),
    ("llama", LoRA(bias="all"), "bias", "trains nothing"),
    ("llama", LoRA(rank=3, init="orthogonal"), "init", "needs an even rank, not 3"),
    ("gpt2", LoRA(init="olora"), "init", "olora fails in peft on GPT-2's transposed projections"),
    ("llama", LoRA(unfreeze=("embd_tokens",)), "unfreeze", "'embd_tokens' matches no parameter; candidates: embed_tok"),
    ("llama", LoRA(freeze=("nothing",)), "freeze", "'nothing' matches no parameter; candidates: "),
    ("llama", LoRA(freeze=("lora_*",)), "freeze", "nothing would train"),
    ("llama", QLoRA(init="pissa"), "init", "needs the base's plain weights"),
    ("llama", QLoRA(unfreeze=("mlp",)), "unfreeze", r"matches model.layers.0.mlp.gate_proj.weight, which is quantised"),
    ("llama", Full(layers=3), "layers", "3 layers are asked for, but the model has 2"),
    ("llama", BitFit(), "terms", "has no biases to train; set add_missing: true, or use lora or adapters"),
    ("qwen2", BitFit(terms="subset", freeze=("q_proj",)), "freeze", "nothing would train"),
    ("llama", Adapters(modules=("mpl",)), "modules", "'mpl' matches no module; candidates: mlp"),
    ("distilbert", Prefix(), "kind", "set `kind: prompt`"),
    ("llama", Prefix(kind="prompt", projection=True), "projection", "has no projection"),
    ("llama", Prefix(projection_dim=4), "projection_dim", "without `projection: true`"),
]


@pytest.mark.parametrize(("family", "method", "field", "message"), REFUSED)
def test_check_names_field_and_reason_before_weights_and_apply_refuses_alike(family, method, field, message):
    task = "sequence-classification" if family == "distilbert" else "causal-lm"
    model = tiny_model(family, task)
    fields, messages = zip(*method.check(shape_of(model, task=task)), strict=True)
    assert field in fields
    told = messages[fields.index(field)]
    with pytest.raises(MethodError, match=message) as caught:
        method.apply(model)
    assert f"method.{field}: {told}" in str(caught.value)
    assert "\n" not in told


def test_prompt_on_a_decoders_classifier_is_refused():
    model = tiny_model("llama", "sequence-classification")
    with pytest.raises(MethodError, match="cannot find the last token after a prompt; set `kind: prefix`"):
        Prefix(kind="prompt").apply(model, head_names(model))


def test_layers_of_an_unknown_build_are_refused_with_the_way_out():
    config = {"d_model": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 64}
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mpt", **config))
    with pytest.raises(
        MethodError, match=r"layers of 'mpt' are of a build .* all that are built like Llama's\); .*`modules: \[...\]`"
    ) as caught:
        Adapters().apply(model)
    assert "did you mean" not in str(caught.value)
    adapted = Adapters(bottleneck=2, modules=("ffn",)).apply(model)
    assert len(trainable_parameters(adapted)) == 4


def test_a_new_head_trains_with_every_method_even_where_a_pattern_freezes_it():
    model = tiny_model("bert", "sequence-classification")
    fresh = head_names(model)
    trained = set(trainable_parameters(LoRA(freeze=("bias", "layer.0")).apply(model, fresh)))
    assert fresh <= trained


def test_a_pattern_that_only_freezes_the_new_head_is_refused():
    model = tiny_model("bert", "sequence-classification")
    with pytest.raises(MethodError, match="'classifier' matches only the new head, which always trains"):
        LoRA(freeze=("classifier",)).apply(model, head_names(model))


def test_lora_works_on_any_module():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 2))
    trained = trainable_parameters(LoRA(rank=2).apply(model))
    assert sorted(trained) == ["0.lora_A.weight", "0.lora_B.weight", "2.lora_A.weight", "2.lora_B.weight"]


def test_a_model_without_linear_layers_is_told_in_a_whole_sentence():
    shape = replace(shape_of(tiny_model("llama")), linears=())
    assert LoRA().check(shape) == [("targets", "the model has no linear layer that LoRA could change; use type: full")]
    ((_, message),) = LoRA(targets=("q_proj",)).check(shape)
    assert message == "'q_proj' matches no linear layer; there is none that it could mean"


def test_targets_hit_no_module_with_a_similar_ending():
    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(4, 4)
            self.inner = nn.ModuleDict({"proj": nn.Linear(4, 4)})
            self.out = nn.Linear(4, 2)

        def forward(self, x):
            return self.out(self.inner["proj"](self.proj(x)))

    trained = trainable_parameters(LoRA(rank=2, targets=("inner.proj",)).apply(Twin()))
    assert sorted(trained) == ["inner.proj.lora_A.weight", "inner.proj.lora_B.weight"]


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "lora", "rank": 0},
        {"type": "lora", "alpha": 0},
        {"type": "lora", "alpha": float("nan")},
        {"type": "lora", "dropout": 1.0},
        {"type": "full", "layers": 0},
        {"type": "adapters", "bottleneck": 8, "reduction_factor": 4},
        {"type": "adapters", "reduction_factor": float("inf")},
        {"type": "prefix", "length": 0},
        {"type": "qlora", "quantization": "nf8"},
        {"type": "bitfit", "rank": 1},
    ],
)
def test_values_without_meaning_are_refused_by_the_schema(fields):
    with pytest.raises(ValidationError):
        TypeAdapter(AnyMethod).validate_python(fields)


def test_methods_import_no_torch():
    import subprocess
    import sys

    code = "import sys, peftlab.methods; assert not {'torch', 'peft', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_apply_on_meta_needs_no_memory():
    with torch.device("meta"):
        model = tiny_model_on_meta()
    for method in (LoRA(rank=2, init="pissa"), Adapters(modules=("mlp",))):
        assert all(parameter.is_meta for parameter in method.apply(model).parameters())


def tiny_model_on_meta():
    from transformers import AutoModelForCausalLM

    from tests.methods.tiny import tiny_config

    return AutoModelForCausalLM.from_config(tiny_config("llama"))
