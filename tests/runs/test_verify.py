from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from peftlab.errors import UsageError
from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.schema import Recipe
from peftlab.reports import ResumeReport
from peftlab.runs import verify
from peftlab.runs.verify import differing, verify_resume
from tests.runs.recipes import shallow_sections


def test_verify_resume_finds_a_recipe_exact(tmp_path):
    path = tmp_path / "recipe.yaml"
    sections = shallow_sections("adapters", tmp_path / "run", batch_size=2)
    sections["data"] = {"train": "builtin:docstrings[train]", "train_rows": 8, "max_length": 32}
    path.write_text(dump_recipe(Recipe.model_validate(sections)))
    found = verify_resume(path, steps=3, stop_after=1, repeat=True)
    assert found["repeat_differs"] == []
    assert found["exact"] and found["compared"] > 50 and not found["differ"] and not found["reasons"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("device", "asked"), [("cuda", False), ("cpu", True)])
def test_what_differs_without_a_stop_is_reported_beside_what_differs_with_one(monkeypatch, device, asked):
    """Stand-ins for three runs on a device whose kernels add in another order each time."""
    finals = {"straight": [1.0, 2.0, 3.0], "again": [1.0, 2.0, 4.0], "resumed": [1.0, 5.0, 6.0]}
    report = ResumeReport(step=1, exact=False, reasons=["kernels"])
    memory = {"process": SimpleNamespace(device=device)}
    directory = SimpleNamespace(read_result=lambda: SimpleNamespace(resumes=[report], memory=memory))
    monkeypatch.setattr(verify, "run_training", lambda *_, **__: None)
    monkeypatch.setattr(verify, "load_final", lambda folder: dict(zip("abc", finals[folder.name], strict=True)))
    monkeypatch.setattr(verify.RunDirectory, "open", lambda folder: directory)
    found = verify.verify_resume(Path("recipe.yaml"), repeat=asked)
    assert found["differ"] == ["b", "c"] and found["repeat_differs"] == ["c"]


def test_a_stop_outside_the_steps_is_refused(tmp_path):
    for stop_after in (0, 6):
        try:
            verify_resume(tmp_path / "recipe.yaml", stop_after=stop_after)
        except UsageError as error:
            assert "--stop-after must be between 0 and --steps (6)" in str(error)
        else:
            raise AssertionError("not refused")


def test_a_single_flipped_bit_is_a_difference():
    one = {"weights": {"a": torch.zeros(3), "b": torch.ones(2)}, "step": 3}
    other = {"weights": {"a": torch.tensor([0.0, -0.0, 0.0]), "b": torch.ones(2)}, "step": 3}
    assert differing(one, other) == {"weights.a": False, "weights.b": True, "step": True}
    assert all(differing(one, one).values())
    assert differing({"a": 1}, {"a": 1, "b": 2}) == {"a": True, "b": False}
