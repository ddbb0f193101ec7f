"""Imports point one way: no layer imports from one above it, nothing in a circle, and the lowest is free of torch."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Set
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "peftlab"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    {
        "errors",
        "files",
        "secrets",
        "patterns",
        "shapes",
        "nested",
        "quantities",
        "reports",
        "architectures",
        "family_traits",
        "registry",
        "families",
    }
    | {"recipe", "methods", "tasks", "optimizers", "models.reference", "sizes", "metrics", "conversion"}
    | {"tables"},
    {"world", "losses", "optimization", "models", "parameters", "nn", "data", "memory", "evaluation"}
    | {"speed"}
    | {"checkpoint", "builtin", "docs"},
    {"training"},
    {"runs", "budgets", "comparison", "export", "studies"},
    {"cli", "__main__"},
]
# Rooms of layer 0 that import the torch parts inside functions, so only when those run.
LAZY_ROOMS = ("methods", "tasks", "optimizers")
DATA_ROOMS = {"builtin", "docs"}
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


def imports_of(tree: ast.AST, inside_functions: bool, type_checking: bool = False) -> Iterator[str]:
    """Yield the absolute names that a module imports, at module level or anywhere, for the type checker or not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.FunctionDef) and not inside_functions:
            continue
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not type_checking:
            continue
        else:
            yield from imports_of(node, inside_functions, type_checking)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def own_imports(path: Path, inside_functions: bool, type_checking: bool = False) -> set[str]:
    """Return the names of this package that a module imports, without the package's name."""
    names = imports_of(tree_of(path), inside_functions, type_checking)
    return {name.removeprefix("peftlab.") for name in names if name.startswith("peftlab.")} - {"__version__"}


def libraries(path: Path) -> set[str]:
    """Return the third-party packages that a module imports at module level."""
    roots = {name.partition(".")[0] for name in imports_of(tree_of(path), inside_functions=False)}
    return roots - set(sys.stdlib_module_names) - {"peftlab"}


def room_of(name: str) -> str:
    return name.partition(".")[0]


def module_of(imported: str, names: Set[str]) -> str:
    """Return the module that an imported name is or is defined in, empty for the package itself."""
    while imported and imported not in names:
        imported = imported.rpartition(".")[0]
    return imported


def import_graph() -> dict[str, set[str]]:
    """Return the modules that each module imports, anywhere and also for the type checker only.

    Left out are the package itself, which looks its names up when used, and what `LAZY_ROOMS` import from upper
    layers inside functions.
    """
    paths = {name_of(path): path for path in MODULES if name_of(path)}
    graph = {}
    for name, path in paths.items():
        imported = own_imports(path, inside_functions=True, type_checking=True)
        if room_of(name) in LAZY_ROOMS:
            at_import = own_imports(path, inside_functions=False, type_checking=True)
            imported = {other for other in imported if other in at_import or layer_of(other) <= layer_of(name)}
        graph[name] = {module_of(other, paths.keys()) for other in imported} - {name, ""}
    return graph


def room_graph(graph: Mapping[str, Set[str]]) -> dict[str, set[str]]:
    """Return the rooms (folders, and single modules) that each room imports."""
    rooms: dict[str, set[str]] = {room_of(name): set() for name in graph}
    for name, imported in graph.items():
        rooms[room_of(name)] |= {room_of(other) for other in imported} - {room_of(name)}
    return rooms


def reachable(graph: Mapping[str, Set[str]], start: str) -> set[str]:
    """Return the nodes that can be reached from `start` over at least one edge."""
    found: set[str] = set()
    waiting = [*graph[start]]
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += graph[name]
    return found


def find_cycles(graph: Mapping[str, Set[str]]) -> list[list[str]]:
    """Return the strongly connected components in which a node reaches itself, each sorted."""
    reached = {name: reachable(graph, name) for name in graph}
    cycles = {tuple(sorted(b for b in reached[a] if a in reached[b])) for a in graph if a in reached[a]}
    return [list(cycle) for cycle in sorted(cycles)]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path):
    name = name_of(path)
    if not name:
        assert not own_imports(path, inside_functions=True), "the package itself looks its names up when used"
        return
    inside_functions = room_of(name) not in LAZY_ROOMS
    upward = [other for other in own_imports(path, inside_functions) if layer_of(other) > layer_of(name)]
    assert not upward, f"{name} (layer {layer_of(name)}) imports {upward}"


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path)], ids=name_of)
def test_what_a_light_command_loads_is_free_of_torch(path):
    name = name_of(path)
    if layer_of(name) == 0:
        assert libraries(path) <= TORCH_FREE_LIBRARIES
    if name.startswith("cli") or name == "__main__":
        assert libraries(path) <= COMMAND_LIBRARIES


@pytest.mark.parametrize("level", ["modules", "rooms"])
def test_no_import_cycles(level):
    graph = import_graph()
    assert find_cycles(graph if level == "modules" else room_graph(graph)) == []


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(name_of(path)) in DATA_ROOMS], ids=name_of)
def test_a_room_of_data_has_no_code(path):
    assert [type(node) for node in tree_of(path).body] in ([], [ast.Expr])


def test_a_cycle_would_be_seen():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"a"}, "f.x": {"g"}, "g": {"f.y"}, "f.y": set()}
    assert find_cycles(graph) == [["a", "b", "c"]]
    assert find_cycles(room_graph(graph)) == [["a", "b", "c"], ["f", "g"]]
    tree = ast.parse("if TYPE_CHECKING:\n    from peftlab.runs.run import Run\n")
    assert list(imports_of(tree, inside_functions=True)) == []
    assert list(imports_of(tree, inside_functions=True, type_checking=True)) == ["peftlab.runs.run.Run"]


def test_an_upward_import_would_be_seen():
    tree = ast.parse("def f():\n    from peftlab.runs.run import train\n")
    assert list(imports_of(tree, inside_functions=True)) == ["peftlab.runs.run.train"]
    assert list(imports_of(tree, inside_functions=False)) == []
    assert layer_of("runs.run.train") > layer_of("models.load") > layer_of("models.reference")
