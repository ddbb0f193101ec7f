"""Accelerate, CUDA and the operating system's memory are used in `peftlab/world` only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import peftlab

PACKAGE = Path(peftlab.__file__).parent
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "world"]
# It watches the other processes of a launch, and asks nothing about memory.
EXCEPTIONS = {("runs/launch.py", "psutil")}
INSIDE = {"accelerate", "psutil", "torch.cuda"}


def used_by(tree: ast.AST) -> Iterator[str]:
    """Yield what of `INSIDE` a module imports or names."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        yield from (one for name in names for one in INSIDE if f"{name}.".startswith(f"{one}."))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_the_world_asks_for_processes_and_hardware(path):
    name = path.relative_to(PACKAGE).as_posix()
    used = {(name, one) for one in used_by(ast.parse(path.read_text(encoding="utf-8")))}
    assert not used - EXCEPTIONS


@pytest.mark.parametrize(
    "line", ["import torch.cuda", "from accelerate.utils import x", "torch.cuda.is_available()", "import psutil"]
)
def test_a_forbidden_use_would_be_found(line):
    assert list(used_by(ast.parse(line)))
