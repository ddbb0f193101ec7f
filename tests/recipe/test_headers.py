"""`check` reads the first rows of data files at hand: wrong columns and templates are found there, all at once."""

from __future__ import annotations

import gzip
import json
import lzma
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from peftlab.cli.app import run
from peftlab.data import sources
from peftlab.recipe.headers import read_columns

RECIPE = """\
model: {{name: builtin:tiny}}
method: {{type: lora}}
data:
  train: {train}
  evaluation: {evaluation}
  template: "Facts: {{mrr}}, {{name}}"
  columns:
    completion: reff
training: {{steps: 1, learning_rate: 1e-3}}
"""
ROWS = [{"mr": "a", "ref": "b"}, {"mr": "c", "ref": "d"}]


def write(path):
    kind = path.name.partition(".")[2]
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif kind == "csv":
        path.write_text('mr,ref\r\n"a\nb",c\r\n')
    elif kind == "tsv":
        path.write_text('mr\tref\n"a\nb"\tc\n')
    elif kind == "csv.xz":
        path.write_bytes(lzma.compress(b"mr,ref\na,b\n"))
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


KINDS = ["jsonl", "ndjson", "json", "csv", "tsv", "parquet", "jsonl.gz", "csv.xz"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_columns_of_every_kind_of_file_are_read(tmp_path, kind):
    assert read_columns(write(tmp_path / f"x.{kind}")) == ["mr", "ref"]


def test_check_and_training_read_the_same_columns(tmp_path):
    for kind in KINDS:
        path = write(tmp_path / f"x.{kind}")
        assert [(str(path), read_columns(path))] == sources.read_columns(str(path), "train")


def test_what_cannot_be_read_has_no_columns(tmp_path, monkeypatch):
    assert read_columns(tmp_path / "absent.csv") == [] and read_columns(write(tmp_path / "x.bin")) == []
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    assert read_columns(tmp_path / "broken.parquet") == []
    monkeypatch.setattr("peftlab.recipe.headers.LARGEST_JSON", 8)
    assert read_columns(write(tmp_path / "large.json")) == []


def test_every_wrong_column_and_name_is_found_at_once_with_its_line(tmp_path, capsys):
    train = write(tmp_path / "rows.csv")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(train=train, evaluation="not-here.csv"))
    assert run(["check", str(recipe)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{recipe}:8: data.columns.completion: {train} has no column 'reff'; did you mean 'ref'?; it has mr, ref",
        f"{recipe}:6: data.template: {train} has no column 'mrr'; did you mean 'mr'?; it has mr, ref",
        f"{recipe}:6: data.template: {train} has no column 'name'; it has mr, ref",
    ]


def test_a_right_recipe_an_absent_file_and_a_broken_one_are_left_to_training(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    text = RECIPE.format(train=write(tmp_path / "x.jsonl"), evaluation="0.5").replace("reff", "ref")
    recipe.write_text(text.replace("{mrr}, {name}", "{mr}"))
    assert run(["check", str(recipe)]) == 0
    recipe.write_text(RECIPE.format(train=tmp_path / "absent.csv", evaluation="null"))
    assert run(["check", str(recipe)]) == 0
    (tmp_path / "broken.jsonl").write_bytes(b"\xff[[[\n")
    recipe.write_text(RECIPE.format(train=tmp_path / "broken.jsonl", evaluation="null"))
    assert run(["check", str(recipe)]) == 0


def test_a_role_without_a_column_says_how_to_name_it(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{name: x}}\nmethod: {{type: lora}}\ndata:\n  train: {write(tmp_path / 'x.jsonl')}\n  format: text\n"
        "training: {steps: 1, learning_rate: 1e-3}\n"
    )
    assert run(["check", str(recipe)]) == 2
    told = "has no column 'text'; it has mr, ref; name the column of the text, as in columns: {text: NAME}"
    assert told in capsys.readouterr().out


MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
REFUSED = [
    ({"prompt": "a", "completion": "b", "label": False}, "calls good or bad (as for KTO)"),
    ({"messages": MESSAGES, "images": ["a.png"]}, "has pictures"),
    ({"text": "a", "messages": MESSAGES}, "fit chat or text; set data.format"),
]


@pytest.mark.parametrize(("row", "told"), REFUSED, ids=[told for _, told in REFUSED])
def test_check_and_data_refuse_the_same_rows(tmp_path, capsys, row, told):
    """In a list of sources too, and at the line of the key."""
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    recipe = tmp_path / "recipe.yaml"
    for source in (f"{tmp_path}/x.jsonl", f"[{tmp_path}/x.jsonl]"):
        recipe.write_text(
            f"model: {{name: builtin:tiny}}\nmethod: {{type: lora}}\ndata:\n  train: {source}\n"
            "training: {steps: 1, learning_rate: 1e-3}\n"
        )
        assert run(["check", str(recipe)]) == 2
        line = capsys.readouterr().out
        assert line.startswith(f"{recipe}:4: data.train: ") and told in line
        assert run(["data", str(recipe)]) == 4
        assert told in capsys.readouterr().err


def test_check_reads_the_files_of_a_comparison_too(tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text(json.dumps(REFUSED[0][0]) + "\n")
    base = tmp_path / "base.yaml"
    text = (
        f"model: {{name: builtin:tiny}}\nmethod: {{type: lora}}\ndata: {{train: {tmp_path}/x.jsonl, evaluation: 0.5}}\n"
        "training: {steps: 1, learning_rate: 1e-3}\n"
    )
    base.write_text(text)
    path = tmp_path / "comparison.yaml"
    path.write_text("base: base.yaml\nvariants:\n  lora: {}\n  full: {method: {type: full}}\n")
    assert run(["check", str(path)]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{path}: data.train: ") and REFUSED[0][1] in line
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    assert run(["check", str(path)]) == 0


def test_shipped_recipes_are_right():
    from pathlib import Path

    recipes = sorted(str(path) for path in Path("recipes").rglob("*.yaml"))
    assert recipes and run(["check", *recipes]) == 0


def test_reading_headers_loads_no_torch(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(train=write(tmp_path / "x.csv"), evaluation="null"))
    code = "import sys; from peftlab.cli.app import run; run(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, "check", str(recipe)], capture_output=True).returncode == 0
