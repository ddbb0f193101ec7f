"""What commands print where, and the exit code of each kind of error."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import sys
from pathlib import Path

import pytest

from peftlab.cli.app import run
from peftlab.errors import EXIT_CODES
from peftlab.reports import ParameterReport
from peftlab.runs import params

from .commands import TINY


@pytest.fixture
def recipe(tmp_path):
    """A good recipe in a folder of its own."""
    return shutil.copy(TINY, tmp_path / "lora.yaml")


@pytest.fixture
def answer(capfd):
    """Run a command line in this process; return exit code, standard output, lines of standard error."""

    def call(*arguments):
        code = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err.splitlines()

    return call


def test_help_names_every_command_and_every_exit_code(answer):
    code, out, errors = answer("--help")
    assert (code, errors) == (0, [])
    told = ("check", "budget", "train", "params", "evaluate", "generate", "compare", "report", "schema", "doctor")
    for command in told:
        assert f"\n  {command} " in out
    for number, meaning in EXIT_CODES.items():
        assert f"{number}  {meaning}\n" in out
    assert max(map(len, out.splitlines())) <= 80


def test_no_arguments_show_the_help(answer):
    assert answer() == answer("--help")


def test_version(answer):
    from peftlab import __version__

    assert answer("--version") == (0, f"peftlab {__version__}\n", [])


def test_check_says_ok_of_every_good_recipe(answer, recipe):
    assert answer("check", recipe, TINY) == (0, f"ok  {recipe}\nok  {TINY}\n", [])


def test_check_lists_the_problems_of_every_bad_recipe(answer, recipe, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("model: {name: x}\nmethod: {type: full, x: 1}\ndata: {train: y}\n")
    code, out, errors = answer("check", recipe, bad, tmp_path / "none.yaml")
    assert (code, errors) == (2, [])
    assert [line.partition(" ")[0] for line in out.splitlines()] == [
        "ok", f"{bad}:1:", f"{bad}:2:", f"{tmp_path / 'none.yaml'}:"
    ]  # fmt: skip


def test_check_as_json_is_one_object(answer, recipe):
    code, out, _ = answer("check", recipe, "method.rank=0", "--json")
    found = json.loads(out)
    assert code == 2
    assert found["ok"] is False
    (problem,) = found["recipes"][0]["problems"]
    assert problem == {
        "path": "method.rank",
        "message": "must be a whole number of at least 1, got 0",
        "file": "command line",
        "line": None,
    }


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing argument 'RECIPE'"),
        (["check", "--jsn"], "No such option: --jsn"),
        (["check", "method.rank=3"], "name at least one recipe file to check"),
        (["compare", "method.rank=3"], "name at least one recipe file to compare"),
        (["plan", "builtin:tiny", "--devices", "4"], "--devices is of one method: name a recipe file, or a model with"),
        (["plan", "builtin:tiny", "--fit", "--strategy", "zero2"], "--fit, --strategy are of one method"),
        (["plan", str(TINY), "--fit", "--memory", "2GiB", "--maximize", "batch_size"], "--maximize is of one strategy"),
        (["plan", str(TINY), "--fit", "--memory", "2GiB", "--strategy", "fsdp2"], "--strategy is of one strategy"),
        (["generate", "folder"], "give one of a PROMPT, --chat FILE and --prompts FILE"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_code_2(answer, arguments, line):
    code, out, errors = answer(*arguments)
    assert (code, out, len(errors)) == (2, "", 1)
    assert errors[0].startswith(f"peftlab: error: {line}")


def test_a_usage_error_as_json_is_one_object(answer):
    code, out, errors = answer("params", "--json")
    assert (code, len(errors)) == (2, 1)
    assert json.loads(out)["error"]["exit_code"] == 2


ERRORS = [
    ("params", ["method.rank=0"], 2, "command line: method.rank: must be a whole number"),
    ("params", ["model.name=builtin:nothing"], 3, "model 'builtin:nothing' does not ship with peftlab"),
    ("params", ["model.name=no/such/model"], 3, "model 'no/such/model': no such file or folder: "),
    ("params", ["model.name=some/model"], 3, "model 'some/model' is not in the Hugging Face cache"),
    ("train", ["data.train=nothing.jsonl"], 4, "nothing.jsonl: no such file"),
    ("params", ["method.rank=999"], 5, "command line: method.rank: model.layers.0.self_attn.q_proj has 192 inputs"),
]


@pytest.mark.parametrize(("command", "overrides", "code", "line"), ERRORS)
def test_a_foreseeable_error_is_one_line_with_its_exit_code(answer, recipe, tmp_path, command, overrides, code, line):
    output = [f"run.output={tmp_path / 'run'}"] if command == "train" else []
    found, out, errors = answer(command, recipe, *overrides, *output)
    assert (found, out, len(errors)) == (code, "", 1)
    assert errors[0].startswith(f"peftlab: error: {line}")


def test_a_folder_that_is_no_run_is_one_line(answer, tmp_path):
    for command in (["evaluate", tmp_path], ["generate", tmp_path, "prompt"]):
        code, out, errors = answer(*command)
        assert (code, out, len(errors)) == (8, "", 1)


def test_a_method_that_does_not_fit_names_file_and_line(answer, recipe):
    text = Path(recipe).read_text()
    assert text.count("rank: 8") == 1
    Path(recipe).write_text(text.replace("rank: 8", "rank: 999"))
    line = text[: text.index("rank: 8")].count("\n") + 1
    code, _, errors = answer("params", recipe)
    assert code == 5
    assert errors[0].startswith(
        f"peftlab: error: {recipe}:{line}: method.rank: model.layers.0.self_attn.q_proj has 192 inputs"
    )


def test_an_error_as_json_is_one_object_beside_the_line(answer, recipe):
    code, out, errors = answer("params", recipe, "method.rank=0", "method.alpha=0", "--json")
    error = json.loads(out)["error"]
    assert (code, error["exit_code"], error["kind"]) == (2, 2, "RecipeError")
    assert [problem["path"] for problem in error["problems"]] == ["method.rank", "method.alpha"]
    assert [f"peftlab: error: {line}" for line in error["lines"]] == errors


def test_a_fault_inside_peftlab_says_so_in_one_line_and_debug_shows_where(answer, recipe, monkeypatch):
    def fail(_):
        raise KeyError("a\nb")

    monkeypatch.setattr(params, "count", fail)
    code, out, errors = answer("params", recipe)
    assert (code, out, len(errors)) == (1, "", 1)
    assert errors[0].startswith("peftlab: error: KeyError: ") and "--debug" in errors[0]
    code, _, errors = answer("params", recipe, "--debug")
    assert code == 1 and errors[0].startswith("Traceback") and len(errors) > 5


def test_an_interrupt_is_one_line_and_exit_code_130(answer, recipe, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(params, "count", interrupt)
    assert answer("params", recipe) == (130, "", ["peftlab: interrupted"])


REPORT = ParameterReport(total=10, trainable=1, active=10, stored_bytes=4, kinds=[], layers=[])


def test_standard_output_contains_only_the_object_whoever_prints(answer, recipe, monkeypatch):
    def chatter(_):
        print("from python")
        os.write(1, b"from a library in C\n")
        os.system("echo from a child process")
        return REPORT

    monkeypatch.setattr(params, "count", chatter)
    code, out, errors = answer("params", recipe, "--json")
    assert json.loads(out) == REPORT.model_dump()
    assert {"from python", "from a library in C", "from a child process"} <= set(errors)


def test_numbers_that_json_lacks_are_null(answer, recipe, monkeypatch):
    from peftlab.runs import use

    found = use.RunEvaluation({"loss": float("nan")}, {}, {}, [])
    monkeypatch.setattr(use, "evaluate_run", lambda *_, **__: found)
    _, out, _ = answer("evaluate", recipe, "--json")
    assert json.loads(out, parse_constant=pytest.fail)["metrics"] == {"loss": None}


def test_only_the_main_process_of_a_launch_answers(answer, recipe, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(params, "count", lambda _: REPORT)
    assert answer("params", recipe, "--json") == (0, "", [])
    assert answer("params", recipe, "method.rank=0", "--json") == (2, "", [])


def test_what_a_machine_lacks_is_said_by_its_first_process(answer, recipe, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = []
    for rank, local in ((0, 0), (1, 1), (2, 0)):  # two machines
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(local))
        code, _, errors = answer("train", recipe, "run.device=cuda", f"run.output={tmp_path / 'run'}")
        assert code == 9
        said.append([line for line in errors if "torch sees no CUDA device" in line])
    assert [len(lines) for lines in said] == [1, 0, 1]


def test_params_as_json_holds_exact_whole_numbers(answer):
    found = json.loads(answer("params", TINY, "--json")[1])
    assert set(found) == {"total", "trainable", "fraction", "active", "stored_bytes", "kinds", "layers", "notes"}
    # builtin:tiny: 6 layers, width 192, feed-forward 512; rank 8 on four square and three 192 x 512 projections.
    assert found["trainable"] == 6 * (4 * 8 * (192 + 192) + 3 * 8 * (192 + 512))
    assert found["stored_bytes"] == 4 * found["trainable"]
    for rows in (found["kinds"], found["layers"]):
        assert sum(row["total"] for row in rows) == found["total"]
        assert sum(row["trainable"] for row in rows) == found["trainable"]


def test_doctor_says_what_each_method_can_do(answer):
    found = json.loads(answer("doctor", "--json")[1])
    assert set(found["methods"]) == {"full", "lora", "qlora", "adapters", "prefix", "bitfit"}
    assert set(found["methods"]["qlora"]["variants"]) == {"nf4", "fp4", "int8"}
    assert all(method["usable"] for method in found["methods"].values())
    assert found["versions"]["torch"] and found["devices"][0]["device"] == "cpu"


COMPARISON = TINY.parents[1] / "comparisons" / "tiny.yaml"
EXPECTED = ("--spread", "seed=0.01,row=0.2,rows=400")


def test_power_before_the_first_run_is_planned_from_what_is_expected(answer, tmp_path):
    code, out, _ = answer("compare", COMPARISON, "--power", "0.05", *EXPECTED, "--json", "--output", tmp_path / "none")
    (plan,) = json.loads(out)["plans"]
    assert code == 0 and plan["pairs"] == 15 and not (tmp_path / "none").exists()
    enough = plan["seeds_needed"]
    chances = {one["seeds"]: one["chance"] for one in plan["chances"] if one["rows"] == 400}
    assert all((chance >= 0.8) == (seeds >= enough) for seeds, chance in chances.items())
    _, shown, _ = answer("compare", COMPARISON, "--power", "0.05", *EXPECTED)
    assert f"80 % need: {enough} seeds on 400 rows" in shown and max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(("arguments", "told"), [
    (["--power", "0"], "--power 0: must be a difference greater than 0"),
    (["--power", "0.1", "--seeds", "5", "--rates", "1e-3,1e-2"], "plans the seeds itself; leave out --seeds, --rates"),
    (["--power", "0.1"], "has no comparison with two seeds"),
    (["--power", "0.1", "--spread", "seed=1"], "write two standard deviations and the number of test rows"),
    (["--power", "0.1", "--spread", "seed=a,row=1,rows=9"], "write two standard deviations"),
    (["--power", "0.1", "--spread", "seed=0,row=0,rows=9"], "write two standard deviations"),
    (["--power", "0.1", "--spread", "seed=1,row=1,rows=9,seed=0.1"], "write two standard deviations"),
    (["--power", "0.1", "--spread", "seed=1,row=1,rows=9.5"], "write two standard deviations"),
    (["--power", "0.1", "--spread", "seed=1,row=1,rows=5"], "fewer than 6 rows show no chance of theirs"),
    (["--power", "0.1", "--metric", "los", "--spread", "seed=1,row=1,rows=9"], "unknown metric 'los'"),
    (["--power", "2", "--metric", "exact_match", "--spread", "seed=1,row=1,rows=9"],
     "two values of exact_match, which is from 0 to 1, differ by less; 2 % are 0.02"),
    (["--spread", "seed=1"], "--spread is used with --power only"),
])  # fmt: skip
def test_power_says_what_it_cannot_plan(answer, tmp_path, arguments, told):
    code, _, errors = answer("compare", COMPARISON, *arguments, "--output", tmp_path / "none")
    assert code == 2 and told in errors[0] and len(errors) == 1


@pytest.mark.parametrize("arguments", [("params", TINY), ("train", TINY), ("runs", "list"), ("doctor",)])
def test_a_deleted_current_folder_is_one_line_about_it(answer, tmp_path, monkeypatch, arguments):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, _, errors = answer(*arguments)
    told = "the current folder no longer exists; change to another one with cd, and try again"
    assert (code, errors) == (8, [f"peftlab: error: {told}"])


@pytest.mark.parametrize(("arguments", "told"), [
    (["--frontier", "trainable=1k"], "--frontier: 'trainable=1k' is not a valid frontier; write trainable=10k..10M"),
    (["--frontier", "trainble=1k..2k"], "--frontier: unknown budget 'trainble'; did you mean 'trainable'?"),
    (["--budget", "trainable=1k", "--budget", "memory=8"], "--budget: memory '8' has no unit"),
])  # fmt: skip
def test_a_budget_that_cannot_be_read_names_its_option(answer, tmp_path, arguments, told):
    code, _, errors = answer("compare", COMPARISON, *arguments, "--output", tmp_path / "none")
    assert code == 2 and told in errors[0] and len(errors) == 1 and not (tmp_path / "none").exists()


def run_without_room(log: Path) -> None:
    """Be a command of which no line of its log can be written."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.exit(run(["train", "nothing.yaml"]))


def test_a_log_on_a_full_disk_leaves_the_exit_code(tmp_path):
    command = multiprocessing.get_context("fork").Process(target=run_without_room, args=(tmp_path / "log",))
    command.start()
    command.join(60)
    assert command.exitcode == 2 and (tmp_path / "log").read_text() == ""
