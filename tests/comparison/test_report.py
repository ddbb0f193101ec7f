"""The report's files without a browser: self-contained, escaped, and whole whatever is missing."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from math import nan
from xml.etree import ElementTree

import pytest

from peftlab.cli.app import run
from peftlab.cli.render_comparison import quality_table
from peftlab.comparison.report import pictures
from peftlab.comparison.report.curves import mean_curve
from peftlab.comparison.report.pictures import Subject, draw_all
from peftlab.comparison.report.style import PAGE_COLOURS
from peftlab.comparison.report.style import plain as plain_name
from peftlab.comparison.report.write import write_report
from peftlab.comparison.rows import read_table
from peftlab.errors import StorageError

from .conftest import SCRIPT
from .folders import Maker

PICTURES = {
    "quality", "differences", "pareto_trainable", "pareto_memory", "pareto_seconds", "change", "forgetting", "memory",
    "training_loss", "held_out_loss", "learning_rates",
}  # fmt: skip
VOID = {"meta", "link", "input", "br", "hr", "img"}


class Page(HTMLParser):
    """Collects tags, attributes and ids, and checks that every tag is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def one_picture(monkeypatch):
    """Draw one picture only, where a test asks about the rest."""
    whole = pictures.subjects_of
    monkeypatch.setattr(pictures, "subjects_of", lambda *known: [one for one in whole(*known) if one.name == "change"])


@pytest.fixture(scope="module", params=["plain", "hostile"])
def page(request):
    """The text and the parsed page of both reports."""
    written = request.getfixturevalue(request.param)
    text = written.page.read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_is_well_formed_and_every_id_is_its_own(page):
    _, parsed = page
    assert parsed.open == []
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) > 100 and len(ids) == len(set(ids))


def test_the_page_refers_to_nothing_outside_itself(page):
    text, parsed = page
    ids = {value for _, name, value in parsed.attributes if name == "id"}
    for tag, name, value in parsed.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert value == "data:," or value[1:] in ids, (tag, name, value)
        for reference in re.findall(r"url\((.*?)\)", value or ""):
            assert reference.strip("'\"").lstrip("#") in ids
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style


def test_only_the_pages_own_script_is_in_it(page):
    text, parsed = page
    assert parsed.tags.count("script") == 1
    assert "script-src 'sha256-" in text
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert "img" not in parsed.tags


def test_pictures_in_the_page_take_their_colours_from_it(plain):
    text = plain.page.read_text(encoding="utf-8")
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        left = set(re.findall(r"#[0-9a-f]{6}\b", svg))
        assert not left & set(PAGE_COLOURS), "a colour that a dark page could not change"
        assert not left, "a colour that the page does not know"


def test_every_picture_is_there_as_svg_and_png(plain):
    for name in PICTURES:
        ElementTree.parse(plain.page.parent / f"{name}.svg")
        assert (plain.page.parent / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert plain.problems == []
    assert all(path.is_file() for path in plain.files)


def test_hostile_names_are_shown_as_they_are_without_control_characters(hostile):
    text = hostile.page.read_text(encoding="utf-8")
    assert SCRIPT not in text
    assert "&lt;script&gt;window.harmed=1" in text
    assert not set(text) & {"\x00", "\x1b", "\u202e"}
    assert hostile.problems == []


def test_a_failed_variant_is_a_row_that_says_so(hostile):
    text = hostile.page.read_text(encoding="utf-8")
    assert "0 of 3" in text and "(diverged)" in text
    assert "loss is not finite at step 3" in text


def test_lines_of_a_history_without_a_number_are_skipped(plain):
    row = plain.table.rows[0]
    whole = mean_curve(row, "train")
    odd = [{"event": "train", "step": 10, "loss": None}, {"event": "train"}]
    odd.append({"event": "train", "step": 20, "loss": nan})
    trials = [replace(trial, history=trial.history + odd) for trial in row.trials]
    assert set(whole) == {10, 20, 30, 40}
    assert set(mean_curve(replace(row, trials=trials), "train")) == {30, 40}


def test_a_name_fits_a_picture():
    assert plain_name("a\nb\x00c") == "a bc"
    assert plain_name("_hidden") == " _hidden"
    assert len(plain_name("x" * 99)) == 22
    assert plain_name("\u202e") == "unnamed"


def test_a_report_is_the_same_when_written_again(tmp_path, one_picture):
    folder = Maker(tmp_path, methods=("lora",), seeds=(0,), rows=20, without=("memory", "examples", "sweep")).write()
    first = write_report(folder)
    before = {path.name: path.read_bytes() for path in first.files if path.suffix in (".html", ".csv", ".svg")}
    again = write_report(folder)
    assert {path.name: path.read_bytes() for path in again.files if path.name in before} == before


@pytest.mark.parametrize("how", [
    {"methods": ("lora", "full"), "failed": ("lora", "full"), "seeds": (0,)},
    {"methods": (), "seeds": ()},
])  # fmt: skip
def test_a_comparison_without_results_still_has_a_report(tmp_path, how):
    written = write_report(Maker(tmp_path, rows=20, **how).write())
    assert written.problems == []
    assert "nothing to compare" in written.page.read_text(encoding="utf-8") or not how["methods"]


def test_a_picture_that_fails_takes_nothing_else_with_it(plain, monkeypatch):
    subjects = pictures.subjects_of(plain.table, plain.findings)

    def fail():
        raise ValueError("no room")

    broken = Subject("broken", "Broken", "", fail)
    monkeypatch.setattr(pictures, "subjects_of", lambda *_: [broken, subjects[5]])
    problems = []
    assert [picture.name for picture in draw_all(plain.table, plain.findings, problems)] == ["change"]
    assert problems == ["the picture 'Broken' could not be drawn: ValueError: no room"]


def test_the_command_writes_the_page_where_it_is_asked_to_and_answers_in_json(tmp_path, capfd, one_picture):
    folder = Maker(tmp_path, methods=("full", "bitfit"), rows=40, without=("memory", "examples", "sweep")).write()
    page = tmp_path / "elsewhere" / "page.html"
    assert run(["report", str(folder), "--output", str(page), "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [one["group"] for one in answer["variants"]] == ["a", "b"]
    assert answer["pairs"][0]["significant"] is True
    assert set(answer["files"]) >= {str(page), str(folder / "report" / "rows.parquet")}
    assert not (folder / "report" / "report.html").exists()


def test_the_command_prints_groups_and_limits(tmp_path, capfd, one_picture):
    folder = Maker(tmp_path, methods=("lora",), rows=20, without=("memory", "examples", "sweep", "general")).write()
    assert run(["report", str(folder)]) == 0
    out = capfd.readouterr().out
    assert "There is nothing to compare" in out and "but: All of this applies to this model" in out
    assert out.splitlines()[0] == f"page: {folder / 'report' / 'report.html'}"
    assert max(map(len, out.splitlines()[2:])) <= 80


@pytest.mark.parametrize(
    ("made", "said", "not_said"),
    [
        ({}, "the mean over the seeds at the learning rate that was best", "alone"),
        ({}, "two sources of chance: the seeds, by Student's t, and the rows", "one seed"),
        ({"seeds": (0,)}, "Each number is of one seed, at the learning rate", "Student's t"),
        ({"seeds": (0,)}, "the chance of the rows alone, by 2,000 bootstrap drawings", "Two seeds"),
        ({"rows": 4}, "the chance of the seeds alone, by Student's t", "bootstrap"),
        ({"rows": 4, "seeds": (0,)}, "It has no interval", "Holm"),
        ({"seeds": (0, 1)}, "Two seeds give very wide intervals", "one of these trained weights"),
    ],
)
def test_the_page_says_how_its_numbers_were_computed_and_nothing_else(tmp_path, one_picture, made, said, not_said):
    folder = Maker(tmp_path, methods=("lora", "bitfit"), **made).write()
    text = write_report(folder).page.read_text().partition("How this was computed</h2>")[2]
    text = text.replace("&#39;", "'")
    assert said in text and not_said not in text


def test_the_table_of_a_comparison_without_variants_has_no_rows(tmp_path):
    table = read_table(Maker(tmp_path, methods=()).write())
    assert quality_table(table, {}).row_count == 0


def test_a_folder_without_a_comparison_is_one_line_and_exit_code_8(tmp_path, capfd):
    assert run(["report", str(tmp_path)]) == 8
    (line,) = capfd.readouterr().err.splitlines()
    assert "(no comparison.json in it); name one that `peftlab compare` wrote" in line


def test_an_output_that_cannot_be_written_is_one_line_and_exit_code_8(tmp_path, capfd):
    folder = Maker(tmp_path, methods=(), seeds=()).write()
    (tmp_path / "file").write_text("")
    assert run(["report", str(folder), "--output", str(tmp_path / "file" / "page.html")]) == 8
    (line,) = capfd.readouterr().err.splitlines()
    assert "cannot be written" in line and "--output" in line


@pytest.mark.parametrize("name", ["report", "report/peft-bench"])
def test_a_folder_of_the_report_that_is_a_link_is_refused(tmp_path, name):
    folder, other = Maker(tmp_path / "made", methods=("lora", "bitfit"), rows=30).write(), tmp_path / "other"
    other.mkdir()
    (other / "rows.csv").write_text("precious")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(other)
    with pytest.raises(StorageError, match=f"{name} is a link"):
        write_report(folder, export=True)
    assert [path.read_text() for path in other.iterdir()] == ["precious"]


def test_a_page_that_is_named_by_a_link_is_written_there_and_a_pipe_is_none(tmp_path, one_picture):
    folder = Maker(tmp_path / "made", methods=("lora", "bitfit"), rows=30).write()
    (tmp_path / "link.html").symlink_to(tmp_path / "page.html")
    write_report(folder, tmp_path / "link.html")
    assert (tmp_path / "link.html").is_symlink() and "<html" in (tmp_path / "page.html").read_text()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="it is not a regular file"):
        write_report(folder, tmp_path / "pipe")


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet", "change.png", "change.svg", "table.md", "report.html"])
def test_a_link_in_the_report_is_replaced_and_what_it_names_is_left_as_it_is(tmp_path, one_picture, name):
    folder = Maker(tmp_path / "made", methods=("lora", "bitfit"), rows=30).write()
    (folder / "report").mkdir()
    (tmp_path / "precious").write_text("precious")
    (folder / "report" / name).symlink_to(tmp_path / "precious")
    write_report(folder)
    assert (tmp_path / "precious").read_text() == "precious"
    assert (folder / "report" / name).is_file() and not (folder / "report" / name).is_symlink()
