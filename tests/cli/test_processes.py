"""Commands as processes: what they import, and how they end."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from peftlab.reports import RunResult

from .commands import REPOSITORY, TINY, peftlab

HEAVY = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "numpy", "rich")
PROBE = """
import resource, sys
from peftlab.cli.app import run
code = run(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
loaded = sorted({name.partition(".")[0] for name in sys.modules} & set(sys.stdlib_module_names | set(%r)))
print(code, used.ru_utime + used.ru_stime, *loaded, file=sys.stderr)
""" % (HEAVY,)


def probe(*arguments: object) -> tuple[int, float, set[str]]:
    """Run a command; return its exit code, processor seconds and the heavy packages that it loaded."""
    command = [sys.executable, "-c", PROBE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    code, seconds, *loaded = done.stderr.splitlines()[-1].split()
    return int(code), float(seconds), set(loaded)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["check", TINY], ["schema"]])
def test_a_light_command_loads_nothing_heavy_and_is_quick(arguments):
    runs = [probe(*arguments) for _ in range(3)]
    assert {code for code, _, _ in runs} == {0}
    assert not runs[0][2] & set(HEAVY)
    # 0.1 to 0.25 s on a quiet core; a busy neighbour doubles the processor's time, torch alone would add seconds.
    assert min(seconds for _, seconds, _ in runs) < 0.7


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
    assert (done.stdout, done.stderr) == ('{\n  "$schema": "https', "")


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
        "train", TINY, "training.steps=2", "training.batch_size=2", "data.evaluation_rows=4", "run.log_every=1",
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


def test_a_run_is_evaluated_in_a_fresh_process_as_at_its_end(trained):
    folder, done = trained
    found = peftlab("evaluate", folder, "--json")
    after = json.loads(done.stdout)["metrics"]["after"]
    assert json.loads(found.stdout)["metrics"]["loss"] == pytest.approx(after["loss"], rel=1e-5)


def test_a_run_generates_text(trained):
    folder, _ = trained
    done = peftlab("generate", folder, "def f():\n    return 1\n# Summary:", "--json")
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout)["text"], str)


def test_a_run_is_not_overwritten_unasked(trained):
    folder, _ = trained
    done = peftlab("train", TINY, f"run.output={folder}")
    assert (done.returncode, done.stdout) == (8, "")
    assert "--overwrite" in done.stderr.splitlines()[-1]


def test_params_as_json_holds_exact_whole_numbers():
    found = json.loads(peftlab("params", TINY, "--json").stdout)
    assert set(found) == {"total", "trainable", "fraction", "active", "stored_bytes", "kinds", "layers"}
    # builtin:tiny: 6 layers, width 192, feed-forward 512; rank 8 on four square and three 192 x 512 projections.
    assert found["trainable"] == 6 * (4 * 8 * (192 + 192) + 3 * 8 * (192 + 512))
    assert found["stored_bytes"] == 4 * found["trainable"]
    for rows in (found["kinds"], found["layers"]):
        assert sum(row["total"] for row in rows) == found["total"]
        assert sum(row["trainable"] for row in rows) == found["trainable"]


def test_doctor_says_what_each_method_can_do():
    found = json.loads(peftlab("doctor", "--json").stdout)
    assert set(found["methods"]) == {"full", "lora", "qlora", "adapters", "prefix", "bitfit"}
    assert set(found["methods"]["qlora"]["variants"]) == {"nf4", "fp4", "int8"}
    assert all(method["usable"] for method in found["methods"].values())
    assert found["versions"]["torch"] and found["devices"][0]["device"] == "cpu"
