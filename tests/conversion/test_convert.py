"""`peftlab convert`: files are recognised, written once, and no key is lost."""

from __future__ import annotations

import json

import pytest

from peftlab.cli.app import run
from peftlab.conversion.sheet import Fate
from peftlab.nested import flatten
from peftlab.recipe.load import load_recipe
from peftlab.recipe.yaml_source import parse_yaml
from tests.conversion.test_axolotl import QLORA
from tests.conversion.test_llama_factory import BASE
from tests.conversion.test_torchtune import LORA

TEXTS = {"axolotl": QLORA, "llama-factory": BASE, "torchtune": LORA}


@pytest.mark.parametrize("kind", ["axolotl", "llama-factory", "torchtune"])
def test_every_key_has_a_line_and_is_recognised(converted, kind):
    made = converted(TEXTS[kind])
    assert made.made.peer.name == kind
    values = parse_yaml(TEXTS[kind], None).value
    keys = set(flatten(values) if made.made.peer.nested else values)
    assert keys and keys <= {line.key for line in made.made.lines if line.fate is not Fate.DEFAULT}


@pytest.mark.parametrize("kind", ["axolotl", "llama-factory", "trl", "torchtune", "peft"])
def test_a_key_that_no_trainer_has_is_never_dropped(converted, kind):
    made = converted("model_name_or_path: a\npeft_type: LORA\nmodel.zzz_zzz: 1\nzzz: [1, 2]\n", kind=kind)
    assert {"zzz", "model.zzz_zzz"} <= made.keys("not known")


def test_the_recipe_is_written_once(tmp_path, capfd):
    source, output = tmp_path / "axolotl.yml", tmp_path / "new" / "recipe.yaml"
    source.write_text(QLORA)
    assert run(["convert", str(source), "--output", str(output)]) == 0
    recipe = load_recipe(output)
    assert recipe.method.type == "qlora" and recipe.training.gradient_accumulation == 4
    shown = capfd.readouterr()
    assert "lora_r: 32 -> method.rank = 32" in shown.err and f"wrote {output}" in shown.out
    before = output.read_text()
    assert run(["convert", str(source), "--output", str(output)]) == 2
    assert "exists already" in capfd.readouterr().err and output.read_text() == before


def test_standard_output_is_the_recipe_alone(tmp_path, capfd):
    source = tmp_path / "axolotl.yml"
    source.write_text(QLORA)
    assert run(["convert", str(source)]) == 0
    text = capfd.readouterr().out
    (tmp_path / "made.yaml").write_text(text)
    assert load_recipe(tmp_path / "made.yaml").data.max_length == 2048


def test_json_names_problems_and_the_exit_code_is_that_of_check(tmp_path, capfd):
    source = tmp_path / "config.yaml"
    source.write_text("base_model: a\nmicro_batch_size: 1\n")
    assert run(["convert", str(source), "--json"]) == 2
    answer = json.loads(capfd.readouterr().out)
    assert answer["kind"] == "axolotl" and not answer["ok"]
    assert {"key": "base_model", "value": "a", "fate": "taken", "text": "model.name = a", "line": 1} in answer["keys"]
    assert [problem["path"] for problem in answer["problems"]] == ["data.train", "training.learning_rate"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("colour: red\n", (), "say which it is with --kind"),
        ("model: {}\nmethod: {}\ntraining: {}\n", (), "is a recipe already"),
        ("a: 1\n", ("--kind", "keras"), "known kinds are axolotl"),
        ("base_model: a\nbase_model: b\nmicro_batch_size: 1\n", (), "given twice"),
        ("base_model: a\nmicro_batch_size: many\n", (), "micro_batch_size: 'many' is not a number"),
    ],
)
def test_files_that_cannot_be_converted(tmp_path, capfd, text, options, message):
    source = tmp_path / "config.yaml"
    source.write_text(text)
    assert run(["convert", str(source), *options]) == 2
    assert message in capfd.readouterr().err


def test_a_configuration_is_planned_as_its_recipe_is(tmp_path, capfd):
    source, recipe = tmp_path / "axolotl.yml", tmp_path / "recipe.yaml"
    source.write_text(
        "base_model: builtin:tiny\nadapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_target_linear: true\nbf16: false\n"
        "datasets: [{path: 'builtin:docstrings', type: completion}]\nsequence_len: 32\nmicro_batch_size: 2\n"
        "max_steps: 2\nlearning_rate: 1e-3\nnovelty: 1\n"
    )
    assert run(["convert", str(source), "--output", str(recipe)]) == 0
    capfd.readouterr()
    assert run(["plan", "--from", str(source), "--device", "cpu", "--memory", "8GiB", "--json"]) == 0
    planned = capfd.readouterr()
    assert "not known: novelty: 1" in planned.err
    assert run(["plan", str(recipe), "--device", "cpu", "--memory", "8GiB", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == json.loads(planned.out)


def test_a_plan_of_nothing_or_of_an_incomplete_configuration_is_refused(tmp_path, capfd):
    assert run(["plan"]) == 2
    assert "with --from" in capfd.readouterr().err
    source = tmp_path / "adapter_config.json"
    source.write_text('{"peft_type": "LORA", "base_model_name_or_path": "builtin:tiny", "target_modules": ["q_proj"]}')
    assert run(["plan", "--from", str(source)]) == 2
    error = capfd.readouterr().err
    assert "recipe of adapter_config.json" in error and "data: " in error
