"""No pickle is ever written or read: neither by a call in the package nor as a file of a checkpoint."""

from __future__ import annotations

import ast
import json
import pickletools

import pytest
import torch

from peftlab.checkpoint.randomness import capture_random_state
from peftlab.checkpoint.store import write_checkpoint
from peftlab.checkpoint.tensors import save_state
from peftlab.data.kept_examples import SpooledExamples
from peftlab.tasks.formats import Text
from tests.conftest import REPOSITORY

MODULES = sorted((REPOSITORY / "peftlab").rglob("*.py"))
PICKLING_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
PICKLING_CALLS = {
    "torch.save",
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "torch.package",
    "accelerator.save",
    "accelerator.save_state",
    "accelerator.load_state",
    "np.save",
    "np.load",
    "numpy.save",
    "numpy.load",
}
PICKLING_NAMES = {"to_pickle", "read_pickle"}
# Its file has no name: no other process can write what it reads.
NAMELESS = "kept_examples.py"


def pickling_uses(source: str) -> list[str]:
    """Return what in a module reads or writes pickles."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in PICKLING_MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if name in PICKLING_CALLS or name.partition(".")[0] in PICKLING_MODULES]
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node).removeprefix("self.")
            found += [name] if name in PICKLING_CALLS or node.attr in PICKLING_NAMES else []
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_no_module_reads_or_writes_pickles(path):
    allowed = ["pickle"] if path.name == NAMELESS else []
    assert pickling_uses(path.read_text(encoding="utf-8")) == allowed


def test_spooled_examples_have_no_file_that_another_process_could_write(tmp_path, monkeypatch):
    monkeypatch.setattr("peftlab.data.kept_examples.SPOOLED_BYTES", 1)
    examples = SpooledExamples(tmp_path)
    examples.append(Text("a text that is longer than what stays in memory"))
    assert examples[0].text.startswith("a text")
    assert list(tmp_path.iterdir()) == []
    examples.close()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "def f():\n    import joblib.memory",
        "torch.save(x, p)",
        "self.accelerator.save_state(p)",
        "from torch import load",
        "frame.to_pickle(p)",
    ],
)
def test_a_pickle_would_be_seen(source):
    assert len(pickling_uses(source)) == 1


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path):
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()

    def write(folder):
        save_state(folder, "optimizer", optimizer.state_dict())
        save_state(folder, "random", capture_random_state())

    folder = write_checkpoint(tmp_path, 1, write, {})
    kinds = {".json": 3, ".safetensors": 2}
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {kind: sum(path.suffix == kind for path in files) for kind in kinds} == kinds and len(files) == 5
    for path in files:
        content = path.read_bytes()
        header = content if path.suffix == ".json" else content[8 : 8 + int.from_bytes(content[:8], "little")]
        json.loads(header)
        with pytest.raises(ValueError):
            list(pickletools.genops(content))
