"""`train --dry-run`: what it shows, that it leaves nothing, and how rows look without colour."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from peftlab.cli.app import run
from peftlab.cli.render import show
from peftlab.cli.render_rows import MARK, render_row, text_lines
from peftlab.cli.training import show_dry_run
from peftlab.recipe.load import load_recipe
from peftlab.reports import DryRunReport, RowView, Span
from tests.runs.recipes import shallow_model

from .commands import TINY


def short() -> list[str]:
    rows = ["data.train_rows=8", "data.evaluation_rows=4", "data.max_length=64", "training.batch_size=2"]
    return [f"model.name={shallow_model()}", *rows]


@pytest.fixture
def dry(tmp_path, monkeypatch, capfd):
    """Make a dry run in an empty folder and return its one JSON object."""
    monkeypatch.chdir(tmp_path)
    assert run(["train", str(TINY), *short(), "--dry-run", "--json"]) == 0
    return DryRunReport.model_validate_json(capfd.readouterr().out, extra="ignore")


def test_a_dry_run_shows_what_a_run_would_start_with_and_leaves_nothing(dry, tmp_path, capfd, monkeypatch):
    assert list(tmp_path.iterdir()) == []
    predicted, measured = dry.memory["predicted"], dry.memory["measured"]
    assert predicted.phases["steady_step"] == pytest.approx(measured.phases["steady_step"], rel=0.02)
    assert dry.parameters.trainable > 0 and len(dry.rows) == 3
    monkeypatch.setenv("NO_COLOR", "1")
    show_dry_run(load_recipe(TINY, short()), dry)
    shown = capfd.readouterr().out.splitlines()
    assert "  train_rows: 8" in shown
    assert any(line.startswith(MARK) for line in shown)
    tables = " ".join(" ".join(shown).split())
    for words in ("predicted measured error", "steady step", "saved activations", "evaluation"):
        assert words in tables
    assert max(map(len, shown)) <= 80 and not any("\x1b" in line for line in shown)


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_a_dry_run_goes_with_no_run(capsys, option):
    assert run(["train", str(TINY), "--dry-run", option]) == 2
    assert "--dry-run has no run directory" in capsys.readouterr().err


def test_supervised_lines_are_marked_and_control_characters_are_seen(capsys):
    spans = [
        Span(text="Q: \x1b[31m\u202e?\nA:", tokens=5, supervised=False),
        Span(text=" yes\t\\ [bold]\n", tokens=4, supervised=True),
    ]
    for line in render_row(RowView(tokens=9, supervised=4, spans=spans), "row 1"):
        show(line)
    assert capsys.readouterr().out.splitlines() == [
        "row 1: 9 tokens, 4 supervised",
        "    Q: \\x1b[31m\\u202e?\\n",
        "    A:",
        "  |  yes\\t\\\\ [bold]\\n",
    ]


def test_a_long_row_says_what_it_leaves_out():
    spans = [Span(text="x" * 5000, tokens=9, supervised=True)] * 20
    lines = [line.plain for line in render_row(RowView(tokens=180, supervised=180, spans=spans), "row 1")]
    assert "  | [... 4,520 characters]" in lines
    assert lines[-1] == "    [... 12 more spans]"


@settings(max_examples=40)
@given(st.text(max_size=200))
def test_any_text_fits_into_80_columns_and_can_be_read_back(text):
    lines = list(text_lines(text))
    assert all(cell_len(line) <= 76 and line.isprintable() for line in lines)
    # Only what is escaped is not itself, so the escapes read back give the text.
    escaped = "".join(character if character.isascii() else f"\\U{ord(character):08x}" for character in "".join(lines))
    assert escaped.encode("ascii").decode("unicode_escape") == text
