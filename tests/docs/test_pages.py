"""Claims about the README and the pages: linked, current, in plain words, fit for a terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from rich.markdown import Markdown

from peftlab.cli.docs import LINK, as_command, list_topics
from peftlab.recipe.reference_page import PAGE, refresh

from ..idioms import find_idioms
from .pages import DOCS, FILES, PAGES, REPOSITORY, blocks_of, prose, read

LINKED = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([\w-]+))?\)")
CODE_WIDTH = 78


def headings(path: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", read(path), re.MULTILINE)
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_links_lead_to_files_and_headings_that_exist(path):
    for target, anchor in LINKED.findall(read(path)):
        linked = path.parent / target if target else path
        assert linked.is_file(), target
        assert not anchor or anchor in headings(linked), f"{target}#{anchor}"


def test_the_index_and_the_readme_name_every_page():
    assert set(list_topics()) == {path.stem for path in PAGES}
    readme = read(REPOSITORY / "README.md")
    assert [path.stem for path in PAGES if f"(peftlab/docs/{path.name})" not in readme] == ["index"]


def test_the_fields_of_the_recipe_page_are_those_of_the_schema():
    assert read(PAGE) == refresh(read(PAGE)), "run scripts/write_docs"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_words_are_plain(path):
    # Generated from the fields' strings, which are checked where they are written.
    text = prose(read(path).partition("\n## Fields\n")[0])
    assert not find_idioms(text)


def test_a_forbidden_word_would_be_seen():
    bad = "The run goes on. It is no budget. Their rates cannot be told apart; it holds rows, once more."
    assert len(find_idioms(bad)) == 6
    good = "There is no cache. The learning rate is no longer tried. A tenth is held out."
    assert not find_idioms(good)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_fits_into_80_columns_of_a_terminal(path):
    too_long = [
        f"{block}: {line}" for block in blocks_of(path) for line in block.text.splitlines() if len(line) > CODE_WIDTH
    ]
    assert not too_long
    screen = io.StringIO()
    Console(file=screen, width=80, force_terminal=True).print(Markdown(LINK.sub(as_command, read(path))))
    assert "…" not in screen.getvalue(), "a cell of a table is cut"


def test_the_code_that_contributing_names_exists():
    named = set(re.findall(r"`((?:peftlab|tests)/[\w/]+\.py)`", read(DOCS / "contributing.md")))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []


def test_the_readme_is_short():
    assert len(read(REPOSITORY / "README.md").splitlines()) <= 220


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_starts_with_its_title(path):
    assert read(path).startswith("# ") and read(path).count("\n# ") == sum(
        block.text.count("\n# ") + block.text.startswith("# ") for block in blocks_of(path)
    )


def test_the_package_contains_the_pages_and_the_licences():
    import tomllib

    project = tomllib.loads(read(REPOSITORY / "pyproject.toml"))
    assert {"docs/*.md", "py.typed"} <= set(project["tool"]["setuptools"]["package-data"]["peftlab"])
    for name in project["project"]["license-files"]:
        assert (REPOSITORY / name).is_file()
    assert (DOCS.parent / "py.typed").is_file()
    for card in (DOCS.parent / "builtin").glob("*/README.md"):
        assert "LICENSE-PSF.txt" in read(card)


def test_the_version_stands_in_one_place():
    import tomllib

    project = tomllib.loads(read(REPOSITORY / "pyproject.toml"))
    assert "version" not in project["project"] and "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "peftlab.__version__"}
    import peftlab

    assert f"## {peftlab.__version__}" in read(DOCS / "changelog.md")


def tables_of(path: Path) -> list[list[str]]:
    """Return the lines of each table on a page."""
    text = re.sub(r"```.*?```", "", read(path), flags=re.DOTALL)
    return [block.strip().split("\n") for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]


def test_a_table_that_stands_on_two_pages_has_the_same_figures():
    seen: dict[tuple[str, ...], tuple[Path, list[str]]] = {}
    for path in FILES:
        for table in tables_of(path):
            key = (table[0], *(line.split("|")[1] for line in table[2:]))
            former, lines = seen.setdefault(key, (path, table))
            assert former == path or lines == table, f"{former.name} and {path.name}"
    assert len(seen) > 30
