"""The runner of a proof: what a part has found survives its failure and its time limit; needs are checked first."""

from __future__ import annotations

import json
import sys
import time
import zipfile

import pytest

from tests.scripts.test_requirements import add_distribution

WRITES = """
import json, sys, time

def add(case, ok):
    with open(sys.argv[1], "a") as file:
        file.write(json.dumps({"case": case, "seconds": 0, "ok": ok, "says": "fine" if ok else "bad"}) + chr(10))

add("one", True)
"""
PROGRAMS = {
    "works": "",
    "fails": "raise ValueError('broken part')",
    "hangs": "add('two', False); time.sleep(60)",
}


@pytest.fixture
def proof(script, monkeypatch):
    """Return the runner's module, whose parts are the programs above."""
    runner = script("proof.runner")
    program = lambda part, findings, pretend: [sys.executable, "-c", WRITES + PROGRAMS[part.name], str(findings)]  # noqa: E731
    monkeypatch.setattr(runner, "child_command", program)
    monkeypatch.setattr(runner, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(runner, "SHORTEST_SECONDS", 0.0)
    return runner


def run_parts(script, proof, tmp_path, names, *, limit=60.0, seconds=2):
    record = script("proof.record").Record(tmp_path / "proof.json", {"date": "2026-12-01"})
    shown = []
    runner = proof.Runner(record, {}, time.monotonic() + limit, shown.append)
    runner.run_all([script("proof.parts").Part(name, f"title of {name}", seconds, "none") for name in names])
    return json.loads((tmp_path / "proof.json").read_text())["parts"], shown


def test_a_part_that_fails_or_hangs_costs_only_itself_and_keeps_what_it_found(script, proof, tmp_path):
    parts, shown = run_parts(script, proof, tmp_path, ["fails", "hangs", "works"])
    assert [part["status"] for part in parts.values()] == ["failed", "time limit", "done"]
    assert [len(part["cases"]) for part in parts.values()] == [1, 2, 1]
    assert "ValueError: broken part" in parts["fails"]["log"]
    assert script("proof.record").failed({"parts": parts}) == ["fails", "hangs", "hangs/two"]
    assert sum("fine" in line for line in shown) == 3


def test_at_the_limit_of_all_a_part_is_not_started_and_the_record_says_so(script, proof, tmp_path):
    parts, _ = run_parts(script, proof, tmp_path, ["works"], limit=-1.0)
    assert parts == {"works": {"status": "not run", "title": "title of works"}}


def test_an_error_in_a_case_is_its_finding_and_the_next_case_runs(script, tmp_path):
    bench = script("proof.bench").Bench(tmp_path / "findings", tmp_path)
    with bench.case("broken"):
        raise RuntimeError("no such kernel")
    with bench.case("whole") as case:
        case |= {"ok": True}
    broken, whole = script("proof.record").read_findings(tmp_path / "findings")
    assert broken["ok"] is False and broken["error"] == "RuntimeError: no such kernel"
    assert whole["ok"] is True


def test_every_part_has_a_module_and_a_title_of_one_line(script):
    for part in script("proof.parts").PARTS:
        assert callable(script(f"proof.cases.{part.module}").run)
        assert len(f"{part.name:<10} {part.seconds:>4} s  {part.title}") <= 110


def test_packages_for_another_python_end_it_before_anything_runs(script, tmp_path, capsys):
    add_distribution(tmp_path, "alpha", "1", tag="cp399-cp399-manylinux_2_17_x86_64")
    assert script("proof.main").main(["--pretend", "--packages", str(tmp_path)]) == 9
    assert "alpha: built for cp399" in capsys.readouterr().out


def test_a_folder_of_packages_that_is_not_there_is_named(script, tmp_path, capsys):
    assert script("proof.main").main(["--needs", "--packages", str(tmp_path / "none")]) == 9
    assert f"{tmp_path / 'none'}: no such folder" in capsys.readouterr().out


def test_without_a_card_one_line_says_what_to_do(script, monkeypatch, capsys):
    main = script("proof.main")
    monkeypatch.setattr(main, "describe", lambda environment: {"machine": {"devices": []}, "versions": {}})
    assert main.main([]) == 9
    assert "--pretend tries every part on the CPU" in capsys.readouterr().err


def test_a_gathered_wheel_has_two_of_the_libraries_and_no_tests(script, tmp_path):
    gathering = script("proof.gathering")
    wheel = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    names = ["bitsandbytes/nn.py", "bitsandbytes/tests/test_nn.py", "bitsandbytes-1.dist-info/METADATA"]
    names += [f"bitsandbytes/libbitsandbytes_{kind}.so" for kind in ("cpu", "cuda118", "cuda130", "rocm72", "xpu2025")]
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in [*names, "bitsandbytes-1.data/purelib/extra.py", "bitsandbytes-1.data/scripts/tool"]:
            archive.writestr(name, "content")
    gathering.unpack(wheel, tmp_path / "packages", "130")
    found = sorted(
        str(path.relative_to(tmp_path / "packages")) for path in (tmp_path / "packages").rglob("*") if path.is_file()
    )
    assert found == [
        "bitsandbytes-1.dist-info/METADATA",
        "bitsandbytes/libbitsandbytes_cpu.so",
        "bitsandbytes/libbitsandbytes_cuda130.so",
        "bitsandbytes/nn.py",
        "extra.py",
    ]


def test_gathered_versions_are_those_of_the_constraints(script):
    wanted = script("proof.gathering").pinned(["ruamel.yaml", "Rouge_Score", "nowhere"])
    assert wanted["ruamel-yaml"].startswith("ruamel.yaml==") and wanted["rouge-score"].startswith("rouge_score==")
    assert wanted["nowhere"] == "nowhere"


def test_a_folder_with_other_files_is_never_replaced(script, tmp_path, capsys):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "thesis.txt").write_text("years of work")
    (tmp_path / "fresh").mkdir()
    with pytest.raises(SystemExit):
        script("proof.gathering").replace(tmp_path / "fresh", tmp_path / "target")
    assert (tmp_path / "target" / "thesis.txt").read_text() == "years of work"
    assert "has other files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "published"),
    [
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-2-13b", 13_015_864_320),
        ("llama-3.1-70b", 70_553_706_496),
    ],
)
def test_the_shapes_have_the_published_numbers_of_parameters(script, tmp_path, shape, published):
    from peftlab.runs.loading import read_shape

    shapes = script("proof.shapes")
    assert read_shape(shapes.Case(shape, "lora", 1, 8).recipe(tmp_path, "cpu"), None).total == published
