"""Names of other libraries are answered with the recipe's own, and a model needs no file to be counted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from peftlab.cli.app import run
from peftlab.errors import RecipeError
from peftlab.recipe.field_search import find_fields
from peftlab.recipe.load import model_recipe, parse_recipe
from peftlab.recipe.reference import list_fields
from peftlab.recipe.synonyms import ABSENT, NAMES, PATHS
from peftlab.runs.loading import read_shape

TINY = Path(__file__).resolve().parents[2] / "peftlab" / "builtin" / "tiny"
BASE = """\
model: {name: builtin:tiny}
method: {type: lora}
data: {train: x.jsonl}
training: {steps: 1, learning_rate: 1e-3}
"""
ASKED = {
    "method.r=8": "'rank'", "method.lora_alpha=16": "'alpha'", "method.target_modules=[q_proj]": "'targets'",
    "training.lr=1e-3": "'learning_rate'", "lr=1e-3": "'training.learning_rate'", "r=4": "'method.rank'",
    "data.max_seq_length=8": "'max_length'", "training.max_seq_length=8": "'data.max_length'",
    "training.num_train_epochs=3": "'epochs'", "model.model_name_or_path=x": "'name'",
    "run.logging_steps=3": "'log_every'", "training.optim=sgd": "'optimizer'",
}  # fmt: skip


@pytest.mark.parametrize(("override", "name"), ASKED.items())
def test_a_name_of_another_library_is_answered_with_the_fields(override, name):
    with pytest.raises(RecipeError, match=f"unknown key; did you mean {name}\\?"):
        parse_recipe(BASE, [override])


@pytest.mark.parametrize(
    ("override", "instead"),
    [
        (
            "method.rank_pattern={q_proj: 4}",
            "not supported: every projection has the same rank and alpha; method.targets",
        ),
        ("method.alpha_pattern={q_proj: 4}", "not supported: every projection has the same rank and alpha"),
        ("method.layers_to_transform=[0]", "not supported: name the layers in method.targets, as in `layers.3`"),
        ("method.lora_bias=true", "not supported: LoRA's own layers have no biases"),
    ],
)
def test_what_recipes_do_not_have_is_answered_with_what_they_have_instead(override, instead):
    with pytest.raises(RecipeError, match=f"{override.partition('=')[0]}: {re.escape(instead)}"):
        parse_recipe(BASE, [override])


def test_layers_are_named_among_the_targets():
    recipe = parse_recipe(BASE, ["method.targets=[layers.1]"])
    names = {site.name for site in recipe.method.targets_of(read_shape(recipe, None))}
    assert len(names) == 7 and all(name.startswith("model.layers.1.") for name in names)


def test_every_synonym_names_a_field_and_is_not_one_itself_there():
    fields = {field.path for field in list_fields()}
    assert set(NAMES) <= {path for field in fields for path in (field, field.rpartition(".")[0])}  # or a section
    assert not {f"{path.rpartition('.')[0]}.{name}" for name, path in PATHS.items()} & fields
    assert sum(len(names.split()) for names in NAMES.values()) == len(PATHS)
    assert PATHS.keys().isdisjoint(name for names in ABSENT for name in names.split())


def test_the_documentation_explains_a_synonym():
    assert {field.path for field in find_fields("lora_alpha")} == {"method.alpha"}


def test_parameters_are_counted_without_a_file(capsys):
    """LoRA of rank r on all seven matrices of four layers: r * (n_in + n_out) each."""
    assert run(["params", "builtin:tiny", "method.type=lora", "method.rank=8", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)["trainable"]
    config = json.loads((TINY / "config.json").read_text())
    width, inner = config["hidden_size"], config["intermediate_size"]
    keys = width * config["num_key_value_heads"] // config["num_attention_heads"]
    sums = 2 * (width + width) + 2 * (width + keys) + 3 * (width + inner)
    assert counted == 8 * sums * config["num_hidden_layers"]


def test_a_batch_and_a_length_are_planned_without_a_file(capsys):
    peaks = []
    for rows in (1, 8):
        sizes = [f"training.batch_size={rows}", "data.max_length=64"]
        assert run(["plan", "builtin:tiny", "method.type=lora", *sizes, "--device", "cpu", "--json"]) == 0
        peaks.append(json.loads(capsys.readouterr().out)["peak_bytes"])
    assert peaks[0] < peaks[1]


@pytest.mark.parametrize("command", ["params", "plan"])
def test_what_is_missing_or_wrong_is_one_line(command, capsys):
    assert run([command, "builtin:tiny", "method.rank=8"]) == 2
    assert "method.type: is required" in capsys.readouterr().err
    assert run([command, "builtin:tiny", "training.batch_size=8"]) == 2
    assert "name a method too, as in method.type=lora" in capsys.readouterr().err
    assert run([command, "builtin:tiny", "method.type=lora", "method.r=8"]) == 2
    assert "command line: method.r: unknown key; did you mean 'rank'?" in capsys.readouterr().err


def test_a_model_of_another_task_gets_a_format_of_that_task():
    recipe = model_recipe("x", ["method.type=bitfit", "model.task=token-classification"])
    assert recipe.data.format == "tokens"
