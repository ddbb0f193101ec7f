"""Reading YAML: version 1.2, lines, and what is refused."""

from __future__ import annotations

import pytest
from ruamel.yaml import YAML

from peftlab.errors import RecipeError
from peftlab.recipe import load_recipe
from peftlab.recipe.yaml_source import LIMIT_BYTES, parse_scalar, parse_yaml

from ..pace import costs_at_most
from .texts import VALID, only_problem, problems_of


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E+3", 1000.0),
        (".5", 0.5),
        ("-3", -3),
        ("017", 17),
        ("0x10", 16),
        ("0o17", 15),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text, value):
    assert parse_scalar(text) == value
    assert type(parse_scalar(text)) is type(value)


@pytest.mark.parametrize("text", "1e-4 12 0x1f true null ~ no text -0.5 .inf -.inf +1".split())
def test_scalars_agree_with_ruamel_where_versions_of_yaml_do(text):
    assert parse_scalar(text) == YAML(typ="safe", pure=True).load(text)


def test_a_number_of_thousands_of_digits_stays_text():
    assert parse_scalar("9" * 5000) == "9" * 5000


def test_every_key_has_the_line_that_it_stands_in():
    source = parse_yaml("a:\n  b: 1\n\n  c:\n  - x\n  - y: 2\n", None)
    assert source.lines[("a", "b")] == 2
    assert source.lines[("a", "c", 1)] == 6
    assert source.lines[("a", "c", 1, "y")] == 6


def test_both_lines_of_a_duplicate_key_are_reported():
    assert only_problem(VALID + "  steps: 3\n") == "r.yaml:12: training.steps: given twice; first on line 10"


def test_a_duplicate_section_is_reported_and_the_first_one_is_checked():
    assert only_problem(VALID + "model:\n  nonsense: 3\n") == "r.yaml:12: model: given twice; first on line 1"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model:\n\tname: x\n", "r.yaml:2: not valid YAML: a tab in the indentation; use spaces"),
        ("model: {name: x\n", "r.yaml:2: not valid YAML: "),
        (
            "a: b: c\n",
            "r.yaml:1: not valid YAML: a second ': ' on one line; quote the text or fix the indentation",
        ),
        ("a: 1\n---\nb: 2\n", "r.yaml:2: contains a second YAML document; write one recipe per file"),
        ("a: *nothing\n", "r.yaml:1: alias *nothing has no anchor before it"),
        ("a: *b\u2028c\n", "r.yaml:1: alias *'b\\u2028c' has no anchor before it"),
        ("? [a, b]\n: 1\n", "r.yaml:1: a key must be a plain name"),
        ("- model\n", "r.yaml:1: is not a mapping; a recipe starts with sections such as `model:`"),
        ("just text", "r.yaml:1: is not a mapping; "),
        ("", "r.yaml: is empty; a recipe has the sections model, method, data and training"),
        ("# nothing but a comment\n", "r.yaml: is empty; "),
        ("a: \x00\n", "r.yaml: not valid YAML: "),
        ("%YAML 9.9\n---\na: 1\n", "r.yaml:1: not valid YAML: "),
        ("a: " + "[" * 100, "r.yaml:1: is nested deeper than 20 levels"),
    ],
)
def test_an_unreadable_text_is_one_line_with_its_place(text, line):
    assert only_problem(text).startswith(line)
    assert "\n" not in only_problem(text)


def test_tags_are_refused_and_build_no_objects():
    text = VALID.replace("builtin:tiny", "!!python/object/apply:os.getcwd []")
    assert str(problems_of(text)[0]).startswith("r.yaml:2: model.name: tags such as ")


def test_aliases_within_reason_work():
    text = "model: {name: &tiny 'builtin:tiny'}\n" + VALID.split("\n", 2)[2] + "run: {output: *tiny}\n"
    source = parse_yaml(text, None)
    assert source.value["run"]["output"] == "builtin:tiny"


def test_an_alias_bomb_is_refused_at_once():
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
    )
    with costs_at_most(2):
        assert "contains more than 10,000 values, counting aliases" in only_problem(bomb)


def test_an_alias_to_its_own_parent_is_refused():
    assert only_problem("a: &a [*a]\n") == "r.yaml:1: alias *a has no anchor before it"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model:\n  name: \xff\xfe\n", ":2: is not UTF-8 text; save it in that encoding"),
        ("model: 1\n".encode("utf-16"), ":1: is not UTF-8 text; save it in that encoding"),
        (b"#" * (LIMIT_BYTES + 1), ": is larger than 1,000,000 bytes, too large for a recipe"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_line(tmp_path, content, message):
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value) == f"{path}{message}"


def test_missing_files_and_folders_are_one_line(tmp_path):
    faults = {tmp_path / "no.yaml": "no such file", tmp_path: "is a folder, not a recipe file"}
    for path, message in faults.items():
        with pytest.raises(RecipeError) as caught:
            load_recipe(path)
        assert str(caught.value) == f"{path}: {message}"


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + VALID.encode())
    assert load_recipe(path).model.name == "builtin:tiny"


def test_a_text_that_is_parsed_again_is_not_what_a_caller_made_of_it():
    first = parse_yaml("a: {b: [1, {c: 2}]}\na: 3\n", "f.yaml")
    first.value["a"]["b"][1]["c"], first.lines[("a",)] = 5, 99
    first.problems.clear()
    again = parse_yaml("a: {b: [1, {c: 2}]}\na: 3\n", "f.yaml")
    assert again.value == {"a": {"b": (1, {"c": 2})}} and again.lines[("a",)] == 1
    assert [problem.line for problem in again.problems] == [2]
