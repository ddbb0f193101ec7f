"""Where rows come from, and the one line that each fault of a file gives."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import time

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from peftlab.data import hub
from peftlab.data.parts import read_examples
from peftlab.data.sources import Cursor, read_columns, read_source
from peftlab.errors import DataError
from peftlab.recipe.schema import Data
from peftlab.tables import packed
from peftlab.tables.row import Unreadable

ROWS = [{"a": "one", "b": 1}, {"a": 'two, "quoted"\nand more', "b": 2}, {"a": "drei \u2028 \u00fc", "b": 3}]


def write_lines(path, rows=ROWS, newline="\n"):
    text = newline.join(json.dumps(row, ensure_ascii=False) for row in rows) + newline
    path.write_bytes(text.encode())
    return path


@pytest.fixture
def ten(tmp_path):
    return write_lines(tmp_path / "ten.jsonl", [{"n": n} for n in range(10)])


def read_rows(source):
    """Return the cells of all rows; a fault ends it, as it ends a run by default."""
    opened = read_source(str(source), "train")
    found = [(opened.place(cursor, row), row) for cursor, row in opened.rows()]
    for place, row in found:
        if row.fault:
            raise DataError(f"{place}: {row.fault}")
    return [row.cells for _, row in found]


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


def test_the_columns_of_json_are_the_keys_of_its_first_rows(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [{"a": 1}, {"b": 2}])
    assert read_columns(str(path), "train") == [(str(path), ["a", "b"])]


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
    assert [row["n"] for row in read_rows(f"{ten}{suffix}")] == list(numbers)


def test_builtin_data_has_a_default_split_and_named_ones():
    test = [row for _, row in read_source("builtin:docstrings", "test").rows()]
    assert [row for _, row in read_source("builtin:docstrings[test]", "train").rows()] == test
    assert read_source("builtin:docstrings", "train").count > len(test) > 100


def test_folder_is_read_split_by_split(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    features = datasets.Features({"a": datasets.Value("string"), "b": datasets.ClassLabel(names=["x", "y", "z", "w"])})
    datasets.Dataset.from_list(ROWS, features=features).to_parquet(folder / "test.parquet")
    datasets.Dataset.from_list(ROWS[:1], features=features).to_parquet(folder / "train.parquet")
    before = sorted(folder.iterdir())
    assert read_rows(f"{folder}[test]") == [dict(row, b="xyzw"[row["b"]]) for row in ROWS]
    assert len(read_rows(folder)) == 1
    with pytest.raises(DataError, match=r"rows: has no split 'dev'; it has: train, test"):
        read_source(f"{folder}[dev]", "train")
    assert sorted(folder.iterdir()) == before


FAULTS = {
    "broken JSON": ("x.jsonl", b'{"a": 1}\n\n{"a": \n', r"x\.jsonl:3: is not JSON: Expecting value at column"),
    "row no object": ("x.jsonl", b'{"a": 1}\n[1]\n', r"x\.jsonl:2: a row must be an object .*, not list"),
    "not UTF-8": ("x.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"x\.jsonl:2: is not UTF-8 \(byte 0xff\); save"),
    "UTF-16": ("x.csv", "a,b\n1,2\n".encode("utf-16"), r"x\.csv:1: is not UTF-8"),
    "broken JSON list": ("x.json", b'[{"a": 1},\n{"a" 2}]', r"x\.json:2: is not JSON"),
    "JSON but no list": ("x.json", b'"text"', r"x\.json: must be a list of objects, not str"),
    "too many cells": ("x.csv", b"a,b\n1,2\n1,2,3\n", r"x\.csv:3: has 3 cells, the header 2; quote"),
    "too few cells": ("x.csv", b"a,b\n1\n", r"x\.csv:2: has 1 cell, the header 2"),
    "unclosed quote": ("x.csv", b'a,b\n1,"2\n', r"x\.csv:2: is not CSV"),
    "header twice": ("x.csv", b"a,a\n1,2\n", r"x\.csv:1: the header names 'a' twice"),
    "header again": ("x.csv", b"a,b\n1,2\na,b\n3,4\n", r"x\.csv:3: repeats the header, as where files were joined"),
    "header again with a mark": ("x.tsv", b"a\tb\n1\t2\n\xef\xbb\xbfa\tb\n", r"x\.tsv:3: repeats the header"),
    "mark again": ("x.jsonl", b'{"a": 1}\n\xef\xbb\xbf{"a": 2}\n', r"x\.jsonl:2: begins with a byte order mark"),
    "key twice": ("x.jsonl", b'{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n', r"x\.jsonl:2: names the key 'a' twice"),
    "key twice inside": ("x.jsonl", b'{"a": [{"b": 2, "b": 2}]}\n', r"x\.jsonl:1: names the key 'b' twice"),
    "key twice in a list": ("x.json", b'[{"a": 1},\n{"a": 1, "a": 3}]', r"x\.json:2: names the key 'a' twice"),
    "half a name": ("x.jsonl", b'{"a": 1, "\\ud83d": 2}', r"x\.jsonl:1: has a column '\\ud83d', whose name"),
    "not gzip": ("x.jsonl.gz", b'{"a": 1}', r"x\.jsonl\.gz: is not a whole gzip file"),
    "cut gzip": ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99)[:-9], r"is not a whole gzip file"),
    "not parquet": ("x.parquet", b"PAR1 no", r"x\.parquet: is not a parquet file"),
    "unknown kind": (
        "x.xlsx",
        b"?",
        r"x\.xlsx: unknown file type; the name must end in \.jsonl, \.ndjson, \.json, \.csv",
    ),
}


@pytest.mark.parametrize(("name", "content", "message"), FAULTS.values(), ids=FAULTS)
def test_fault_in_a_file_is_one_line_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_rows(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_key_that_a_row_names_twice_is_refused_as_datasets_refuses_it(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1, "b": 2, "b": 3}\n')
    with pytest.raises(datasets.exceptions.DatasetGenerationError) as caught:
        datasets.load_dataset("json", data_files=str(path), cache_dir=str(tmp_path / "cache"))
    assert "Column(/b) was specified twice" in str(caught.value.__cause__)
    with pytest.raises(DataError, match="names the key 'b' twice"):
        read_rows(path)


def test_a_cell_like_the_name_of_the_only_column_is_a_row(tmp_path):
    (tmp_path / "x.csv").write_text("text\na\ntext\n")
    assert read_rows(tmp_path / "x.csv") == [{"text": "a"}, {"text": "text"}]


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
        read_rows(source)


def test_split_of_a_file_and_an_empty_slice_are_refused(ten):
    with pytest.raises(DataError, match="has no split 'test'; one file is one split, train"):
        read_source(f"{ten}[test]", "train")
    assert read_rows(f"{ten}[train[10:]]") == []


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


def test_compressed_files_give_their_rows(tmp_path):
    content = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    with pyarrow.CompressedOutputStream(str(tmp_path / "x.jsonl.zst"), "zstd") as file:
        file.write(content)
    (tmp_path / "x.jsonl.xz").write_bytes(lzma.compress(content))
    (tmp_path / "x.jsonl.bz2").write_bytes(bz2.compress(content))
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"a,b\none,1\n"))
    for suffix in ("zst", "xz", "bz2"):
        assert read_rows(tmp_path / f"x.jsonl.{suffix}") == ROWS
    assert read_rows(tmp_path / "x.csv.gz") == [{"a": "one", "b": "1"}]


@pytest.mark.parametrize("suffix", ["zst", "xz", "bz2"])
def test_a_cut_or_wrong_compressed_file_is_one_line(tmp_path, suffix):
    whole = {"xz": lzma.compress, "bz2": bz2.compress, "zst": lambda text: pyarrow.compress(text, "zstd", asbytes=True)}
    content = json.dumps({"a": "".join(map(chr, range(32, 126))) * 9}).encode() * 9
    for bad in (whole[suffix](content)[:-6], b"not packed"):
        (tmp_path / f"x.jsonl.{suffix}").write_bytes(bad)
        with pytest.raises(DataError, match=rf"x\.jsonl\.{suffix}: is not a whole {suffix} file .*download it"):
            read_rows(tmp_path / f"x.jsonl.{suffix}")


def test_a_file_that_unpacks_to_far_more_than_text_does_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "UNSUSPICIOUS_BYTES", 10_000)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b" " * 10_000_000))
    with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
        read_rows(tmp_path / "x.jsonl.gz")


def test_plain_lines_and_arrow_files_give_their_rows(tmp_path):
    (tmp_path / "x.txt").write_bytes("one\r\n\n zwei \u2028 \n".encode())
    assert read_rows(tmp_path / "x.txt") == [{"text": "one"}, {"text": " zwei \u2028 "}]
    table = pyarrow.Table.from_pylist(ROWS)
    for name, opener in (("file", pyarrow.ipc.new_file), ("stream", pyarrow.ipc.new_stream)):
        with opener(str(tmp_path / f"{name}.arrow"), table.schema) as writer:
            writer.write_table(table)
        assert read_rows(tmp_path / f"{name}.arrow") == ROWS


def test_a_glob_is_all_its_files_in_the_order_of_their_names(tmp_path):
    for name in ("part-2", "part-1", "other"):
        write_lines(tmp_path / f"{name}.jsonl", [{"n": name}])
    assert [row["n"] for row in read_rows(tmp_path / "part-*.jsonl")] == ["part-1", "part-2"]
    (tmp_path / "part-3.pdf").write_bytes(b"")
    with pytest.raises(DataError, match=r"matches .*part-3\.pdf, which is of unknown type; make the pattern narrower"):
        read_rows(tmp_path / "part-*")
    with pytest.raises(DataError, match=r"nothing-\*\.csv: matches no file"):
        read_rows(tmp_path / "nothing-*.csv")


LABELLED = datasets.Features(
    {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["x", "y"]),
        "tags": datasets.List(datasets.ClassLabel(names=["O", "B-X"])),
    }
)
NUMBERED = [{"text": "a", "label": 1, "tags": [0, 1]}, {"text": "b", "label": -1, "tags": []}]
NAMED = [{"text": "a", "label": "y", "tags": ["O", "B-X"]}, {"text": "b", "label": None, "tags": []}]


def test_saved_data_sets_give_their_rows_with_the_names_of_labels(tmp_path):
    one = datasets.Dataset.from_list(NUMBERED, features=LABELLED)
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": one, "test": one.select([0])}).save_to_disk(str(tmp_path / "splits"))
    one.to_parquet(str(tmp_path / "x.parquet"))
    assert read_rows(tmp_path / "one") == read_rows(tmp_path / "x.parquet") == NAMED
    assert read_rows(tmp_path / "splits") == NAMED
    assert read_rows(f"{tmp_path}/splits[test]") == NAMED[:1]
    assert read_rows(f"{tmp_path}/one[train[1:]]") == NAMED[1:]
    assert read_rows(f"{tmp_path}/splits[train+test]") == [*NAMED, NAMED[0]]
    with pytest.raises(DataError, match="has no split 'dev'; it has: train, test"):
        read_rows(f"{tmp_path}/splits[dev]")


def test_a_hub_id_with_subset_and_slice_is_asked_of_datasets_by_these_names(monkeypatch):
    asked = []

    def load_dataset(name, subset, split, streaming):
        asked.append((name, subset, split, streaming))
        found = datasets.Dataset.from_list(NUMBERED, features=LABELLED)
        return found.to_iterable_dataset() if streaming else found

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "_hub_answers", lambda endpoint: True)
    assert read_rows("owner/name:subset[validation[:50%]]") == NAMED[:1]
    streamed = read_source("owner/name", "train", streaming=True)
    assert [row.cells for _, row in streamed.rows()] == NAMED
    assert [row.number for _, row in streamed.rows(Cursor(0, 1, 1))] == [2]
    assert asked == [("owner/name", "subset", "validation", False), ("owner/name", None, "train", True)]


def test_files_of_a_folder_that_are_no_data_are_left_out_and_two_kinds_are_refused(tmp_path):
    write_lines(tmp_path / "train-1.jsonl", [{"n": 1}])
    write_lines(tmp_path / "train-0.jsonl", [{"n": 0}])
    for name in ("README.md", "LICENSE.txt", "dataset_infos.json", ".hidden.jsonl"):
        (tmp_path / name).write_text("{}")
    assert read_rows(tmp_path) == [{"n": 0}, {"n": 1}]
    (tmp_path / "train-2.csv").write_text("n\n2\n")
    with pytest.raises(DataError, match=r"contains \.csv and \.jsonl files; name those to read, as .*/\*\.csv"):
        read_rows(tmp_path)
    (tmp_path / "more.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"more\.zip: is an archive; unpack it"):
        read_rows(tmp_path)


def test_subsets_of_a_folder_are_those_of_its_readme(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "rows"
    folder.mkdir()
    for name in ("de", "fr"):
        write_lines(folder / f"{name}.jsonl", [{"n": name}])
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("de", "fr"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert read_rows(f"{folder}:fr") == [{"n": "fr"}]
    with pytest.raises(DataError, match="rows:es: .*'es' not found"):
        read_rows(f"{folder}:es")


def bad_parquet(path):
    """Write a text that is not UTF-8, a date and a time that Python has no value for, and good cells."""
    offsets = pyarrow.array([0, 1, 3], pyarrow.int32()).buffers()[1]
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, pyarrow.py_buffer(b"a\xff\xfe")])
    day = pyarrow.array([0, 2**31 - 1], pyarrow.int32()).cast(pyarrow.date32())
    moment = pyarrow.array([0, 2**62], pyarrow.int64()).cast(pyarrow.timestamp("us"))
    table = {"text": text, "day": day, "moment": moment, "good": ["x", "y"]}
    parquet.write_table(pyarrow.table(table), path)
    return path


def test_values_that_python_lacks_are_faults_of_their_cells_only(tmp_path):
    first, second = read_rows(bad_parquet(tmp_path / "x.parquet"))
    assert first["text"] == "a" and second["good"] == "y"
    assert second["text"] == Unreadable("is not UTF-8 (byte 0xff at position 0)")
    assert second["day"].reason.startswith("has a value that cannot be read as date32")
    assert second["moment"].reason.startswith("has a value that cannot be read as timestamp")


@pytest.mark.parametrize("column", ["text", "day", "moment"])
def test_a_value_that_python_lacks_is_one_line_with_file_row_and_column(tmp_path, column):
    path = bad_parquet(tmp_path / "x.parquet")
    section = Data(train=str(path), format="completion", columns={"prompt": "good", "completion": column})
    with pytest.raises(DataError, match=rf"x\.parquet: row [12]: column '{column}'") as caught:
        read_examples(read_source(str(path), "train"), section)
    assert "\n" not in str(caught.value)
    plain = Data(train=str(path), format="text", columns={"text": "good"})
    assert [one.text for one in read_examples(read_source(str(path), "train"), plain)] == ["x", "y"]


def test_a_quote_that_takes_in_other_lines_of_a_tsv_file_is_a_fault(tmp_path):
    (tmp_path / "x.tsv").write_text('a\tb\n"one\t1\ntwo"\t2\n"x\ty"\t3\n')
    rows = [(row.number, row.cells, row.fault) for _, row in read_source(str(tmp_path / "x.tsv"), "train").rows()]
    assert rows[0][0] == 2 and "takes in more lines" in rows[0][2]
    assert rows[1] == (4, {"a": "x\ty", "b": "3"}, None)


def test_faults_of_lines_do_not_end_a_file(tmp_path):
    (tmp_path / "x.csv").write_bytes(b'a,b\n1,"2"x\n3,4\n5\n\xff,6\n7,8\n')
    rows = [row for _, row in read_source(str(tmp_path / "x.csv"), "train").rows()]
    assert [row.number for row in rows if row.fault] == [2, 4, 5]
    assert [row.cells for row in rows if not row.fault] == [{"a": "3", "b": "4"}, {"a": "7", "b": "8"}]


def test_objects_over_several_lines_of_a_json_file_have_the_lines_where_they_begin(tmp_path):
    (tmp_path / "x.json").write_text('[\n {"a": 1},\n {"a":\n  2},\n 3\n]\n')
    rows = [row for _, row in read_source(str(tmp_path / "x.json"), "train").rows()]
    assert [(row.number, row.cells.get("a")) for row in rows] == [(2, 1), (3, 2), (5, None)]
    assert "must be an object" in rows[2].fault


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("x.csv", b"a,b\nbroken", ["a", "b"]),
        ("x.tsv", b"a\tb\n", ["a", "b"]),
        ("x.txt", b"\xff", ["text"]),
        ("x.json", b'[{"a": 1, "c": 2}]', ["a", "c"]),
    ],
)
def test_columns_of_files_are_read_without_their_rows(tmp_path, name, content, columns):
    (tmp_path / name).write_bytes(content)
    assert read_columns(str(tmp_path / name), "train") == [(str(tmp_path / name), columns)]


def test_columns_of_parquet_come_from_its_schema_and_a_hub_is_not_asked(tmp_path):
    path = bad_parquet(tmp_path / "x.parquet")
    assert read_columns(str(path), "train") == [(str(path), ["text", "day", "moment", "good"])]
    assert read_columns("owner/name", "train") == []


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet", "x.json"])
def test_reading_resumes_after_any_row(tmp_path, name):
    rows = [{"a": str(n)} for n in range(7)]
    if name.endswith("parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name, row_group_size=3)
    elif name.endswith("csv"):
        (tmp_path / name).write_text("a\n" + "".join(f"{n}\n" for n in range(7)))
    elif name.endswith("json"):
        (tmp_path / name).write_text(json.dumps(rows))
    else:
        write_lines(tmp_path / name, rows)
    source = read_source(f"{tmp_path / name}[train[1:6]]", "train")
    found = list(source.rows())
    assert [row.cells["a"] for _, row in found] == list("12345")
    for place, (cursor, _) in enumerate(found):
        assert list(source.rows(cursor)) == found[place + 1 :]


@pytest.mark.parametrize(
    ("names", "chosen"), [(("test", "validation", "train"), "validation"), (("test", "train"), "test")]
)
def test_evaluation_rows_are_those_of_validation_where_a_source_has_them(tmp_path, monkeypatch, names, chosen):
    """Rows that choose a step or a learning rate are not to be those of the test."""

    def cells(source, part):
        return [row.cells for _, row in read_source(str(source), part).rows()]

    folder, saved = tmp_path / "rows", tmp_path / "saved"
    for name in names:
        (folder / name).mkdir(parents=True)
        write_lines(folder / name / "a.jsonl", [{"n": name}])
    made = datasets.DatasetDict({name: datasets.Dataset.from_list([{"n": name}]) for name in names})
    made.save_to_disk(str(saved))
    monkeypatch.setattr(hub, "_hub_answers", lambda endpoint: True)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, subset: list(names))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset, split, streaming: made[split])
    for source in (folder, saved, "owner/name"):
        assert cells(source, "evaluation") == [{"n": chosen}]
        assert cells(source, "test") == [{"n": "test"}] and cells(source, "train") == [{"n": "train"}]
    assert cells("builtin:identifiers", "evaluation") == cells("builtin:identifiers[evaluation]", "train")


def test_a_number_of_32_bits_is_written_as_it_is_read_elsewhere(tmp_path):
    numbers = [0.1, None, 1e-7, 3.0, float("inf"), -2.5, 16777216.0]
    table = pyarrow.table(
        {"a": pyarrow.array(numbers, pyarrow.float32()), "b": pyarrow.array(numbers, pyarrow.float64())}
    )
    parquet.write_table(table, tmp_path / "x.parquet")
    assert [(row["a"], row["b"]) for row in read_rows(tmp_path / "x.parquet")] == [(one, one) for one in numbers]
    half = pyarrow.table({"a": pyarrow.array([0.5, 0.1], pyarrow.float16())})
    with pyarrow.ipc.new_file(tmp_path / "x.arrow", half.schema) as file:
        file.write_table(half)
    assert [row["a"] for row in read_rows(tmp_path / "x.arrow")] == [0.5, pytest.approx(0.1, rel=1e-3)]


def test_a_quoted_header_with_semicolons_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "x.csv").write_text('"text";"label"\n"a;b";"1"\n')
    with pytest.raises(DataError, match=r"x\.csv:1: is not CSV: .*; separate the names of the columns with commas"):
        read_rows(tmp_path / "x.csv")
