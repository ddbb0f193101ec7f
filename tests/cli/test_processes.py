"""Commands as processes: what they import, and how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from peftlab.cli.app import run
from peftlab.reports import RunResult
from tests.runs.recipes import shallow_model

from .commands import REPOSITORY, TINY, answer_apart, peftlab

HEAVY = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "numpy", "rich"}
PROBE = """
import resource, sys
from peftlab.cli.app import run
code = run(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
print(code, used.ru_utime + used.ru_stime, *sys.modules, file=sys.stderr)
"""


def probe(*arguments: object) -> tuple[int, float, set[str]]:
    """Run a command; return its exit code, processor seconds and the modules that it loaded."""
    command = [sys.executable, "-c", PROBE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    code, seconds, *loaded = done.stderr.splitlines()[-1].split()
    return int(code), float(seconds), set(loaded)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["check", TINY], ["schema"]])
def test_a_light_command_loads_nothing_heavy_and_is_quick(arguments):
    runs = [probe(*arguments) for _ in range(3)]
    assert {code for code, _, _ in runs} == {0}
    assert not runs[0][2] & HEAVY
    # 0.1 to 0.4 s on a quiet core; a busy neighbour doubles the processor's time, torch alone would add seconds.
    assert min(seconds for _, seconds, _ in runs) < 0.9


def test_importing_the_package_loads_no_torch():
    code = "import sys, peftlab; peftlab.load_recipe, peftlab.LoRA(rank=4), dir(peftlab); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout == "False\n"


def test_every_public_name_is_there():
    import peftlab

    for name in peftlab.__all__:
        assert getattr(peftlab, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        peftlab.nothing  # noqa: B018


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m peftlab schema | head -c 20"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.stdout, done.stderr) == ('{\n  "$schema": "http', "")


@pytest.mark.parametrize(
    ("arguments", "code"), [("schema", 0), ("docs", 0), ("--help", 0), ("check /nope", 2), ("evaluate /nope --json", 8)]
)
def test_a_closed_output_is_quiet_and_the_exit_code_is_as_before(arguments, code):
    """Standard output is a pipe whose reader has ended before the command begins."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "peftlab", *arguments.split()]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
    finally:
        os.close(writer)
    assert done.returncode == code
    assert all(line.startswith("peftlab: error: ") for line in done.stderr.splitlines())


def test_a_terminal_that_knows_only_ascii_is_no_error(tmp_path):
    path = tmp_path / "é.yaml"
    path.write_text(TINY.read_text())
    done = peftlab("check", path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\\xe9.yaml\n")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps, and what `train --json` printed."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    done = peftlab(
        "train", TINY, f"model.name={shallow_model()}", "training.steps=2", "training.batch_size=2",
        "data.evaluation_rows=4", "run.log_every=1",
        "evaluation.generation.max_new_tokens=4", f"run.output={folder}", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done


def test_train_prints_its_result_as_one_object_and_its_progress_elsewhere(trained):
    _, done = trained
    result = RunResult.model_validate(json.loads(done.stdout), extra="ignore")
    assert result.status == "finished" and result.progress.step == 2
    assert set(result.metrics) == {"before", "after"}
    assert "2/2" in done.stderr


def test_a_run_is_evaluated_in_a_fresh_process_as_at_its_end(trained, tmp_path):
    folder, done = trained
    found = answer_apart("evaluate", folder, log=tmp_path / "log")
    after = json.loads(done.stdout)["metrics"]["after"]
    assert found["metrics"]["loss"] == pytest.approx(after["loss"], rel=1e-5)


def test_a_run_generates_text(trained, capfd):
    folder, _ = trained
    assert run(["generate", str(folder), "def f():\n    return 1\n# Summary:", "--json"]) == 0
    assert isinstance(json.loads(capfd.readouterr().out)["text"], str)


def test_a_run_is_not_overwritten_unasked(trained, capfd):
    folder, _ = trained
    assert run(["train", str(TINY), f"run.output={folder}"]) == 8
    out, errors = capfd.readouterr()
    assert out == "" and "--overwrite" in errors.splitlines()[-1]
