"""Recipe files and overrides that are wrong: one line each, exit code 2, and no run directory."""

from __future__ import annotations

import pytest

from peftlab.recipe.limits import LARGEST_COUNT

from ..pace import costs_at_most

VALID = "model: {name: builtin:tiny}\nmethod: {type: bitfit}\ndata: {train: x}\n"
VALID += "training: {steps: 1, learning_rate: 1}\n"
FILES = {
    "empty": (b"", "is empty; a recipe has the sections model, method, data and training"),
    "a list": (b"- model\n- method\n", "is not a mapping; a recipe starts with sections"),
    "a number": (b"3\n", "is not a mapping"),
    "too large": (b"#" * 1_000_001, "is larger than 1,000,000 bytes, too large for a recipe"),
    "UTF-16": (VALID.encode("utf-16"), "is not UTF-8 text; save it in that encoding"),
    "a tag": (VALID.replace("x}", "!!python/name:os.system x}").encode(), "tags such as"),
    "a bomb": (b"a: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (n, n, b",".join([b"*%c" % (n - 1)] * 10)) for n in range(98, 108)
    ), "contains more than 10,000 values, counting aliases"),
    "deep": (b"[" * 5000, "is nested deeper than 20 levels"),
    "an unknown key": (VALID.replace("steps", "stpes").encode(), "unknown key; did you mean 'steps'?"),
    "a key twice": (VALID.encode() + b"model: {name: x}\n", "given twice; first on line 1"),
    "a type": (VALID.replace("steps: 1", "steps: many").encode(), "must be a whole number of at least 1 or null"),
    "a quoted number": (VALID.replace("steps: 1", "steps: '1'").encode(), "without quotes it is a number"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "told"), FILES.values(), ids=FILES)
def test_a_wrong_file_is_told_within_a_second_with_its_place(user, content, told):
    path = user.write("wrong.yaml", content)
    with costs_at_most(1):
        answer = user.run("train", path, f"run.output={user.output}")
    assert answer.code == 2 and answer.record is None and not user.output.exists()
    errors = [line for line in answer.lines if told in line]
    assert errors and errors[0].startswith(f"peftlab: error: {path}")


def test_a_file_of_a_hundred_megabytes_is_not_read_to_its_end(user):
    path = user.folder / "large.yaml"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    with costs_at_most(0.5):
        assert "is larger than 1,000,000 bytes" in user.run("check", path).out


VALUES = {
    "a count beyond counting": (f"training.steps={LARGEST_COUNT + 1}", "must be at most 1,000,000,000"),
    "epochs beyond counting": ("training={epochs: 1e300, learning_rate: 1}", "must be at most 1,000,000,000"),
    "a rate beyond 32 bits": ("training.learning_rate=1e39", "must be at most 1e+30"),
    "beams": ("evaluation.generation.beams=1000", "must be at most 256"),
    "a zero byte": ("run.output=a\0b", r"contains the control character '\x00'"),
    "a line break": ('model.name="a\\nb"', r"contains the control character '\n'"),
    "a broken encoding": ("data.train=a\udcffb.csv", "special characters are not allowed"),
    "a token": (
        "model.name=https://hf_abcdefghijklmnopqrstuvwxyz@hub/x",
        "contains a secret, and run records contain the recipe",
    ),
    "not a number": ("training.learning_rate=.nan", "must be a number greater than 0"),
    "a name in place of a list": ("method.unfreeze=norm", "must be a list, each text"),
    "checkpointing of prefixes": (
        "training={steps: 1, learning_rate: 1, gradient_checkpointing: true}",
        "does not work with prefix tuning; set it to false",
    ),
}


@pytest.mark.parametrize(("override", "told"), VALUES.values(), ids=VALUES)
def test_a_value_that_nothing_can_use_is_told_before_anything_starts(user, override, told):
    answer = user.train(override, method="prefix")
    assert (answer.code, answer.record, user.output.exists()) == (2, None, False)
    assert answer.error.startswith(f"command line: {override.partition('=')[0]}") or "training" in answer.error
    assert told in answer.error


def test_a_token_in_a_recipe_is_never_shown(user):
    for command in ("check", "train"):
        answer = user.run(command, user.recipe(), "model.dtype=hf_abcdefghijklmnopqrstuvwxyz", "--json", "--debug")
        assert answer.code == 2 and "***" in answer.out
        assert "abcdefghij" not in answer.out + "\n".join(answer.lines)


@pytest.mark.parametrize("name", ["two words.yaml", "läuft 日本語.yaml", "[x] $\\frac$ #1.yaml", "x" * 250 + ".yaml"])
def test_any_file_name_will_do(user, name):
    recipe = user.recipe().rename(user.folder / name)
    folder = user.folder / (name.removesuffix(".yaml") + ".d"[: 255 - len(name)])
    answer = user.run("train", recipe, f"run.output={folder}")
    assert answer.code == 0 and (folder / "loss.png").stat().st_size > 1000
    assert not any("Warning" in line or "cannot" in line for line in answer.lines)
    assert user.run("evaluate", folder, f"data.evaluation={user.rows()}").code == 0


COMMANDS = {
    "no device": (["plan", "RECIPE", "--device", "tpu"], "--device 'tpu' is not one of auto, cpu, cuda"),
    "no devices": (["plan", "RECIPE", "--devices", "0"], "Invalid value for '--devices'"),
    "no memory": (["plan", "RECIPE", "--memory", "-3GiB"], "memory '-3GiB' must be more than zero"),
    "an empty prompt": (["generate", "RUN", " "], "the prompt is empty"),
    "a prompt of half characters": (["generate", "RUN", "a\udcff"], "the prompt is not valid UTF-8"),
    "a long override": (["check", "RECIPE", "x=" + "y" * 5000], "x: unknown key"),
}


@pytest.mark.parametrize(("arguments", "told"), COMMANDS.values(), ids=COMMANDS)
def test_arguments_that_nothing_can_use_are_one_line(user, arguments, told):
    places = {"RECIPE": user.recipe(), "RUN": user.output}
    answer = user.run(*(places.get(argument, argument) for argument in arguments))
    assert answer.code == 2 and told in (answer.out + "".join(answer.lines))
    assert len(answer.out.splitlines() + answer.lines) == 1
