"""What methods leave out, refuse and say on families with towers, gates, experts and caches of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel

from peftlab.errors import MethodError, ModelError
from peftlab.methods import Adapters, BitFit, Full, LoRA, Prefix, QLoRA
from peftlab.models.build import build_meta, describe_part
from peftlab.parameters.report import parameter_report
from peftlab.parameters.shape import shape_of
from peftlab.parameters.trainable import trainable_parameters
from peftlab.patterns import canonical_name
from peftlab.recipe.schema import Model
from tests.gauntlet.small import small_config

CLASSIFY = "sequence-classification"


def build(model_type: str, task: str = "causal-lm", **changes):
    auto = transformers.AutoModelForCausalLM if task == "causal-lm" else transformers.AutoModelForSequenceClassification
    torch.manual_seed(0)
    return auto.from_config(small_config(model_type, **changes))


def shape(model_type: str, task: str = "causal-lm", **changes):
    with torch.device("meta"):
        return shape_of(build(model_type, task, **changes), task=task)


def trained_by(method, model_type: str, task: str = "causal-lm") -> set[str]:
    return set(trainable_parameters(method.apply(build(model_type, task))))


@pytest.mark.parametrize(
    "method",
    [LoRA(rank=2), LoRA(rank=2, targets=("q_proj", "v_proj")), LoRA(rank=2, targets="attention"), Adapters(), Full()],
    ids=["all-linear", "names", "attention", "adapters", "full"],
)
def test_nothing_trains_in_a_tower_that_no_text_reaches(method):
    trained = trained_by(method, "gemma3")
    assert trained and not [name for name in trained if "vision" in name or "multi_modal" in name]


def test_biases_of_a_tower_do_not_train():
    assert not [name for name in trained_by(BitFit(add_missing=True), "gemma3") if "vision_tower" in name]


def test_a_name_that_matches_only_a_tower_means_it():
    targets = LoRA(rank=2, targets=("vision_tower.**.q_proj", "language_model.**.v_proj")).targets_of(shape("gemma3"))
    assert {site.name.split(".")[1] for site in targets} == {"vision_tower", "language_model"}


def test_what_is_left_out_is_said():
    (line,) = LoRA(rank=2, targets=("q_proj",)).notes(shape("gemma3"))
    assert "2 projections are left out (no text reaches them): model.vision_tower." in line
    (line,) = Full().notes(shape("gemma3"))
    assert "tensors stay frozen, because no text reaches them: model.vision_tower, model.multi_modal_projector" in line
    assert not LoRA(rank=2).notes(shape("llama")) + Full().notes(shape("llama"))


def test_a_gate_of_one_output_gets_no_update_but_all_projections_do():
    method = LoRA()
    sizes = shape("qwen2_moe")
    targets = {site.name.rpartition(".")[2] for site in method.targets_of(sizes)}
    assert targets == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert any("shared_expert_gate" in line and "rank 8" in line for line in method.notes(sizes))
    assert not method.check(sizes)
    assert not any("gate" in name.split(".") for name in trained_by(method, "qwen2_moe"))


def test_a_projection_of_a_known_role_that_is_too_narrow_is_still_refused():
    assert LoRA(rank=20).check(shape("llama"))


def test_qlora_says_how_much_of_a_mixture_it_leaves_as_it_was():
    """Two layers of four experts: gate and up are one tensor of 2·64 rows, down one of 32, each 32 or 64 wide."""
    sizes = shape("mixtral")
    experts = 2 * 4 * (2 * 64 * 32 + 32 * 64)
    assert sum(site.count for site in sizes.fused_experts) == experts
    (line,) = QLoRA(rank=2).notes(sizes)
    assert f"{experts:,} parameters ({experts / sizes.total:.0%} of the model)" in line and "not quantised" in line
    (line,) = LoRA(rank=2).notes(sizes)
    assert "get no update" in line and "quantised" not in line


def test_dense_layers_that_peft_takes_for_experts_are_left_out_and_said():
    """Else PEFT would train the experts in their place, and so would whoever reads the folder."""
    method = LoRA(rank=2)
    trained = trained_by(method, "glm4_moe")
    assert trained and not [name for name in trained if "mlp" in name or "expert" in name]
    assert any("takes their names for the fused weights" in line for line in method.notes(shape("glm4_moe")))


@pytest.mark.parametrize(("model_type", "lost"), [("laguna", "shared_experts"), ("inkling2_text", "sconv.weight_proj")])
def test_peft_reads_every_update_that_was_saved(model_type, lost, tmp_path):
    """PEFT 0.21 renames these layers' updates when it reads them, and no layer gets them: they are left out."""
    method = LoRA(rank=2)
    model = method.apply(build(model_type))
    for parameter in trainable_parameters(model).values():
        torch.nn.init.normal_(parameter)
    method.save(model, tmp_path, {})
    read = PeftModel.from_pretrained(build(model_type), tmp_path).named_parameters()
    trained, read = trainable_parameters(model), {canonical_name(name): one for name, one in read}
    assert trained and all(torch.equal(read[name], one) for name, one in trained.items())
    assert not [name for name in trained if lost in name]
    assert any(f"{lost.partition('.')[0]}" in line and "loses them" in line for line in method.notes(shape(model_type)))


def test_a_router_that_chooses_experts_is_no_projection():
    names = {site.name for site in shape("llama4_text").linears}
    assert names and not [name for name in names if name.endswith("router")]


def test_a_dense_layer_of_the_models_own_class_is_a_projection():
    assert {site.name.rpartition(".")[2] for site in LoRA(rank=2).targets_of(shape("falcon"))} == {
        *("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    }


def test_a_prefix_of_a_multi_query_model_has_the_width_of_one_key():
    model = build("falcon", multi_query=True)
    sizes = shape_of(model)
    count = 3 * 2 * 2 * 8  # tokens, keys and values, layers, the one head's size
    assert Prefix(length=3).count_trainable(sizes) == count
    applied = Prefix(length=3).apply(model)
    assert sum(p.numel() for p in trainable_parameters(applied).values()) == count
    assert torch.isfinite(applied(torch.ones(1, 4, dtype=torch.int64)).logits).all()


@pytest.mark.parametrize(
    ("model_type", "task"),
    [
        *((name, CLASSIFY) for name in ("albert", "deberta-v2", "modernbert", "mpnet", "mobilebert", "longformer")),
        *((name, CLASSIFY) for name in ("big_bird", "roformer", "esm", "bart", "t5")),
        *((name, "causal-lm") for name in ("jamba", "falcon_h1", "qwen3_next")),
    ],
)
def test_a_prefix_that_cannot_work_is_refused_by_sizes_alone(model_type, task):
    ((field, message),) = Prefix(length=3).check(shape(model_type, task))
    assert field == "kind" and "set `kind: prompt` or use lora" in message


def test_a_prompt_suits_an_encoder_that_classifies_and_not_a_decoder():
    assert not Prefix(kind="prompt", length=3).check(shape("modernbert", CLASSIFY))
    ((_, message),) = Prefix(kind="prompt", length=3).check(shape("llama", CLASSIFY))
    assert "decoder" in message


def section(folder: Path, model_type: str, task: str = "causal-lm") -> Model:
    small_config(model_type).save_pretrained(folder)
    return Model(name=str(folder), task=task, init="random")


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra"])
def test_an_encoder_is_refused_as_a_causal_model_unless_it_was_trained_as_one(model_type, tmp_path):
    wanted = section(tmp_path, model_type)
    with pytest.raises(ModelError, match="would see each token that it predicts"):
        build_meta(wanted)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"is_decoder": True}))
    build_meta(wanted)


def test_models_that_read_no_rows_of_tokens_are_refused(tmp_path):
    with pytest.raises(ModelError, match="characters"):
        build_meta(section(tmp_path, "canine", CLASSIFY))


def test_a_decoder_without_its_encoder_says_so():
    assert "WhisperForCausalLM is the decoder alone" in describe_part(build("whisper"))[0]
    assert not describe_part(build("llama"))


def test_active_parameters_of_gpt_oss_are_those_published():
    """20.9 billion in all and 3.61 billion active, in the model's card (https://huggingface.co/openai/gpt-oss-20b)."""
    with torch.device("meta"):
        report = parameter_report(
            transformers.AutoModelForCausalLM.from_config(
                transformers.GptOssConfig(
                    num_hidden_layers=24,
                    num_local_experts=32,
                    num_experts_per_tok=4,
                )
            )
        )
    assert report.total == pytest.approx(20.9e9, rel=0.005)
    assert report.active == pytest.approx(3.61e9, rel=0.005)


def test_a_method_that_is_applied_refuses_as_the_check_does():
    with pytest.raises(MethodError, match="kind: prompt"):
        Prefix(length=3).apply(build("modernbert", CLASSIFY))


def test_magnitudes_do_not_decay():
    """They start as the norms of the base's weights; decay would shrink the base."""
    method = LoRA(rank=2, dora=True)
    model = method.apply(build("llama"))
    kept = {name: method.decays(name, tuple(p.shape)) for name, p in trainable_parameters(model).items()}
    assert {name for name, decays in kept.items() if not decays} == {name for name in kept if "magnitude" in name}


def test_what_chooses_keys_gets_no_update_and_no_biases_are_left_to_bitfit():
    """An indexer of sparse attention chooses the keys that a query reads: no gradient passes."""
    sizes = shape("glm_moe_dsa")
    assert any(".indexer." in site.name for site in sizes.linears)
    assert not [site.name for site in LoRA(rank=2).targets_of(sizes) if ".indexer." in site.name]
    assert any("choose keys" in line for line in LoRA(rank=2).notes(sizes))
    ((field, message),) = BitFit().check(sizes)
    assert field == "terms" and "no biases to train" in message


def test_what_qlora_leaves_plain_is_said():
    (line,) = (one for one in QLoRA(rank=2).notes(shape("mamba")) if "quantization" in one)
    assert "2 dense layers keep model.dtype" in line and "dt_proj" in line


BUILT_LIKE_LLAMA = ["arcee", "smollm3", "starcoder2", "granite", "internlm3"]
BUILT_OTHERWISE = {
    "cohere": "attention and feed-forward are parallel, after one norm",
    "olmo2": "norms are behind both",
    "qwen2_moe": "the feed-forward is a mixture of experts",
    "deepseek_v3": "keys are made of a latent",
    "qwen3_next": "layers are of two kinds",
}


@pytest.mark.parametrize("model_type", BUILT_LIKE_LLAMA)
@pytest.mark.parametrize("placement", ["houlsby", "parallel"])
def test_adapters_find_the_layers_of_an_unknown_family_that_is_built_like_llama(model_type, placement):
    """The base at first; then a gradient in each, and 2·d·r + r + d parameters a place: two a layer, or one."""
    model, ids = build(model_type).eval(), torch.randint(5, 60, (2, 7))
    with torch.no_grad():
        before = model(input_ids=ids).logits
        adapted = Adapters(bottleneck=3, placement=placement).apply(model).eval()
        assert torch.equal(adapted(input_ids=ids).logits, before)
    trained = trainable_parameters(adapted)
    places = 2 if placement == "houlsby" else 1
    assert sum(one.numel() for one in trained.values()) == 2 * places * (2 * 32 * 3 + 3 + 32)
    for parameter in trained.values():
        torch.nn.init.normal_(parameter)
    adapted(input_ids=ids).logits.square().sum().backward()
    assert all(one.grad.abs().sum() > 0 for one in trained.values())


@pytest.mark.parametrize("model_type", BUILT_OTHERWISE)
def test_adapters_take_no_layers_of_another_build(model_type):
    ((_, problem),) = Adapters().check(shape(model_type))
    assert "are of a build that peftlab does not know" in problem
