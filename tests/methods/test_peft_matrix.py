"""Families and settings of the kinds that PEFT tests itself with: the model, its start, its gradients and what is
saved are those of PEFT's own call with PEFT's own configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL
from safetensors.torch import load_file

from peftlab.methods import LoRA, Method, Prefix
from peftlab.parameters.trainable import named_parameters
from peftlab.patterns import canonical_name
from peftlab.tasks import TASKS
from tests.gauntlet.small import small_config
from tests.methods.tiny import head_names

CLASSIFY, TAG, ANSWER = "sequence-classification", "token-classification", "sequence-to-sequence"
LAYERS = {
    **dict.fromkeys(("opt", "llama", "qwen2", "mistral", "gemma3_text"), "layers"),
    **dict.fromkeys(("gpt2", "gptj"), "h"),
    **dict.fromkeys(("bert", "roberta"), "layer"),
}
FAMILIES = [
    *((name, "causal-lm") for name in ("opt", "gpt2", "gptj", "llama", "qwen2", "gemma3_text", "mistral")),
    *((name, CLASSIFY) for name in ("bert", "roberta", "llama", "gpt2")),
    *((name, TAG) for name in ("bert", "roberta")),
    *((name, ANSWER) for name in ("t5", "bart")),
]
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the usual targets": ({}, {}),
    "all linear layers": ({"targets": "all-linear"}, {"target_modules": "all-linear"}),
    "rank and alpha": ({"rank": 3, "alpha": 7.5}, {"r": 3, "lora_alpha": 7.5}),
    "dropout": ({"dropout": 0.1}, {"lora_dropout": 0.1}),
    "one layer": ({"layer": 1}, {"layers_to_transform": [1]}),
    "a regular expression": ({"last": True}, {"expression": True}),
    "rslora": ({"rslora": True}, {"use_rslora": True}),
    "dora": ({"dora": True}, {"use_dora": True}),
    "dora and rslora": ({"dora": True, "rslora": True}, {"use_dora": True, "use_rslora": True}),
    "all biases": ({"bias": "all"}, {"bias": "all"}),
    "the biases of the targets": ({"bias": "lora-only"}, {"bias": "lora_only"}),
    "a gaussian start": ({"init": "gaussian"}, {"init_lora_weights": "gaussian"}),
    "an orthogonal start": ({"init": "orthogonal"}, {"init_lora_weights": "orthogonal"}),
    "principal parts": ({"init": "pissa"}, {"init_lora_weights": "pissa"}),
    "an orthonormal start": ({"init": "olora"}, {"init_lora_weights": "olora"}),
    "a module that trains whole": ({"unfreeze": True}, {"modules_to_save": True}),
}  # fmt: skip
PROMPTS = {
    "prefix": (Prefix(length=3), {}),
    "prefix with a projection": (Prefix(length=3, projection=True, projection_dim=12), {"prefix_projection": True}),
    "prompt": (Prefix(kind="prompt", length=3), {}),
}


@dataclass(frozen=True)
class Pair:
    """A case: our method, and what PEFT is asked for."""

    family: str
    task: str
    setting: str
    method: Method
    config: Any
    fresh: bool = field(default=False)

    def __str__(self) -> str:
        return f"{self.family}-{self.task}-{self.setting}".replace(" ", "_")


def lora_pair(family: str, task: str, setting: str) -> Pair | None:
    """Return a case, None for one that the family or PEFT cannot do."""
    ours, peft = (dict(one) for one in SETTINGS[setting])
    model = base(family, task)
    names = USUAL[family]
    if not usable(model, setting, names):
        return None
    targets: Any = tuple(names)
    config = {"r": 4, "lora_alpha": 16, "target_modules": list(names), "task_type": TASKS[task].peft_type} | peft
    if layer := ours.pop("layer", None):
        targets = tuple(f"{LAYERS[family]}.{layer}.**.{name}" for name in names)
    if ours.pop("last", False):
        targets = (names[-1],)
        config.pop("expression")
        config["target_modules"] = rf".*\.{names[-1]}$"
    if ours.pop("unfreeze", False):
        config["modules_to_save"] = [whole_module(model)]
        ours["unfreeze"] = (whole_module(model),)
    method = LoRA(**{"rank": 4, "targets": targets} | ours)
    return Pair(family, task, setting, method, LoraConfig(**config, fan_in_fan_out=family == "gpt2"))


def usable(model, setting: str, names) -> bool:
    names = tuple(names)
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    return {
        "one layer": model.config.model_type in LAYERS,
        "all biases": bool(biases),
        "the biases of the targets": any(name.removesuffix(".bias").endswith(names) for name in biases),
        "an orthonormal start": model.config.model_type != "gpt2",  # fails in peft on transposed weights
        # PEFT takes a head that is one layer called classifier for a target too, and then cannot set it aside.
        "all linear layers": model.config.model_type != "t5"
        and not isinstance(getattr(model, "classifier", None), torch.nn.Linear),
    }.get(setting, True)


def whole_module(model) -> str:
    """Return the name of a module that is no target: the second layer's first norm."""
    return next(name for name, module in model.named_modules() if ".1." in name and "orm" in type(module).__name__)


def base(family: str, task: str):
    torch.manual_seed(0)
    auto = getattr(transformers, TASKS[task].auto_class)
    model = auto.from_config(small_config(family, vocab_size=67)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def inputs(task: str) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 67, (2, 7), generator=chance)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    found = {"input_ids": ids, "attention_mask": mask}
    return found | ({"decoder_input_ids": ids[:, :4]} if task == ANSWER else {})


def both(pair: Pair):
    """Return our model and PEFT's, both made from equal bases with equal random numbers."""
    ours, theirs = base(pair.family, pair.task), base(pair.family, pair.task)
    fresh = head_names(ours) if pair.task in (CLASSIFY, TAG) else frozenset()
    torch.manual_seed(3)
    ours = pair.method.apply(ours, fresh)
    torch.manual_seed(3)
    return ours.eval(), get_peft_model(theirs, pair.config).eval()


def own_names(model) -> dict[str, torch.nn.Parameter]:
    """Return PEFT's parameters by canonical name: of a module that it set aside, the copy that trains."""
    # A prompt's model is `base_model` itself; canonical names take `base_model.model` for the wrapper's.
    wrapper = "base_model." if model.active_peft_config.is_prompt_learning else ""
    return {
        canonical_name(f"base_model.model.{name.removeprefix(wrapper)}" if wrapper else name): one
        for name, one in model.named_parameters()
        if ".original_module." not in name
    }


def gradients(model, task: str) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(5)
    model(**inputs(task)).logits.square().mean().backward()
    return {name: one.grad for name, one in own_names(model).items() if one.requires_grad and one.grad is not None}


@torch.no_grad()
def move(model) -> None:
    """Add noise to what trains, the same for a name in each model."""
    for number, (_, one) in enumerate(sorted(own_names(model).items())):
        if one.requires_grad:
            one.add_(0.05 * torch.randn(one.shape, generator=torch.Generator().manual_seed(number)))


@torch.no_grad()
def logits(model, task: str) -> torch.Tensor:
    return model.eval()(**inputs(task)).logits


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    unequal = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not unequal, unequal[:3]


def check_lora(pair: Pair, folder: Path) -> None:
    ours, theirs = both(pair)
    mine, others = named_parameters(ours), own_names(theirs)
    assert {n for n, p in mine.items() if p.requires_grad} == {n for n, p in others.items() if p.requires_grad}
    assert_same(mine, others)
    if pair.method.dropout:
        ours.train(), theirs.train()
    assert_same(gradients(ours, pair.task), gradients(theirs, pair.task))
    move(ours), move(theirs)
    expected = logits(theirs, pair.task)
    assert torch.equal(logits(ours, pair.task), expected)
    check_saved(pair, ours, expected, folder)
    stored = load_file(folder / "adapter_model.safetensors")
    listed = get_peft_model_state_dict(theirs, save_embedding_layers=False)
    # With all biases PEFT lists those of a module that it set aside three times: by its name and inside both copies.
    names = {
        canonical_name(name).replace(".modules_to_save.", ".") for name in listed if ".original_module." not in name
    }
    assert {canonical_name(name) for name in stored} >= names
    merged = theirs.merge_and_unload() if pair.config.modules_to_save is None else None
    if merged is not None:
        torch.testing.assert_close(
            logits(pair.method.merge(ours), pair.task), logits(merged, pair.task), rtol=0, atol=0
        )


def check_saved(pair: Pair, ours, expected: torch.Tensor, folder: Path) -> None:
    """A reader with PEFT alone, and one with peftlab, get the trained model."""
    pair.method.save(ours, folder, {"base_model": {"name": "tiny"}})
    start = base(pair.family, pair.task)
    assert torch.equal(logits(PeftModel.from_pretrained(start, folder), pair.task), expected)
    loaded = pair.method.load(base(pair.family, pair.task), folder)
    assert torch.equal(logits(loaded, pair.task), expected)


def check_prompt(pair: Pair, folder: Path) -> None:
    """PEFT starts from noise, peftlab from tokens: with our values in its place, PEFT's model is ours."""
    ours, theirs = both(pair)
    mine, others = named_parameters(ours), own_names(theirs)
    assert {n: p.shape for n, p in mine.items()} == {n: p.shape for n, p in others.items()}
    with torch.no_grad():
        for name, one in others.items():
            one.copy_(mine[name])
    move(ours), move(theirs)
    expected = logits(theirs, pair.task)
    if pair.method.kind == "prompt" and pair.task == "causal-lm":
        expected = expected[:, pair.method.length :]
    assert torch.equal(logits(ours, pair.task), expected)
    pair.method.save(ours, folder, {"base_model": {"name": "tiny"}})
    read = logits(PeftModel.from_pretrained(base(pair.family, pair.task), folder), pair.task)
    read = read[:, -expected.shape[1] :] if read.dim() == 3 else read
    # A projection is computed for each row of a batch while it trains, and stored for one.
    torch.testing.assert_close(read, expected, rtol=0, atol=1e-6 if pair.method.projection else 0)


def prompt_pair(family: str, task: str, kind: str) -> Pair | None:
    method, more = PROMPTS[kind]
    model = base(family, task)
    from peftlab.parameters.shape import shape_of

    if method.check(shape_of(model, task=task)):
        return None
    shared = {"num_virtual_tokens": 3, "task_type": TASKS[task].peft_type}
    if kind == "prompt":
        return Pair(family, task, kind, method, PromptTuningConfig(**shared, num_transformer_submodules=1))
    hidden = {"encoder_hidden_size": 12} if more else {}
    return Pair(family, task, kind, method, PrefixTuningConfig(**shared, **more, **hidden))


QUICK = [
    ("llama", "causal-lm", "one layer"),
    ("gpt2", "causal-lm", "the biases of the targets"),
    ("qwen2", "causal-lm", "principal parts"),
    ("bert", CLASSIFY, "dora and rslora"),
    ("t5", ANSWER, "a module that trains whole"),
]


@pytest.mark.parametrize(("family", "task", "setting"), QUICK)
def test_lora_is_pefts_own(family, task, setting, tmp_path):
    pair = lora_pair(family, task, setting)
    assert pair is not None
    check_lora(pair, tmp_path)


@pytest.mark.parametrize("kind", PROMPTS)
def test_virtual_tokens_are_pefts_own(kind, tmp_path):
    pair = prompt_pair("llama", "causal-lm", kind)
    assert pair is not None
    check_prompt(pair, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("family", "task"), FAMILIES)
def test_every_setting_of_lora_is_pefts_own_in_every_family(family, task, setting, tmp_path):
    pair = lora_pair(family, task, setting)
    if pair is None:
        pytest.skip("the family has no such thing")
    check_lora(pair, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize(("family", "task"), FAMILIES)
def test_virtual_tokens_are_pefts_own_in_every_family(family, task, kind, tmp_path):
    pair = prompt_pair(family, task, kind)
    if pair is None:
        pytest.skip("refused, in a line")
    check_prompt(pair, tmp_path)
