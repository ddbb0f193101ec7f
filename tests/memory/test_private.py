"""The interfaces of other libraries that plans rely on: their versions, and models that cannot be traced."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import peftlab.memory
from peftlab.memory import private
from peftlab.memory.blueprint import build_blueprint
from peftlab.memory.fakes import UnpredictableError
from peftlab.memory.predict import predict
from peftlab.memory.private import FakeTensorMode, grouped_mm, untried_versions
from tests.memory.real import CPU, tiny_recipe, write_model


def test_the_installed_versions_were_tried():
    assert untried_versions() == []


@pytest.mark.parametrize(
    ("installed", "tried"), [("2.13.0+cpu", True), ("2.13", True), ("2.130.0", False), ("2.14.1", False)]
)
def test_a_version_is_tried_by_its_first_numbers(monkeypatch, installed, tried):
    monkeypatch.setattr(private, "TRIED", {"torch": ("2.13",)})
    monkeypatch.setattr(private.importlib.metadata, "version", lambda name: installed)
    expected = [] if tried else [f"torch {installed}: memory plans were tested with 2.13"]
    assert untried_versions() == expected


def test_no_other_module_of_the_room_names_a_private_interface():
    """Underscored names of imported libraries: `torch._C`, `from torch._subclasses`, `storage._cdata`."""
    room = Path(peftlab.memory.__file__).parent
    found = {path.name: sorted(private_names(path)) for path in room.glob("*.py") if path.name != "private.py"}
    del found["cuda.py"]  # torch documents the snapshot's functions under their underscored names
    assert {name: names for name, names in found.items() if names} == {}


def private_names(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    modules = [name for node in nodes if isinstance(node, ast.ImportFrom) for name in (node.module or "").split(".")]
    attributes = [
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    ]
    return {name for name in modules + attributes if re.match(r"_[a-zA-Z]", name)}


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (lambda hidden: hidden[hidden > 0], "the result of aten.nonzero.default depends on the values of tensors"),
        (lambda hidden: hidden.view(7, -1), "shape '[7, -1]' is invalid for input of size"),
        (lambda hidden: hidden.no_such_method(), "AttributeError: 'FakeTensor' object has no attribute"),
        (lambda hidden: {}["gate"], "KeyError: 'gate'"),
    ],
    ids=["data-dependent", "shape", "attribute", "key"],
)
def test_a_model_that_cannot_be_traced_is_one_clean_line(tmp_path, monkeypatch, caplog, capfd, failure, reason):
    recipe = tiny_recipe(write_model(tmp_path, "llama"), {"type": "full"}, batch_size=2)
    blueprint = build_blueprint(recipe, CPU)
    monkeypatch.setattr(torch.nn.functional, "silu", lambda hidden, inplace=False: failure(hidden))
    with pytest.raises(UnpredictableError) as error:
        predict(blueprint)
    assert str(error.value).startswith(f"memory cannot be predicted for this model ({reason}")
    assert "\n" not in str(error.value)
    assert caplog.records == [] and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("left", "right", "ends"),
    [((8, 16), (4, 16, 32), (2, 4, 6, 8)), ((16, 8), (8, 32), (2, 4, 6, 8)), ((4, 8, 16), (4, 16, 32), None)],
    ids=["forward", "weight-gradient", "batched"],
)
def test_products_of_experts_have_the_shapes_of_real_ones(left, right, ends, dtype):
    """Oracle: torch's own operation on real tensors."""
    tensors = [torch.ones(shape, dtype=dtype) for shape in (left, right)]
    ends = None if ends is None else torch.tensor(ends, dtype=torch.int32)
    real = functional.grouped_mm(*tensors, offs=ends)
    with FakeTensorMode() as mode:
        fake = grouped_mm(*(mode.from_tensor(t) for t in tensors), None if ends is None else mode.from_tensor(ends))
    assert (fake.shape, fake.dtype) == (real.shape, real.dtype)
    assert fake.untyped_storage().nbytes() == real.untyped_storage().nbytes()
