"""Imports point one way: no layer imports from one above it, and the lowest is free of torch."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "peftlab"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    {"errors", "files", "secrets", "patterns", "shapes", "quantities", "reports", "architectures"}
    | {"recipe", "methods", "models.reference", "memory.sizes", "evaluation.metrics"},
    {"device", "loss", "models", "parameters", "nn", "data", "memory", "evaluation", "checkpoint", "builtin"},
    {"training"},
    {"runs", "budgets", "comparison"},
    {"cli", "__main__"},
]
TORCH_FREE_LIBRARIES = {"pydantic", "pydantic_core", "ruamel", "typing_extensions"}
COMMAND_LIBRARIES = TORCH_FREE_LIBRARIES | {"typer", "rich"}


def name_of(path: Path) -> str:
    """Return a module's name without the package's: `models.reference`, empty for the package itself."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def layer_of(name: str) -> int:
    parts = name.split(".")
    for length in (2, 1):
        for layer, members in enumerate(LAYERS):
            if ".".join(parts[:length]) in members:
                return layer
    raise AssertionError(f"{name} has no layer: enter it into LAYERS")


def imports_of(tree: ast.AST, inside_functions: bool) -> Iterator[str]:
    """Yield the absolute names that a module imports, at module level or anywhere."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.FunctionDef) and not inside_functions:
            continue
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        else:
            yield from imports_of(node, inside_functions)


def own_imports(path: Path, inside_functions: bool) -> set[str]:
    """Return the modules of this package that a module imports, without the package's name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {
        name.removeprefix("peftlab.") for name in imports_of(tree, inside_functions) if name.startswith("peftlab.")
    }
    return names - {"__version__"}


def libraries(path: Path) -> set[str]:
    """Return the third-party packages that a module imports at module level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    roots = {name.partition(".")[0] for name in imports_of(tree, inside_functions=False)}
    return roots - set(sys.stdlib_module_names) - {"peftlab"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path):
    name = name_of(path)
    if not name:
        assert not own_imports(path, inside_functions=True), "the package itself looks its names up when used"
        return
    # `Method.apply`, `save` and `load` reach up to torch and the model parts, but only when they run.
    inside_functions = not name.startswith("methods")
    upward = [other for other in own_imports(path, inside_functions) if layer_of(other) > layer_of(name)]
    assert not upward, f"{name} (layer {layer_of(name)}) imports {upward}"


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path)], ids=name_of)
def test_what_a_light_command_loads_is_free_of_torch(path):
    name = name_of(path)
    if layer_of(name) == 0:
        assert libraries(path) <= TORCH_FREE_LIBRARIES
    if name.startswith("cli") or name == "__main__":
        assert libraries(path) <= COMMAND_LIBRARIES


def test_an_upward_import_would_be_seen():
    tree = ast.parse("def f():\n    from peftlab.runs.run import train\n")
    assert list(imports_of(tree, inside_functions=True)) == ["peftlab.runs.run.train"]
    assert list(imports_of(tree, inside_functions=False)) == []
    assert layer_of("runs.run.train") > layer_of("models.load") > layer_of("models.reference")
