"""Every method and format with CUDA's types on the CPU: audited, resumed to the byte, trained and saved in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftlab.errors import StoppedError
from peftlab.methods import METHODS
from peftlab.parameters.trainable import named_parameters
from peftlab.recipe.schema import Recipe
from peftlab.runs import training
from peftlab.runs.checkpoints import NOT_REPEATABLE
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from peftlab.runs.verify import differing, load_final
from peftlab.world.single import Single
from tests.runs.recipes import METHODS as SETTINGS
from tests.runs.recipes import RATES
from tests.sampling import sampled
from tests.simulated_cuda import simulated_cuda, write_config

FORMATS = ("nf4", "fp4", "int8")
# A format, or a method on a base in 16 bits; biases trained beside the method's own parameters, or frozen.
DENSE = [(name, None) for name in METHODS if name != "qlora"]
CASES = [*DENSE, *(("qlora", base_format) for base_format in FORMATS)]
QUICK = [("full", None), ("lora", None), ("qlora", "nf4"), ("qlora", "int8")]


@pytest.fixture(autouse=True)
def cuda():
    with simulated_cuda():
        yield


def sections(folder: Path, kind: str, method: dict[str, Any], **run: Any) -> dict[str, Any]:
    return {
        "model": {"name": str(folder / kind), "init": "random", "tokenizer": "builtin:tiny"},
        "method": method,
        "data": {"train": "builtin:docstrings[train]", "max_length": 24, "train_rows": 8},
        "training": {"steps": 3, "batch_size": 2, "learning_rate": RATES[method["type"]], "schedule": "constant"},
        "evaluation": {"generation": {"examples": 0}},
        "run": {"device": "cpu", "plan": "off", "save_every": 3, "log_every": 1, **run},
    }


def method_of(name: str, base_format: str | None, kind: str, unfrozen: bool) -> dict[str, Any]:
    method = dict(SETTINGS[name])
    if base_format:
        method["quantization"] = base_format
    if name == "bitfit" and kind == "none":
        method["add_missing"] = True
    if unfrozen:
        method["unfreeze"] = ["*bias"]
    return method


class Seen:
    """The types of the parameters before the first forward pass and after the last step."""

    def __init__(self, monkeypatch):
        self.before: dict[str, torch.dtype] = {}
        self.after: dict[str, torch.dtype] = {}
        original = training.train_model

        def watched(record, recorder, stop, bench, model, resume):
            self.before = {name: one.dtype for name, one in named_parameters(model).items()}
            try:
                return original(record, recorder, stop, bench, model, resume)
            finally:
                self.after = {name: one.dtype for name, one in named_parameters(model).items()}

        monkeypatch.setattr("peftlab.runs.run.train_model", watched)


RUNS = [(*case, kind, unfrozen) for case in CASES for kind in ("biases", "none") for unfrozen in (False, True)]
RUNS_SAMPLE = [
    ("full", None, "none", False),
    ("lora", None, "biases", True),
    ("qlora", "nf4", "none", False),
    ("qlora", "int8", "biases", True),
]


@pytest.mark.parametrize(("name", "base_format", "kind", "unfrozen"), sampled(RUNS, RUNS_SAMPLE))
def test_a_run_with_cudas_types_is_audited_and_resumes_to_the_byte(
    tmp_path, monkeypatch, name, base_format, kind, unfrozen
):
    if unfrozen and (kind == "none" or name in ("full", "bitfit")):
        pytest.skip("the model has no biases, or the method trains them already")
    write_config(tmp_path / kind, kind)
    method = method_of(name, base_format, kind, unfrozen)
    seen = Seen(monkeypatch)

    def start(folder: str, resume: bool = False, **run: Any):
        recipe = Recipe.model_validate(sections(tmp_path, kind, method, output=str(tmp_path / folder), **run))
        return train(recipe, resume=resume, display=NoDisplay())

    straight = start("straight")
    assert straight.audit.clean, straight.audit
    assert straight.environment["types"] == {"weights": "bfloat16", "computation": "bfloat16"}
    assert seen.before == seen.after
    trained = {site for site, dtype in seen.after.items() if dtype == torch.float32}
    saved = load_file(next(RunDirectory.open(tmp_path / "straight").weights.glob("*.safetensors")))
    assert 0 < len(trained) < len(seen.after)
    narrow = {site for site, tensor in saved.items() if tensor.dtype != torch.float32}
    assert narrow <= seen.after.keys() - trained
    with pytest.raises(StoppedError):
        start("resumed", stop_after=2)
    resumed = start("resumed", resume=True)
    assert [(report.step, report.exact) for report in resumed.resumes] == [(2, True)]
    same = differing(load_final(tmp_path / "straight"), load_final(tmp_path / "resumed"))
    assert all(same.values()), [name for name, equal in same.items() if not equal]


def test_where_steps_are_not_repeatable_a_resumed_run_is_not_called_exact(tmp_path, monkeypatch):
    monkeypatch.setattr(Single, "repeatable", False)
    write_config(tmp_path / "none", "none")

    def start(resume: bool, **run: Any):
        settings = sections(tmp_path, "none", {"type": "lora"}, output=str(tmp_path / "run"), **run)
        return train(Recipe.model_validate(settings), resume=resume, display=NoDisplay())

    with pytest.raises(StoppedError):
        start(False, stop_after=2)
    (report,) = start(True).resumes
    assert not report.exact and report.reasons == [NOT_REPEATABLE]
    assert "run.deterministic=true" in NOT_REPEATABLE


@pytest.mark.parametrize(
    ("name", "base_format", "precision"),
    sampled(
        [(*case, precision) for case in CASES for precision in ("float32", "float16")],
        [(*case, precision) for case, precision in zip(QUICK, ("float32", "float16") * 2, strict=True)],
    ),
)
def test_weights_of_no_named_type_follow_the_precision(tmp_path, monkeypatch, name, base_format, precision):
    """On a device whose own choice is bfloat16; of two layers one is trained, so that both types meet."""
    write_config(tmp_path / "biases", "biases")
    method = method_of(name, base_format, "biases", False) | ({"layers": 1} if name == "full" else {})
    settings = sections(tmp_path, "biases", method, output=str(tmp_path / "run"), save_every=None)
    settings["training"] |= {"steps": 1, "precision": precision}
    seen = Seen(monkeypatch)
    result = train(Recipe.model_validate(settings), display=NoDisplay())
    assert result.environment["types"] == {"weights": precision, "computation": precision}
    packed = {torch.uint8, torch.int8}
    assert set(seen.after.values()) <= {getattr(torch, precision), torch.float32, *packed}
