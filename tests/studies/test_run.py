"""A study of two made-up parts: its folder, resuming, the report and the page."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from peftlab.cli.app import run as run_command
from peftlab.errors import StorageError
from peftlab.reports import StudyReport
from peftlab.studies import registry
from peftlab.studies.charts import Curves, Intervals, Point
from peftlab.studies.parts import Part
from peftlab.studies.quantity import Quantity
from peftlab.studies.run import run_study
from peftlab.studies.study import Expectation, Found, Setting, Study, Table


@dataclass
class Result:
    value: float
    seconds: float = 60.0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Kept(Part):
    """Keeps its value in a file, and counts how often it had to make one."""

    def __init__(self, name: str, value: float, made: list[str], failures: list[str]):
        self.name, self.value, self.made, self.failures = name, value, made, failures

    def lines(self) -> list[str]:
        return [f"{self.name}: 1 run"]

    def run(self, study, jobs) -> Result:
        path = study / self.name
        if not path.exists():
            self.made.append(self.name)
            if self.value < 0:
                raise KeyboardInterrupt
            path.write_text(str(self.value))
        return Result(float(path.read_text()), failures=self.failures)


class Toy:
    """A study of two figures that should be equal."""

    def __init__(self, first=1.0, second=1.0, reason=None, failures=()):
        self.values, self.made, self.reason, self.failures = [first, second], [], reason, [*failures]

    @property
    def study(self) -> Study:
        return Study(
            name="toy", question="Are <both> equal?", claim="Both are equal.", source="a test",
            minutes={"trial": 1, "small": 2, "large": 3},
            expectations=lambda size: [Expectation("ratio", "one over the other", 0.9, 1.1)],
            parts=lambda setting: [
                Kept(name, value, self.made, self.failures) for name, value in zip("ab", self.values, strict=True)
            ],
            measure=self.measure, missing=lambda setting: self.reason,
        )  # fmt: skip

    def measure(self, results, confidence) -> Found:
        ratio = results["a"].value / results["b"].value
        curves = Curves("curve", "A curve", "Read it.", "x", "y", {"a": [Point(1, 2, 1, 3), Point(10, 4, 3, 5)],
                        "b": [Point(1, -2, -3, -1)]}, log_x=True, log_y=True)  # fmt: skip
        bars = Intervals("bars", "Bars", "Read them.", "x", {"a": (1, 0.5, 2), "b": (2, 2, 2)}, marks=[1])
        tables = [Table("Both", ["part", "value"], [["<a>", str(results["a"].value)]])]
        return Found({"ratio": Quantity(ratio, ratio - 0.01, ratio + 0.01)}, tables, [curves, bars])


def setting(tmp_path, size="small"):
    return Setting(size, tmp_path / "study")


def test_a_study_writes_its_verdict_with_figures_and_a_page(tmp_path):
    ran = run_study(Toy().study, setting(tmp_path))
    assert ran.report.verdict == "not refuted" and ran.report.seconds == 120
    stored = StudyReport.model_validate_json((tmp_path / "study" / "study.json").read_text())
    assert stored == ran.report
    (found,) = stored.expectations
    assert (found.value, found.low, found.high, found.outcome) == pytest.approx((1, 0.99, 1.01, "not refuted"))
    page = ran.page.read_text(encoding="utf-8")
    assert "The claim is not refuted." in page and "1 [0.99, 1.01]" in page and "0.9 to 1.1" in page
    assert "<both>" not in page and "&lt;both&gt;" in page and "&lt;a&gt;" in page
    assert page.count("<svg") == 2 and (tmp_path / "study" / "bars.png").exists()


def test_a_picture_whose_values_have_no_logarithm_is_drawn_without_them(recwarn):
    vector, pixels = Curves("c", "C", "", "x", "y", {"a": [Point(1, -2, -3, -1)]}, log_x=True, log_y=True).draw()
    assert "<svg" in vector and pixels.startswith(b"\x89PNG") and not recwarn.list


@pytest.mark.parametrize(
    ("named", "ends"), [(True, "--size small --data FOLDER</code>"), (False, "--size small</code>")]
)
def test_the_page_names_the_command_that_repeats_it(tmp_path, named, ends):
    setting = Setting("small", tmp_path / "study", tmp_path if named else None)
    page = run_study(Toy().study, setting).page
    assert f"peftlab study toy {ends}" in page.read_text(encoding="utf-8")


def test_a_claim_whose_quantity_is_outside_is_refuted(tmp_path):
    assert run_study(Toy(second=2.0).study, setting(tmp_path)).report.verdict == "refuted"


def test_a_study_that_was_stopped_continues_with_what_is_missing(tmp_path):
    toy = Toy(second=-1.0)
    with pytest.raises(KeyboardInterrupt):
        run_study(toy.study, setting(tmp_path))
    assert toy.made == ["a", "b"] and not (tmp_path / "study" / "study.json").exists()
    toy.values[1] = 1.0
    assert run_study(toy.study, setting(tmp_path)).report.verdict == "not refuted"
    assert toy.made == ["a", "b", "b"]


def test_a_folder_of_something_else_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "letter.txt").write_text("mine")
    with pytest.raises(StorageError, match="contains files that are not a study of peftlab; name another --output"):
        run_study(Toy().study, setting(tmp_path))
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["letter.txt"]


def test_a_folder_of_another_size_is_refused(tmp_path):
    run_study(Toy().study, setting(tmp_path))
    with pytest.raises(StorageError, match="contains the study toy at size small"):
        run_study(Toy().study, setting(tmp_path, "large"))


def test_a_study_that_cannot_run_here_is_skipped_with_the_reason(tmp_path):
    ran = run_study(Toy(reason="needs the data of E2E").study, setting(tmp_path))
    assert (ran.report.verdict, ran.report.notes, ran.page) == (
        "skipped",
        ["cannot run here: it needs the data of E2E"],
        None,
    )
    assert not (tmp_path / "study").exists()


@pytest.fixture
def toy(monkeypatch):
    toy = Toy()
    monkeypatch.setattr(registry, "STUDIES", {"toy": toy.study})
    return toy


def test_without_a_name_all_studies_are_listed(toy, capsys):
    assert run_command(["study"]) == 0
    shown = capsys.readouterr().out
    assert "toy" in shown and "Are <both> equal?" in shown and "2 min" in shown


def test_a_dry_run_shows_claim_range_and_runs_and_runs_nothing(toy, capsys, tmp_path):
    assert run_command(["study", "toy", "--dry-run", "--output", str(tmp_path / "study")]) == 0
    shown = capsys.readouterr().out
    assert "claim: Both are equal." in shown and "one over the other: 0.9 to 1.1" in shown and "a: 1 run" in shown
    assert toy.made == [] and not (tmp_path / "study").exists()


def test_the_claim_is_shown_before_anything_runs(toy, capsys, tmp_path):
    toy.values[0] = -1.0
    assert run_command(["study", "toy", "--output", str(tmp_path / "study")]) == 130
    assert "The claim is refuted if" in capsys.readouterr().err


def test_json_is_one_object_with_the_verdict(toy, capfd, tmp_path):
    assert run_command(["study", "toy", "--json", "--output", str(tmp_path / "study")]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["verdict"] == "not refuted" and answer["page"].endswith("study.html")


def test_a_failed_run_of_a_study_has_an_exit_code(toy, tmp_path, capsys):
    toy.failures = ["lora: out of memory"]
    monkey = toy.study
    registry.STUDIES["toy"] = monkey
    assert run_command(["study", "toy", "--output", str(tmp_path / "study")]) == 10
    assert "failed: lora: out of memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nothing"], "unknown study 'nothing'; known: toy"),
        (["toy", "--size", "smal"], "--size 'smal': unknown"),
        (["toy", "--data", "nowhere"], "--data nowhere: is not a folder"),
        (["--size", "large"], "--size is for one study: name it; `peftlab study` lists all"),
        (["--data", "."], "--data is for one study"),
        (["--jobs", "2"], "--jobs is for one study"),
    ],
)
def test_a_mistake_is_one_line(toy, capsys, arguments, line):
    assert run_command(["study", *arguments]) == 2
    error = capsys.readouterr().err
    assert line in error and len(error.splitlines()) == 1
