"""What a run tells its trackers: the recipe, what trains, its curves, how it ended, its examples; never a secret."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from accelerate.tracking import GeneralTracker

from peftlab.recipe.schema import Recipe
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from tests.export.peers import FOLDER, python_of
from tests.runs.recipes import shallow_sections

TOLD: dict[str, list] = {"described": [], "logged": []}


class Memo(GeneralTracker):
    """Keeps what it is told."""

    name, requires_logging_directory, tracker = "memo", False, None

    def __init__(self, run_name=None, **_):
        super().__init__()

    def start(self):
        pass

    def store_init_configuration(self, values):
        TOLD["described"].append(values)

    def log(self, values, step=None, **_):
        TOLD["logged"].append((step, values))


def run(folder, *trackers: str):
    sections = shallow_sections("lora", folder, steps=2, batch_size=2)
    sections["data"] |= {"train_rows": 4, "evaluation_rows": 2, "max_length": 32}
    sections["evaluation"]["generation"] |= {"max_new_tokens": 2}
    sections["run"] |= {"log_every": 1, "plan": "report", "trackers": trackers}
    return train(Recipe.model_validate(sections), display=NoDisplay())


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr("peftlab.world.base.World.open_trackers", lambda *arguments: [Memo()])
    patch.setattr("peftlab.runs.run.refuse_missing_trackers", lambda names: None)
    with patch.context():
        result = run(tmp_path_factory.mktemp("told") / "run", "memo")
    patch.undo()
    return result, TOLD


def test_a_tracker_is_told_what_the_run_is_once_and_first(told):
    result, found = told
    (facts,) = found["described"]
    assert facts["method.rank"] == 4
    assert facts["parameters.trainable"] == result.parameters.trainable
    assert facts["memory.predicted_peak_bytes"] == result.memory["predicted"].peak_bytes
    assert all(value is None or isinstance(value, (bool, int, float, str)) for value in facts.values())


def test_a_tracker_gets_curves_final_figures_and_examples(told):
    result, found = told
    numbers = {name: value for _, values in found["logged"] for name, value in values.items()}
    assert {step for step, values in found["logged"] if "train/loss" in values} == {1, 2}
    assert numbers["final/after.loss"] == result.metrics["after"]["loss"]
    assert numbers["final/memory.peak_bytes"] == result.memory["measured"].peak_bytes
    assert result.examples[0]["after"] in numbers["examples/1"]
    assert "- trainable: " in numbers["summary"]


RUN = """
import json, sys
from pathlib import Path
from tests.runs.test_tracking import run
result = run(Path(sys.argv[1]), sys.argv[2])
print("FOUND", json.dumps([result.status, *result.notes]))
"""


def python_with(library: str) -> str:
    """Return a Python that has a tracker's library: this one, or that of an environment of the peers."""
    if importlib.util.find_spec(library) is not None:
        return sys.executable
    if not (FOLDER / library / ".complete").exists():
        pytest.skip(f"{library} is not installed (scripts/fetch_peers has an environment for aim)")
    return python_of(library)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio", "aim"])
def test_the_real_library_writes_without_a_network(name, tmp_path):
    settings = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path), "PYTHONPATH": str(FOLDER.parent)}
    settings |= {"MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
    found = subprocess.run(
        [python_with(name), "-c", RUN, str(tmp_path / "run"), name],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | settings, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    status, *notes = json.loads(found.stdout.partition("FOUND ")[2])
    assert status == "finished" and not [note for note in notes if "run.trackers" in note], notes
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"- trainable: " in path.read_bytes() for path in written), "the summary is in no file of the library"
