"""PEFT's adapter_config.json, with the values that it must have as a recipe."""

from __future__ import annotations

import json

import pytest

from peftlab.errors import UsageError

LORA = {
    "alpha_pattern": {},
    "auto_mapping": None,
    "base_model_name_or_path": "acme/base",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layers_to_transform": None,
    "lora_alpha": 32,
    "lora_dropout": 0.1,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 16,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["v_proj", "q_proj"],
    "task_type": "CAUSAL_LM",
    "use_dora": False,
    "use_rslora": True,
}


@pytest.fixture
def adapter(converted):
    return lambda **changes: converted(json.dumps(LORA | changes, indent=2), name="adapter_config.json")


def test_lora(adapter):
    made = adapter()
    assert made.made.peer.name == "peft"
    made.has(
        model={"name": "acme/base", "task": "causal-lm"},
        method={
            "type": "lora",
            "rank": 16,
            "alpha": 32,
            "dropout": 0.1,
            "rslora": True,
            "dora": False,
            "targets": ["v_proj", "q_proj"],
            "bias": "none",
        },
    )
    assert made.keys("no counterpart") == made.keys("not known") == set()
    assert {problem.path for problem in made.made.problems} >= {"data", "training"}


def test_all_of_a_llamas_projections_are_all_linear(adapter):
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert adapter(target_modules=names).fields["method.targets"] == "all-linear"
    assert adapter(target_modules="all-linear").fields["method.targets"] == "all-linear"


def test_patterns_and_layers_are_said(adapter):
    made = adapter(target_modules=".*q_proj", rank_pattern={"q_proj": 4}, layers_to_transform=[0, 1], new_key=3)
    assert made.keys("no counterpart") == {"target_modules", "rank_pattern", "layers_to_transform"}
    assert made.keys("not known") == {"new_key"}


def test_a_classifier_with_a_trained_head_and_start(adapter):
    made = adapter(
        task_type="SEQ_CLS", modules_to_save=["score"], init_lora_weights="pissa", bias="lora_only", use_dora=True
    )
    expected = {
        "model.task": "sequence-classification",
        "method.unfreeze": ["score"],
        "method.init": "pissa",
        "method.bias": "lora-only",
        "method.dora": True,
    }
    assert {key: made.fields[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("saved", "unfrozen"), [(["classifier", "score"], None), (["classifier", "score", "pooler"], ["pooler"])]
)
def test_the_heads_that_peft_adds_itself_are_the_new_head(adapter, saved, unfrozen):
    """PEFT writes both names for every classifier, and a model has one of them."""
    made = adapter(task_type="SEQ_CLS", modules_to_save=saved)
    assert made.fields.get("method.unfreeze") == unfrozen


@pytest.mark.parametrize(("kind", "ours"), [("PREFIX_TUNING", "prefix"), ("PROMPT_TUNING", "prompt")])
def test_virtual_tokens(converted, kind, ours):
    config = {"peft_type": kind, "base_model_name_or_path": "a", "num_virtual_tokens": 12, "task_type": "CAUSAL_LM"}
    made = converted(json.dumps(config), name="adapter_config.json")
    method = {key: value for key, value in made.fields.items() if key.startswith("method.")}
    assert method == {"method.type": "prefix", "method.kind": ours, "method.length": 12}


def test_a_method_that_peftlab_lacks_is_refused(adapter):
    with pytest.raises(UsageError, match="peft_type: LOHA"):
        adapter(peft_type="LOHA")
