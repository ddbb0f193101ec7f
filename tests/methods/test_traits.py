"""What a method says about itself, so that nobody else needs to know it by name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import peftlab
from peftlab.methods import METHODS, Adapters, BitFit, Full, LoRA, Prefix, QLoRA
from peftlab.methods.registry import BUILT_IN
from peftlab.parameters.shape import shape_of
from peftlab.recipe import parse_recipe
from tests.methods.tiny import tiny_model
from tests.recipe.texts import VALID, problems_of

CONTRADICTIONS = [
    (LoRA(rank=3, init="orthogonal"), "init", "needs an even rank, not 3"),
    (LoRA(targets=()), "targets", "an empty list adapts nothing"),
    (LoRA(targets=("q_proj", " ")), "targets", "an empty pattern"),
    (LoRA(freeze=("lora_B",), unfreeze=("lora_B",)), "freeze", "'lora_B' is also in unfreeze"),
    (QLoRA(init="olora"), "init", "needs the base's plain weights"),
    (QLoRA(quantization="int8", compute_dtype="bfloat16"), "compute_dtype", "belongs to nf4 and fp4"),
    (Adapters(modules=("",)), "modules", "an empty pattern"),
    (Full(unfreeze=("",)), "unfreeze", "an empty pattern"),
    (Prefix(projection_dim=4), "projection_dim", "has no effect without"),
    (Prefix(kind="prompt", projection=True), "projection", "works with kind: prefix only"),
    (BitFit(freeze=("",)), "freeze", "an empty pattern"),
]


@pytest.mark.parametrize(("method", "field", "words"), CONTRADICTIONS)
def test_check_and_train_find_the_same_contradictions(method, field, words):
    (found,) = method.check_settings()
    assert found[0] == field and words in found[1]
    settings = method.model_dump(exclude_defaults=True, exclude={"type"}) | {"type": method.type}
    text = VALID.replace("method:\n  type: lora\n  rank: 8\n", f"method: {show(settings)}\n")
    (problem,) = problems_of(text)
    assert (problem.path, problem.message) == (f"method.{field}", found[1])
    assert found in method.check(shape_of(tiny_model("gpt2")))


def show(settings: dict) -> str:
    """Return settings as a YAML flow mapping."""
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    return str(plain).replace("True", "true")


@pytest.mark.parametrize("kind", METHODS)
def test_a_method_with_its_defaults_contradicts_nothing(kind):
    assert METHODS[kind]().check_settings() == []
    assert parse_recipe(VALID, [f"method={{type: {kind}}}"]).method == METHODS[kind]()


PACKAGE = Path(peftlab.__file__).parent
# Conversion writes recipes of what other trainers call by the same names; a study asks about methods that it names.
ROOMS = ("methods", "conversion", "studies")
OTHERS = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] not in ROOMS]
# A plot's marker is `full` as well; `__init__` offers the classes to Python users.
NAMES = METHODS.keys() - {"full"}
OF_ADAPTERHUB = ("adapterhub.py", "formats.py", "card_code.py")
# GGUF calls its kind of adapter so; AdapterHub's library has this name.
WORDS_OF_OTHERS = {"gguf_model.py": {"lora"}} | dict.fromkeys(OF_ADAPTERHUB, {"adapters"})
CLASSES = {method.__name__ for method in BUILT_IN}


@pytest.mark.parametrize("path", [path for path in OTHERS if path != PACKAGE / "__init__.py"], ids=str)
def test_nothing_outside_methods_knows_one_by_name(path):
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    known = NAMES - WORDS_OF_OTHERS.get(path.name, set())
    assert not known & {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert not CLASSES & {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_nothing_is_registered_that_tests_left_behind():
    assert tuple(METHODS.values()) == BUILT_IN


DECAYED = [
    (Full(), {"h.0.attn.c_attn.weight": True, "h.0.attn.c_attn.bias": False, "ln_f.weight": False, "wte.weight": True}),
    (LoRA(dora=True), {"lora_A.weight": True, "lora_B.weight": True, "lora_magnitude_vector.weight": False}),
    (Adapters(), {"adapter.down.weight": True, "adapter.up.bias": False}),
    (Prefix(projection=True), {"prompt_encoder.embedding.weight": False, "prompt_encoder.transform.0.weight": False}),
    (Prefix(unfreeze=("wte",)), {"prompt_encoder.embedding.weight": False, "wte.weight": True}),
    (BitFit(), {"h.0.mlp.c_fc.bias": False}),
]


@pytest.mark.parametrize(("method", "expected"), DECAYED)
def test_weight_decay_reaches_matrices_but_no_virtual_token(method, expected):
    sizes = {site.name: site.shape for site in method.trainable_sites(shape_of(tiny_model("gpt2")))}
    for ending, decays in expected.items():
        found = {method.decays(name, size) for name, size in sizes.items() if name.endswith(ending)}
        assert found == {decays}, ending


def test_qlora_tries_each_format_and_the_others_one_variant():
    assert {kind: list(method.variants()) for kind, method in METHODS.items()} == {
        **{kind: ["default"] for kind in METHODS},
        "qlora": ["nf4", "fp4", "int8"],
    }
    assert QLoRA.variants()["int8"] == QLoRA(quantization="int8")


def test_only_a_prompt_forbids_padding_and_only_virtual_tokens_reserve_positions():
    assert Prefix(kind="prompt", length=7).prompting == (False, 7, True)
    assert Prefix(length=7).prompting == (True, 7, True)
    assert {METHODS[kind]().prompting for kind in METHODS if kind != "prefix"} == {(True, 0, True)}
    assert QLoRA(quantization="int8").prompting == (True, 0, False)
