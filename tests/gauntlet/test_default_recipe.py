"""The recipe that is shipped, with another model's name and fewer rows, by the command line: each family in turn."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from peftlab.cli.app import run
from peftlab.runs.directory import RunDirectory
from tests.apart import call_apart
from tests.conftest import REPOSITORY
from tests.gauntlet.small import build

RECIPE = REPOSITORY / "recipes" / "tiny" / "lora.yaml"
FEWER = ("training.steps=3", "data.train_rows=24", "data.evaluation_rows=6", "data.max_length=64", "run.device=cpu")
FAMILIES = [
    *(
        "mistral",
        "gemma2",
        "gemma3_text",
        "gemma3",
        "phi3",
        "starcoder2",
        "gpt_oss",
        "qwen2_moe",
        "qwen3_moe",
        "mixtral",
    ),
    *("deepseek_v2", "deepseek_v3", "deepseek_v4"),
]


def command(*arguments: str) -> None:
    """Do what the command line does, in this process."""
    sys.exit(run(arguments))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_shipped_recipe_trains_evaluates_and_generates_with_another_models_name(model_type, tmp_path):
    base, output = build(model_type, "causal-lm", tmp_path), tmp_path / "run"
    assert isinstance(base, Path), base

    def peftlab(*arguments: str) -> str:
        log = tmp_path / f"{arguments[0]}.log"
        assert call_apart(command, *arguments, log=log) == 0, log.read_text()
        return log.read_text()

    peftlab("train", str(RECIPE), f"model.name={base}", f"run.output={output}", *FEWER)
    result = RunDirectory.open(output).read_result()
    assert result.status == "finished" and len(result.examples) == 1
    before, after = (result.metrics[when]["loss"] for when in ("before", "after"))
    assert before is not None and after is not None and math.isfinite(after) and after < before
    evaluated = json.loads("{" + peftlab("evaluate", str(output), "--json").partition("{")[2])
    assert evaluated["metrics"]["loss"] == pytest.approx(after, abs=1e-6)
    assert peftlab("generate", str(output), "def add(a, b):").strip()
