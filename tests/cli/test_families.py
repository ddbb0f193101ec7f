"""`peftlab check` knows from the table of families what a type cannot take, without torch and without weights."""

from __future__ import annotations

import json

import pytest

from peftlab.cli.app import run
from peftlab.families import FILE, find_family, known_refusal, read_families

RECIPE = """model: {{name: {model}, task: sequence-classification}}
method:
  type: prefix
  kind: {kind}
data: {{train: "builtin:topics[train]", format: classification}}
training: {{steps: 2, learning_rate: 1e-3}}
"""


@pytest.fixture
def check(tmp_path, capsys):
    def call(model_type: str, kind: str = "prefix", **config) -> tuple[int, str]:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **config}))
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE.format(model=tmp_path, kind=kind))
        return run(["check", str(recipe)]), capsys.readouterr().out

    return call


def test_a_prefix_that_a_family_cannot_take_is_refused_with_file_line_and_remedy(check):
    code, out = check("albert")
    assert code == 5 and out.count("\n") == 1
    assert "recipe.yaml:4: method.kind: " in out and "set `kind: prompt` or use lora" in out


@pytest.mark.parametrize(("model_type", "kind"), [("bert", "prefix"), ("albert", "prompt"), ("unheard-of", "prefix")])
def test_what_a_family_can_take_or_is_not_known_is_ok(check, model_type, kind):
    code, out = check(model_type, kind)
    assert code == 0 and out.startswith("ok")


def test_what_depends_on_more_than_the_type_is_left_to_the_commands_that_build_the_model(check):
    """FNet classifies with one row a batch; a model of a mixed type may have attention alone, as some Granite 4."""
    assert check("fnet", "prompt")[0] == 0
    assert known_refusal("bert", "causal-lm", "prefix") is None, "is_decoder"
    mixed = {"layer_types": ["linear_attention", "full_attention"]}
    assert check("qwen3_next")[0] == check("qwen3_next", **mixed)[0] == 5
    assert check("qwen3_next", layer_types=["full_attention"] * 2)[0] == 0
    assert check("qwen3_next", layer_types=3)[0] == 5, "no list of layers says nothing"


def test_heads_that_a_launch_of_tensor_parallel_cannot_divide_are_refused_in_one_line(check, monkeypatch):
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3}
    assert check("bert", "prompt", **heads)[0] == 0
    monkeypatch.setenv("PARALLELISM_CONFIG_TP_SIZE", "2")
    code, out = check("bert", "prompt", **heads)
    assert code == 5 and out.count("\n") == 1
    assert "recipe.yaml:1: model.name: tensor parallel" in out and "3 key-value heads cannot be divided among 2" in out


def test_the_table_names_its_date_and_versions_and_its_outcomes_are_works_or_refused():
    table = read_families()
    assert table["run"]["date"] and set(table["run"]["versions"]) >= {"transformers", "torch", "peft"}
    assert table["run"]["types"] == len(table["types"])
    assert find_family("llama", "causal-lm").works
    assert known_refusal("llama", "causal-lm", "lora") is None and FILE.is_file()
