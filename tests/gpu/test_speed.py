"""Speed-ups that only a CUDA device has: each computes what the plain path does, and is used where it says."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from peftlab.losses import liger
from peftlab.methods import METHODS
from peftlab.recipe.schema import Recipe
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from peftlab.speed import row_kernel, varlen
from tests.runs.recipes import short_sections

pytestmark = pytest.mark.gpu

NO_LIGER = pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="liger-kernel is not installed")


def cuda_recipe(method: str, output, precision: str = "bfloat16", **speed: str) -> Recipe:
    sections = short_sections(method, output, precision=precision, speed=speed, batch_size=4)
    sections["run"] |= {"device": "cuda", "plan": "off"}
    return Recipe.model_validate(sections)


@pytest.mark.parametrize("dtype", row_kernel.TYPES)
def test_torchs_kernel_for_rows_of_several_lengths_passes_its_proof(dtype):
    assert varlen.prove(torch.device("cuda", 0), dtype) is None


@NO_LIGER
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_ligers_kernel_passes_its_proof(dtype):
    assert liger.prove(torch.device("cuda", 0), dtype) is None


@pytest.mark.parametrize("switch", ["varlen", "compile", pytest.param("liger", marks=NO_LIGER)])
@pytest.mark.parametrize("method", METHODS)
def test_with_each_switch_a_method_trains_to_the_loss_of_the_plain_path(tmp_path, method, switch):
    """Full fine-tuning and trained heads have no use for Liger's kernel, which is then said."""
    off = {"varlen": "off", "compile": "off", "liger": "off"}
    wanted = "auto" if switch == "liger" and method == "full" else "on"
    sides = [
        train(cuda_recipe(method, tmp_path / name, **off | {switch: value}), display=NoDisplay())
        for name, value in (("plain", "off"), ("fast", wanted))
    ]
    assert sides[1].speed.uses(switch) or wanted == "auto"
    plain, fast = (one.metrics["after"]["loss"] for one in sides)
    assert fast == pytest.approx(plain, rel=5e-3)
