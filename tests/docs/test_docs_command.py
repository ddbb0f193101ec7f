"""`peftlab docs`: what a person who knows part of a name sees."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from peftlab.cli.app import run
from peftlab.methods import METHODS
from peftlab.recipe.reference import fields_of, list_fields, list_sections, sections_of

from .pages import DOCS, PAGES, read


@pytest.fixture
def docs(capfd):
    """Run `peftlab docs` in this process; return exit code, standard output, lines of standard error."""

    def call(*arguments):
        code = run(["docs", *arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err.splitlines()

    return call


def test_without_a_topic_it_lists_every_page_in_a_line(docs):
    code, out, errors = docs()
    assert (code, errors) == (0, [])
    for path in PAGES:
        assert sum(line.startswith(f"  {path.stem} ") for line in out.splitlines()) == 1
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_in_a_pipe_a_page_is_its_markdown(docs, path):
    assert docs(path.stem) == (0, read(path), [])
    assert json.loads(docs(path.stem, "--json")[1]) == {"topic": path.stem, "markdown": read(path)}


def test_on_a_terminal_a_page_is_laid_out_in_80_columns(docs, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = docs("comparing")
    out = re.sub(r"\x1b\[[\d;]*m", "", out)
    assert code == 0 and "```" not in out and "peftlab docs benchmarks" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("key", ["method.rank", "lora.rank", "qlora.rank", "rank", "recipe.method.rank"])
def test_a_field_is_found_by_path_by_method_and_by_name(docs, key):
    assert docs(key) == (
        0,
        "method.rank\n\n  Rank r of the update; each target adds r·(n_in + n_out) parameters.\n\n"
        "  value      a whole number of at least 1\n  default    8\n"
        "  only with  method.type=lora or method.type=qlora\n",
        [],
    )


def test_a_field_that_methods_understand_differently_is_explained_for_each(docs):
    (_, out, _) = docs("method.init")
    both, lora, adapters = (docs(f"{name}init")[1] for name in ("method.", "lora.", "adapters."))
    assert out == both == lora + "\n" + adapters
    assert "pissa" in lora and "pissa" not in adapters


def test_a_section_and_a_method_list_their_fields(docs):
    listed = [line.partition("  ")[0] for line in docs("evaluation.generation")[1].splitlines() if line[0] != " "]
    assert listed == [f"evaluation.generation.{name}" for name in
                      ("max_new_tokens", "beams", "temperature", "top_p", "stop", "rows", "examples")]  # fmt: skip
    bitfit = [line.partition("  ")[0] for line in docs("bitfit")[1].splitlines() if line[0] != " "]
    fields = METHODS["bitfit"].model_fields.items()
    assert sorted(bitfit) == sorted(f"method.{field.alias or name}" for name, field in fields)


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("metods", "'metods' is not a topic and not a field of a recipe; did you mean 'methods' or 'method'"),
        ("method.rnk", "'method.rnk' is not a topic and not a field of a recipe; did you mean 'method.rank'"),
        ("seed", "'seed' is a field of several sections; name one of data.seed, run.seed"),
        ("lora.bottleneck", "lora has no field 'bottleneck'; it is a field of method.type adapters"),
        ("method.steps", "method has no field 'steps'; it is a field of training"),
        ("zzz", "'zzz' is not a topic and not a field of a recipe; `peftlab docs` lists the topics"),
        ("../../README", "'../../README' is not a topic"),
        ("", "'' is not a topic"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest_names(docs, key, line):
    code, out, errors = docs(key)
    assert (code, out, len(errors)) == (2, "", 1)
    assert errors[0].startswith(f"peftlab: error: {line}")


def test_every_field_is_found_by_its_path_and_is_documented(docs):
    for field in list_fields():
        assert field.text and field.value, field.path
        (code, out, _) = docs(field.path, "--json")
        assert code == 0
        assert field.text in [found["text"] for found in json.loads(out)["fields"]]


def test_every_field_of_every_method_is_listed_with_the_methods_that_have_it():
    (section,) = (section for section in list_sections() if section.path == "method")
    assert section.kinds == tuple(METHODS)
    for name, method in METHODS.items():
        listed = {
            field.name for field in list_fields() if field.section == "method" and name in (field.kinds or METHODS)
        }
        assert listed == {one.alias or name for name, one in method.model_fields.items()}


def test_it_does_not_load_torch():
    code = "import sys; from peftlab.cli.app import run; run(['docs', 'method.rank']); print('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=DOCS.parents[1], timeout=60
    )
    assert found.stdout.endswith("False\n"), found.stderr


def test_any_section_with_types_is_read_like_the_method_even_where_a_name_alone_is_allowed():
    def definition(kind, **fields):
        return {"properties": {"type": {"const": kind}} | {name: {"type": "number"} for name in fields}}

    union = {"oneOf": [{"$ref": "#/$defs/Sgd"}, {"$ref": "#/$defs/Adam"}]}
    root = {
        "properties": {"optimizer": {"anyOf": [union, {"type": "string"}], "default": {"type": "adam"}}},
        "$defs": {"Sgd": definition("sgd", momentum=1), "Adam": definition("adam", eps=1)},
    }
    assert [(field.path, field.kinds) for field in fields_of(root, "training")] == [
        ("training.optimizer.type", ()),
        ("training.optimizer.momentum", ("sgd",)),
        ("training.optimizer.eps", ("adam",)),
    ]
    assert [section.kinds for section in sections_of(root, "training")] == [("sgd", "adam")]
