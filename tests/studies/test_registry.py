"""Every study, at every size: stated before it runs, with recipes that are right."""

from __future__ import annotations

import html

import pytest

from peftlab.errors import UsageError
from peftlab.recipe.dump import dump_values
from peftlab.recipe.load import parse_recipe
from peftlab.studies.registry import STUDIES, find_study
from peftlab.studies.run import announce, run_study
from peftlab.studies.study import SIZES, Setting

from ..idioms import find_idioms

every = pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)


@every
@pytest.mark.parametrize("size", SIZES)
def test_a_study_states_what_would_refute_it_and_what_it_runs_before_it_writes_anything(study, size, tmp_path):
    announced = announce(study, Setting(size, tmp_path / "study", tmp_path))
    names = [one.name for one in announced.expectations]
    assert names and len(set(names)) == len(names)
    assert all(one.refuted_where and one.expected for one in announced.expectations)
    assert announced.runs and announced.minutes > 0 and announced.verdict is None
    assert not (tmp_path / "study").exists()


@every
@pytest.mark.parametrize("size", SIZES)
def test_the_recipes_of_a_study_are_right(study, size, tmp_path):
    for part in study.parts(Setting(size, tmp_path, tmp_path)):
        for values in part.recipes.values():
            parse_recipe(dump_values(dict(values)))


@every
def test_a_small_study_takes_at_most_half_an_hour_on_two_cores(study):
    assert study.minutes["small"] <= 60 and study.minutes["large"] > study.minutes["small"]


@every
def test_the_words_of_a_study_are_plain(study, tmp_path):
    announced = announce(study, Setting("large", tmp_path, tmp_path))
    texts = [study.question, study.claim, *(one.text for one in announced.expectations), *announced.runs]
    assert [fault for text in texts for fault in find_idioms(text)] == []


def test_an_unknown_study_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="unknown study 'capacty'.*capacity"):
        find_study("capacty")


@pytest.fixture
def restaurants(tmp_path):
    """A folder with two files of invented restaurants, as the E2E challenge names its own."""
    folder = tmp_path / "restaurants"
    folder.mkdir()
    for name, first in (("devset.csv", 0), ("testset.csv", 200)):
        rows = [f'"name[Inn {n}], food[{"pies" if n % 2 else "soup"}]",The Inn {n} serves food.' for n in
                range(first, first + 120)]  # fmt: skip
        (folder / name).write_text("\n".join(["mr,ref", *rows]) + "\n", encoding="utf-8")
    return folder


@pytest.mark.slow
@every
def test_a_trial_of_a_study_runs_to_its_end(study, tmp_path, restaurants):
    ran = run_study(study, Setting("trial", tmp_path / "study", restaurants))
    assert ran.report.verdict == "undecided" and ran.report.failures == []
    assert ran.report.question in html.unescape(ran.page.read_text(encoding="utf-8"))
    assert ran.report.seconds > 0 and ran.report.tables
