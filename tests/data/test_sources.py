"""Where rows come from, and the one line that each fault of a file gives."""

from __future__ import annotations

import gzip
import json
import time

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from peftlab.data.sources import read_source
from peftlab.errors import DataError

ROWS = [{"a": "one", "b": 1}, {"a": 'two, "quoted"\nand more', "b": 2}, {"a": "drei \u2028 \u00fc", "b": 3}]


def write_lines(path, rows=ROWS, newline="\n"):
    text = newline.join(json.dumps(row, ensure_ascii=False) for row in rows) + newline
    path.write_bytes(text.encode())
    return path


@pytest.fixture
def ten(tmp_path):
    return write_lines(tmp_path / "ten.jsonl", [{"n": n} for n in range(10)])


def read_rows(source):
    table = read_source(str(source), "train")
    return [dict(zip(table.columns, cells, strict=True)) for cells in zip(*table.columns.values(), strict=True)]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_jsonl_gives_its_rows_also_with_windows_line_ends_and_line_separators_in_texts(tmp_path, newline):
    assert read_rows(write_lines(tmp_path / "x.jsonl", newline=newline)) == ROWS


def test_byte_order_mark_blank_lines_and_gzip_change_nothing(tmp_path):
    content = b"\xef\xbb\xbf" + b"\n\n".join(json.dumps(row).encode() for row in ROWS)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(content))
    assert read_rows(tmp_path / "x.jsonl.gz") == ROWS


@pytest.mark.parametrize("text", [json.dumps(ROWS, indent=1), "\n".join(map(json.dumps, ROWS))])
def test_json_may_be_a_list_or_one_object_a_line(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    assert read_rows(tmp_path / "x.json") == ROWS


def test_parquet_gives_its_rows(tmp_path):
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    assert read_rows(tmp_path / "x.parquet") == ROWS


def test_csv_cells_stay_the_strings_that_they_are(tmp_path):
    (tmp_path / "x.csv").write_bytes(b'\xef\xbb\xbfa,b\r\nNA,01\r\n"x, ""y""\r\nz",null\r\n\r\n')
    assert read_rows(tmp_path / "x.csv") == [{"a": "NA", "b": "01"}, {"a": 'x, "y"\r\nz', "b": "null"}]


def test_a_key_that_a_row_lacks_is_null_there(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [{"a": 1}, {"b": 2}])
    assert read_source(str(path), "train").columns == {"a": [1, None], "b": [None, 2]}


@pytest.mark.parametrize(
    ("suffix", "numbers"),
    [
        ("", range(10)),
        ("[train]", range(10)),
        ("[train[:3]]", range(3)),
        ("[train[-2:]]", (8, 9)),
        ("[train[20%:50%]]", (2, 3, 4)),
        ("[train[2:4]]", (2, 3)),
        ("[train[:100]]", range(10)),
    ],
)
def test_slices_take_rows_or_percent(ten, suffix, numbers):
    assert read_source(f"{ten}{suffix}", "train").columns["n"] == list(numbers)


def test_builtin_data_has_a_default_split_and_named_ones():
    test = read_source("builtin:docstrings", "test")
    assert read_source("builtin:docstrings[test]", "train").columns == test.columns
    assert len(read_source("builtin:docstrings", "train")) > len(test) > 100


def test_folder_is_read_through_datasets_split_by_split(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "rows"
    folder.mkdir()
    features = datasets.Features({"a": datasets.Value("string"), "b": datasets.ClassLabel(names=["x", "y", "z", "w"])})
    datasets.Dataset.from_list(ROWS, features=features).to_parquet(folder / "test.parquet")
    datasets.Dataset.from_list(ROWS[:1], features=features).to_parquet(folder / "train.parquet")
    before = sorted(folder.iterdir())
    assert read_rows(f"{folder}[test]") == [dict(row, b="xyzw"[row["b"]]) for row in ROWS]
    assert len(read_rows(folder)) == 1
    with pytest.raises(DataError, match=r"rows\[dev\]: .*Unknown split .dev."):
        read_source(f"{folder}[dev]", "train")
    assert sorted(folder.iterdir()) == before


FAULTS = {
    "broken JSON": ("x.jsonl", b'{"a": 1}\n\n{"a": \n', r"x\.jsonl:3: is not JSON: Expecting value at column"),
    "row no object": ("x.jsonl", b'{"a": 1}\n[1]\n', r"x\.jsonl:2: a row must be an object .*, not list"),
    "not UTF-8": ("x.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"x\.jsonl:2: is not UTF-8 \(byte 0xff\); save"),
    "UTF-16": ("x.csv", "a,b\n1,2\n".encode("utf-16"), r"x\.csv:1: is not UTF-8"),
    "empty": ("x.jsonl", b"", r"x\.jsonl: contains no rows"),
    "only blank": ("x.json", b" \n", r"x\.json: contains no rows"),
    "only a header": ("x.csv", b"a,b\n", r"x\.csv: contains no rows"),
    "broken JSON list": ("x.json", b'[{"a": 1},\n{"a" 2}]', r"x\.json:2: is not JSON"),
    "JSON but no list": ("x.json", b'"text"', r"x\.json: must be a list of objects, not str"),
    "too many cells": ("x.csv", b"a,b\n1,2\n1,2,3\n", r"x\.csv:3: has 3 cells, the header 2; quote"),
    "too few cells": ("x.csv", b"a,b\n1\n", r"x\.csv:2: has 1 cells, the header 2"),
    "unclosed quote": ("x.csv", b'a,b\n1,"2\n', r"x\.csv:2: is not CSV"),
    "header twice": ("x.csv", b"a,a\n1,2\n", r"x\.csv:1: the header names 'a' twice"),
    "not gzip": ("x.jsonl.gz", b'{"a": 1}', r"x\.jsonl\.gz: is not a whole gzip file"),
    "cut gzip": ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99)[:-9], r"is not a whole gzip file"),
    "not parquet": ("x.parquet", b"PAR1 no", r"x\.parquet: is not a parquet file"),
    "unknown kind": ("x.xlsx", b"?", r"x\.xlsx: unknown file type; the name must end in \.jsonl, \.json, \.csv"),
}


@pytest.mark.parametrize(("name", "content", "message"), FAULTS.values(), ids=FAULTS)
def test_fault_in_a_file_is_one_line_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_source(str(tmp_path / name), "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.jsonl", r"nowhere\.jsonl: no such file \(relative paths start at /"),
        ("builtin:docstring", r"no such built-in data; did you mean 'docstrings'\?; known: docstrings"),
        ("builtin:docstrings[tests]", r"has no split 'tests'; did you mean 'test'\?; it has: test, train"),
        ("some words", "not the id of a hub data set"),
        ("x.jsonl[", r"must have the form SOURCE, SOURCE\[SPLIT\]"),
        ("x.jsonl[train[5]]", r"\[5\] must have the form from:to in rows or percent"),
        ("", r"must have the form SOURCE"),
    ],
)
def test_source_that_is_not_there_is_one_line(source, message):
    with pytest.raises(DataError, match=message):
        read_source(source, "train")


def test_split_of_a_file_and_an_empty_slice_are_refused(ten):
    with pytest.raises(DataError, match="has no split 'test'; one file is one split, train"):
        read_source(f"{ten}[test]", "train")
    with pytest.raises(DataError, match="selects none of 10 rows"):
        read_source(f"{ten}[train[10:]]", "train")


@pytest.mark.parametrize("source", ["gsm8k", "openai/gsm8k:main[train]"])
def test_hub_data_without_a_network_fails_at_once(source, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waited {seconds} s for another try"))
    with pytest.raises(DataError, match="the hub cannot be reached: name a local file or builtin:NAME"):
        read_source(source, "train")
    assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE
