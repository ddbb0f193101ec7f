"""From a comparison's folder to what it says: statistics, words, and what is missing."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from peftlab.comparison.claims import conclude, describe_groups
from peftlab.comparison.findings import find, within
from peftlab.comparison.rows import read_table
from peftlab.comparison.statistics import estimate
from peftlab.errors import StorageError
from peftlab.evaluation.resampling import Sample
from peftlab.runs.digests import write_digests

from .folders import Maker


def made(folder, **how):
    return read_table(Maker(folder, **how).write())


def sentences(table):
    findings = find(table)
    groups = [texts(describe_groups(table, family)) for family in findings.families]
    return groups, *map(texts, conclude(table, findings))


def texts(claims):
    return [claim.text for claim in claims]


def test_the_planted_order_is_found_and_near_neighbours_share_a_letter(plain):
    letters = plain.findings.letters
    first = {name.partition(" ")[0]: letter for name, letter in letters.items() if "trainable" in name}
    assert set(first["full"]) & set(first["lora"])
    assert "a" not in first["prefix"] + first["bitfit"]
    for family in plain.findings.families:
        assert len(family.differences) == 15


def test_means_are_those_of_the_runs_own_metrics(plain):
    row = plain.table.rows[0]
    expected = np.mean([trial.metrics["test_after"]["loss"] for trial in row.trials])
    assert plain.findings.quality["loss"][row.label].mean == pytest.approx(expected)
    change = np.mean([trial.metrics["test_after"]["loss"] - trial.metrics["test_before"]["loss"]
                      for trial in row.trials])  # fmt: skip
    assert plain.findings.change[row.label].mean == pytest.approx(change)


def test_groups_and_worse_variants_are_put_into_words(plain):
    told = texts(describe_groups(plain.table, plain.findings.families[0]))
    assert told[0].endswith("are not significantly different (group a).")
    assert any(sentence.startswith("bitfit is significantly worse than ") for sentence in told)
    can, cannot = map(texts, conclude(plain.table, plain.findings))
    count = sum(len(family.significant) for family in plain.findings.families)
    assert can[0] == f"Of 30 pairs of variants under the same budget, {count} differ significantly in loss."
    assert any("may still differ" in sentence for sentence in cannot)
    off = "Off their budget by more than 2 %: full (+1874 %)"
    assert any(sentence.startswith(off) for sentence in cannot)


def test_with_one_seed_the_best_is_named_as_of_these_rows_and_nothing_is_concluded_of_methods(tmp_path):
    table = made(tmp_path, seeds=(0,), rows=30)
    groups, can, cannot = sentences(table)
    means = {row.name: row.trials[0].report.test for row in table.rows}
    best, second = sorted(means, key=means.__getitem__)[:2]
    ((first, *_, last),) = groups
    assert first.startswith(f"{best} has the lowest loss on these rows; that of {second}, the next, is higher by ")
    shown = first.partition(" is higher by ")[2].split()[0]
    assert float(shown) == pytest.approx(means[second] - means[best], abs=0.5 * 10 ** -len(shown.partition(".")[2]))
    assert last == "Another seed may order the variants otherwise (not tested)."
    assert can[-2].startswith(
        "All 6 variants improved loss over the model before training (with the one seed tried, by"
    )
    assert cannot[0].startswith("One seed was tried: the figures are of these weights")
    claimed = [sentence for sentence in (*can, *groups[0]) if "significantly" in sentence]
    assert claimed and all("with these weights" in sentence for sentence in claimed)


def test_with_one_seed_equal_variants_are_the_best_together(tmp_path):
    table = made(tmp_path, seeds=(0,), rows=30, methods=("lora", "bitfit"))
    (family,) = find(table).families
    pair = replace(family.differences[0], value=0.0)
    told = texts(describe_groups(table, replace(family, differences=[pair])))
    assert told[0] == f"{' and '.join(family.ordered)} have the lowest loss on these rows."


def test_one_variant_is_nothing_to_compare(tmp_path):
    groups, can, _ = sentences(made(tmp_path, methods=("lora",), rows=30))
    assert groups == [["There is nothing to compare: fewer than two variants have results."]]
    assert can[0].startswith("The variant improved loss")


def test_without_row_scores_the_seeds_alone_decide_and_a_note_says_so(tmp_path):
    table = made(tmp_path, methods=("lora", "bitfit"), rows=30, without=("scores",))
    findings = find(table)
    values = [[trial.metrics["test_after"]["loss"] for trial in row.trials] for row in table.rows]
    reference = stats.ttest_ind(*values, equal_var=False)
    assert findings.families[0].differences[0].p == pytest.approx(reference.pvalue)
    assert findings.rows == 0 and "seeds alone" in findings.notes[0]


def test_rows_that_differ_between_runs_are_not_paired(tmp_path):
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=30).write()
    scores = next((folder / "runs").glob("lora-0-0.001-*")) / "scores.json"
    stored = json.loads(scores.read_text())
    after = stored["test_after"]  # one row more, which leaves the mean as it is
    after["loss"].append(sum(after["loss"]) / sum(after["count"]))
    after["count"].append(1)
    scores.write_text(json.dumps(stored))
    assert "same rows" in find(read_table(folder)).notes[0]


def test_classes_give_every_metric_and_no_forgetting(tmp_path):
    table = made(tmp_path, methods=("lora", "bitfit"), rows=80, metric="accuracy", without=("general",))
    findings = find(table)
    assert set(findings.quality) == {
        "loss",
        "perplexity",
        "accuracy",
        "f1_macro",
        "f1_micro",
        "f1_weighted",
        "matthews",
    }
    expected = np.mean([trial.metrics["test_after"]["accuracy"] for trial in table.rows[0].trials])
    assert findings.quality["accuracy"]["lora"].mean == pytest.approx(expected)
    assert findings.general_change == {}


def test_failed_seeds_are_left_out_and_reported(tmp_path):
    table = made(tmp_path, methods=("lora", "bitfit"), rows=30, failed=("bitfit",))
    findings = find(table)
    assert list(findings.quality["loss"]) == ["lora"]
    assert any("bitfit (3 of 3)" in sentence for sentence in texts(conclude(table, findings)[1]))


@pytest.mark.parametrize("value", ["NaN", "null", "1e400", '"a"', "[1]", "{}"])
@pytest.mark.parametrize("column", ["loss", "count"])
def test_a_run_with_a_damaged_score_counts_as_lost_and_is_named(tmp_path, column, value):
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=30).write()
    path = folder / "runs" / "lora-0-0.001-1" / "scores.json"
    scores = json.loads(path.read_text())
    scores["test_after"][column][0] = "HERE"
    path.write_text(json.dumps(scores).replace('"HERE"', value))
    table = read_table(folder)
    assert table.problems[0].startswith(f"{path}: is damaged: ") and len(table.problems) == 1
    assert table.rows[0].status == "2 of 3 (damaged)" and table.rows[1].status == "3 of 3"
    assert find(table).quality["loss"]["lora"].seeds == 2


def test_a_row_without_targets_and_scores_of_another_run_count_as_lost(tmp_path):
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=30).write()
    runs = folder / "runs"
    scores = json.loads((runs / "lora-0-0.001-1" / "scores.json").read_text())
    scores["test_after"]["count"][3] = 0
    (runs / "lora-0-0.001-1" / "scores.json").write_text(json.dumps(scores))
    (runs / "lora-0-0.001-2" / "scores.json").write_bytes((runs / "lora-0-0.001-0" / "scores.json").read_bytes())
    table = read_table(folder)
    assert "contains a row without targets" in table.problems[0]
    assert "does not belong to result.json: the loss test before is" in table.problems[1] or (
        "the loss test after is" in table.problems[1]
    )
    assert table.rows[0].status == "1 of 3 (damaged)"


RECORDS = {
    "empty": b"", "null": b"null", "a list": b"[1, 2]", "half": b'{"status": "fin', "other bytes": b"\xff\xfe\x00",
    "deep": b"[" * 100_000, "deep objects": b'{"a":' * 100_000, "a number": b"3",
    "no recipe": b'{"status": "finished", "name": "x", "recipe": {}, "environment": {}}',
}  # fmt: skip


@pytest.mark.parametrize("name", ["result.json", "scores.json"])
@pytest.mark.parametrize("content", RECORDS.values(), ids=RECORDS)
def test_a_damaged_record_costs_its_run_alone(tmp_path, name, content):
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=30).write()
    path = folder / "runs" / "lora-0-0.001-1" / name
    path.write_bytes(content)
    table = read_table(folder)
    assert [str(path) in line and "counts as lost" in line for line in table.problems] == [True]
    assert table.rows[0].status == "2 of 3 (damaged)"
    assert find(table).quality["loss"]["lora"].seeds == 2


def test_a_record_that_is_a_pipe_or_a_folder_costs_its_run_alone(tmp_path):
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=30).write()
    for seed, make in ((0, os.mkfifo), (1, os.mkdir)):
        path = folder / "runs" / f"lora-0-0.001-{seed}" / "scores.json"
        path.unlink()
        make(path)
    table = read_table(folder)
    assert all("scores.json: is not a regular file" in line for line in table.problems)
    assert table.rows[0].status == "1 of 3 (damaged)"


def test_a_changed_digit_is_noticed_by_its_digest_alone(tmp_path):
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=30).write()
    run = folder / "runs" / "lora-0-0.001-1"
    write_digests(run, 0)
    path = run / "metrics.jsonl"
    path.write_text(path.read_text().replace("4", "3", 1))
    table = read_table(folder)
    assert "metrics.jsonl: is damaged: its SHA-256 differs" in table.problems[0]
    assert read_table(folder, verify=False).problems == []


def test_nested_nonsense_in_the_metrics_is_skipped(tmp_path):
    folder = Maker(tmp_path, methods=("lora",), rows=30).write()
    with (folder / "runs" / "lora-0-0.001-1" / "metrics.jsonl").open("a") as file:
        file.write("[" * 50_000 + "\nnull\n3\n" + '{"event": "train", "step": [1]}\n')
    assert len(read_table(folder).rows[0].finished) == 3


def test_without_test_rows_the_evaluation_rows_are_mentioned(tmp_path):
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=30).write()
    for path in (folder / "runs").glob("*/result.json"):
        result = json.loads(path.read_text())
        result["metrics"] = {k: v for k, v in result["metrics"].items() if not k.startswith("test_")}
        path.write_text(json.dumps(result))
    table = read_table(folder)
    findings = find(table)
    assert findings.part == "" and findings.quality["loss"]
    assert any(sentence.startswith("There were no test rows") for sentence in texts(conclude(table, findings)[1]))


def test_without_a_choice_nothing_is_said_of_one(tmp_path):
    """A run with each recipe's own learning rate chose nothing: its evaluation rows are as good as test rows."""
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=30, without=("sweep",)).write()
    for path in (folder / "runs").glob("*/result.json"):
        result = json.loads(path.read_text())
        result["metrics"] = {k: v for k, v in result["metrics"].items() if not k.startswith("test_")}
        path.write_text(json.dumps(result))
    table = read_table(folder)
    findings = find(table)
    assert findings.part == "" and findings.quality["loss"]
    assert not any("chose the learning rates" in sentence for sentence in texts(conclude(table, findings)[1]))


def test_a_chosen_learning_rate_at_the_end_of_those_tried_is_reported(tmp_path):
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=30).write()
    report = json.loads((folder / "comparison.json").read_text())
    report["variants"][0]["learning_rate"] = 3e-3
    (folder / "comparison.json").write_text(json.dumps(report))
    table = read_table(folder)
    told = [sentence for sentence in texts(conclude(table, find(table))[1]) if "best learning rate" in sentence]
    assert told and "lora" in told[0] and "bitfit" not in told[0]


def test_a_run_outside_the_folder_is_not_read(tmp_path):
    folder = Maker(tmp_path / "in", methods=("lora",), rows=30)
    folder.folder.mkdir()
    folder.write()
    text = (tmp_path / "in" / "comparison.json").read_text().replace("lora-0-0.001-0", "../../outside")
    (tmp_path / "in" / "comparison.json").write_text(text)
    table = read_table(tmp_path / "in")
    assert "outside" in table.problems[0]
    assert len(table.rows[0].finished) == 2


def test_damaged_pieces_cost_only_themselves(tmp_path):
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=30).write()
    (folder / "runs" / "lora-0-0.001-0" / "result.json").write_text("{")
    (folder / "runs" / "lora-0-0.001-1" / "scores.json").write_text('{"test_after": 3}')
    with (folder / "runs" / "lora-0-0.001-2" / "metrics.jsonl").open("a") as file:
        file.write('{"event": "tr')
    table = read_table(folder)
    assert len(table.problems) == 2
    assert len(table.rows[0].finished) == 1 and len(table.rows[1].finished) == 3
    assert find(table).quality["loss"]["lora"].seeds == 1


@pytest.mark.parametrize(("text", "told"), [
    (None, "no comparison.json in it"),
    ("{", "comparison.json: is damaged: it is not JSON"),
    ("[]", "comparison.json: "),
    ('{"name": "x"}', "comparison.json: metric"),
])  # fmt: skip
def test_what_is_not_a_comparison_is_refused_in_one_line(tmp_path, text, told):
    if text is not None:
        (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(StorageError, match=told.replace(".", r"\.")) as error:
        read_table(tmp_path)
    assert "\n" not in str(error.value)


def test_an_interval_ends_where_its_metric_does():
    found = estimate(Sample(np.array([0.1, 0.65, 0.7])), ["prefix"] * 3)
    assert found["prefix"].low < 0 and found["prefix"].high > 1
    clipped = within(found, "accuracy")["prefix"]
    assert (clipped.low, clipped.high, clipped.mean) == (0.0, 1.0, found["prefix"].mean)


def test_rows_of_generated_texts_are_drawn_like_any_others(tmp_path):
    """Two equal methods: which prompts were drawn is chance, and the seeds alone do not show it."""
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=40, without=("general",)).write()
    right = {"lora": [1.0] * 20 + [0.0] * 20, "bitfit": [1.0] * 16 + [0.0] * 24}
    for run in (folder / "runs").iterdir():
        own = right[run.name.partition("-")[0]]
        stored, result = json.loads((run / "scores.json").read_text()), json.loads((run / "result.json").read_text())
        stored["test_after_texts"] = {"sums": {"exact_match": own}}
        result["metrics"]["test_after"]["exact_match"] = sum(own) / len(own)
        (run / "scores.json").write_text(json.dumps(stored))
        (run / "result.json").write_text(json.dumps(result))
    report = json.loads((folder / "comparison.json").read_text()) | {"metric": "exact_match", "higher_is_better": True}
    (folder / "comparison.json").write_text(json.dumps(report))
    findings = find(read_table(folder))
    found = findings.quality["exact_match"]["lora"]
    assert found.mean == 0.5 and found.of_rows
    # 40 rows, each 0 or 1: the interval of a share of one half
    half = stats.t.ppf(0.975, 39) * (0.25 / 39) ** 0.5
    assert found.high - found.mean == pytest.approx(half, rel=0.06)
    assert not findings.notes


@pytest.mark.parametrize("value", [float("inf"), None, "missing"])
def test_a_finished_seed_without_a_finite_value_is_counted_as_lost(tmp_path, value):
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=30, without=("scores", "general")).write()
    for place, run in enumerate(sorted((folder / "runs").glob("*-0.001-*"))):
        result = json.loads((run / "result.json").read_text())
        result["metrics"]["test_after"]["perplexity"] = value if place == 0 else 20.0 + place
        if place == 0 and value == "missing":
            del result["metrics"]["test_after"]["perplexity"]
        (run / "result.json").write_text(json.dumps(result))
    report = json.loads((folder / "comparison.json").read_text()) | {"metric": "perplexity"}
    (folder / "comparison.json").write_text(json.dumps(report))
    table = read_table(folder)
    lost = next(row for row in table.rows if row.name == "bitfit")  # its runs come first
    assert lost.status == "2 of 3 (not finite)" and find(table).quality["perplexity"]["bitfit"].seeds == 2
    assert any("gave no perplexity: bitfit (1 of 3)" in sentence for sentence in texts(conclude(table, find(table))[1]))


def test_a_seed_whose_rows_give_no_value_is_named_in_a_note(tmp_path):
    table = made(tmp_path, methods=("lora", "bitfit"), rows=30)
    row = table.rows[0]
    whole = row.trials[2].scores["test_after"]
    bad = replace(row.trials[2], scores={"test_after": replace(whole, loss=[float("nan"), *whole.loss[1:]])})
    table = replace(table, rows=[replace(row, trials=[*row.trials[:2], bad]), *table.rows[1:]])
    findings = find(table)
    assert findings.quality["loss"][row.label].seeds == 2
    assert any(f"{row.label} (seed 2)" in note and "leave these seeds out" in note for note in findings.notes)


def with_metric(folder, metric, value_of, higher=False):
    """Let every run at the chosen learning rate have a value of another metric, which the comparison then reports."""
    for run in sorted((folder / "runs").glob("*-0.001-*")):
        result = json.loads((run / "result.json").read_text())
        method, seed = run.name.partition("-")[0], int(run.name.rpartition("-")[2])
        for when in ("after", "test_after"):
            result["metrics"][when][metric] = value_of(method, seed)
        (run / "result.json").write_text(json.dumps(result))
    report = json.loads((folder / "comparison.json").read_text()) | {"metric": metric, "higher_is_better": higher}
    (folder / "comparison.json").write_text(json.dumps(report))
    return read_table(folder)


def test_a_seed_whose_perplexity_overflows_is_lost_although_the_scores_of_its_rows_are_finite(tmp_path):
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=30, without=("general",)).write()
    run = folder / "runs" / "lora-0-0.001-1"
    stored, result = json.loads((run / "scores.json").read_text()), json.loads((run / "result.json").read_text())
    stored["test_after"]["loss"] = [800.0 * count for count in stored["test_after"]["count"]]
    (run / "scores.json").write_text(json.dumps(stored))
    result["metrics"]["test_after"]["loss"] = 800.0
    (run / "result.json").write_text(json.dumps(result))
    table = with_metric(folder, "perplexity", lambda method, seed: None if (method, seed) == ("lora", 1) else 30.0)
    lora = next(row for row in table.rows if row.name == "lora")
    assert lora.status == "2 of 3 (not finite)"
    assert find(table).quality["perplexity"]["lora"].seeds == 2


def test_a_variant_of_which_no_seed_is_finite_is_not_compared_and_is_named(tmp_path):
    folder = Maker(tmp_path, methods=("lora", "bitfit", "full"), rows=30, without=("scores", "general")).write()
    table = with_metric(folder, "perplexity", lambda method, seed: float("inf") if method == "lora" else 20.0 + seed)
    found = find(table)
    assert next(row for row in table.rows if row.name == "lora").status == "0 of 3 (not finite)"
    assert set(found.families[0].ordered) == {"bitfit", "full"}
    assert any("gave no perplexity: lora (3 of 3)" in sentence for sentence in texts(conclude(table, found)[1]))


def test_a_seed_without_an_accuracy_is_lost_where_more_is_better_too(tmp_path):
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=30, without=("scores", "general")).write()
    table = with_metric(
        folder,
        "accuracy",
        lambda method, seed: None if (method, seed) == ("lora", 0) else 0.5 + 0.1 * seed,
        higher=True,
    )
    found = find(table)
    assert found.quality["accuracy"]["lora"].seeds == 2 and found.quality["accuracy"]["lora"].mean == pytest.approx(
        0.65
    )
    assert any("gave no accuracy: lora (1 of 3)" in sentence for sentence in texts(conclude(table, found)[1]))


@pytest.mark.parametrize("metric", ["rougeL", "exact_match", "token_f1"])
def test_texts_scored_in_some_runs_only_are_compared_by_seeds_and_no_rate_of_false_ones_is_said(tmp_path, metric):
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=40, without=("general",)).write()
    for run in (folder / "runs").glob("lora-*"):  # the others are of a version that kept no scores of texts
        stored = json.loads((run / "scores.json").read_text())
        stored["test_after_texts"] = {"sums": {metric: [0.5] * 40}}
        (run / "scores.json").write_text(json.dumps(stored))
    table = with_metric(
        folder, metric, lambda method, seed: 0.5 if method == "lora" else 0.3 + 0.02 * seed, higher=True
    )
    found = find(table)
    assert {pair.scope for pair in found.families[0].differences} == {"rows"}
    said = [
        *texts(describe_groups(table, found.families[0])),
        *(one for part in conclude(table, found) for one in texts(part)),
    ]
    assert not any("5 %" in sentence for sentence in said)
    assert any("on these rows" in sentence for sentence in said)
