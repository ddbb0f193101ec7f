"""`merge` over families and methods: the gate passes, and the folder has one more family's names, layouts and ties."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftlab.runs.merge import merge

from ..gauntlet.small import small_config
from .recipes import shallow_model
from .test_merge import CASES, trained

# With the head tied to the embedding, and apart from it.
FAMILIES = {"gpt2": True, "opt": True, "qwen2": True, "gemma": True, "gpt_neox": False, "phi": False, "mistral": False}
NORMS = {"gpt2": ["*ln_*"]}
IMPOSSIBLE = {
    ("gpt2", "olora"): "PEFT has no olora for GPT-2's transposed projections",
    ("gemma", "bitfit"): "Gemma has no biases",
    ("mistral", "bitfit"): "Mistral has no biases",
}
METHODS: dict[str, dict[str, Any]] = {**CASES, "bitfit": {"type": "bitfit", "norms": True}}
NEW = {"add_tokens": ["<a>", "<b>"]}


def base_of(family: str, folder: Path) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config(family, tie_word_embeddings=FAMILIES[family]))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(shallow_model()).save_pretrained(folder)
    return folder


def gap(family: str, method: dict[str, Any], folder: Path, **model: Any) -> float:
    """Return the difference of a merged run from the trained one, as a part of what training changed."""
    section = {"name": str(base_of(family, folder / "base")), **model}
    run = trained(folder, method, model=section, training={"steps": 3})
    report = merge(run, folder / "out")
    found = report.agreements["original"]
    assert found.same_top == 1 and report.effect
    print(f"{family:10}{method} {model or ''}: rms {found.rms:.2g}, training {report.effect:.2g}, KL {found.kl:.1g}")
    return found.rms / report.effect


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_method_passes_the_gate(family, method, tmp_path):
    if (family, method) in IMPOSSIBLE:
        pytest.skip(IMPOSSIBLE[family, method])
    one = METHODS[method]
    if "unfreeze" in one and family in NORMS:
        one = one | {"unfreeze": NORMS[family]}
    assert gap(family, one, tmp_path) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_new_tokens_pass_the_gate(family, tmp_path):
    if family == "phi":
        pytest.skip("the head of Phi has a bias, beside which PEFT trains no new rows")
    assert gap(family, CASES["lora"], tmp_path, **NEW) < 1e-3
