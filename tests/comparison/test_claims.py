"""No sentence contradicts the figure that it speaks of: all claims of 200 invented comparisons, by figures and text."""

from __future__ import annotations

import re
from itertools import combinations

import pytest

from peftlab.comparison.claims import WITH_SEED, conclude, describe_groups
from peftlab.comparison.findings import find
from peftlab.comparison.rows import read_table
from peftlab.comparison.verdict import answer, not_worse
from peftlab.comparison.words import estimate_text, size_text

from .folders import Maker
from .invented import invent

COMPARISONS = 200
FIGURE = re.compile(r"by (−?[\d.]+)(?: \[(−?[\d.]+), (−?[\d.]+)\])?(?: or more)?[.;]")


def worse_by(pair, table):
    """Return how much worse `first` is."""
    return -pair.value if table.report.higher_is_better else pair.value


def check_interval(pair):
    """A difference's interval and its verdict are one statement."""
    if pair.scope == "nothing":
        assert not pair.significant and pair.low == pair.high == pair.value
    else:
        assert pair.low <= pair.value <= pair.high
        excludes = pair.low > 0 or pair.high < 0 or pair.low == pair.high != 0
        assert pair.significant == excludes, pair


def check_size(text, pair):
    """The numbers of a sentence are those of its figure."""
    numbers = [float(number.replace("−", "-")) for number in FIGURE.search(text).groups() if number]
    sign = 1 if pair.value >= 0 else -1
    expected = [abs(pair.value), *([] if len(numbers) == 1 else sorted((sign * pair.low, sign * pair.high)))]
    assert numbers == pytest.approx(expected, abs=0.06 * max(pair.high - pair.low, 0.01)), text


def check_group_claim(claim, family, table):
    for pair in claim.figures:
        if hasattr(pair, "first"):
            assert pair == family.between(pair.first, pair.second)
    if claim.kind == "not different":
        assert {frozenset((p.first, p.second)) for p in claim.figures} == set(
            map(frozenset, combinations(claim.subjects, 2))
        )
        assert not any(pair.significant for pair in claim.figures)
        assert claim.text.startswith("No two") or "not significantly different" in claim.text
        assert not claim.text.startswith("No two") or set(claim.subjects) == set(family.ordered)
    elif claim.kind in ("worse", "better"):
        assert all(pair.significant and pair.first == claim.subjects[0] for pair in claim.figures)
        assert tuple(pair.second for pair in claim.figures) == claim.others
        sign = 1 if claim.kind == "worse" else -1
        assert all(sign * worse_by(pair, table) > 0 for pair in claim.figures)
        assert f"significantly {claim.kind}" in claim.text
        if claim.kind == "worse":
            check_size(claim.text, min(claim.figures, key=lambda pair: abs(pair.value)))
        assert all(pair.scope == claim.scope for pair in claim.figures) or claim.scope == "weights"
        assert WITH_SEED[claim.scope] in claim.text
    elif claim.kind == "best":
        means = {name: found.mean for name, found in family.estimates.items()}
        extreme = (max if table.report.higher_is_better else min)(means.values())
        assert all(means[subject] == pytest.approx(extreme, rel=1e-9) for subject in claim.subjects)
        assert "ignificant" not in claim.text


def check_whole_claim(claim, higher):
    if claim.kind == "moved":
        some, count = len(claim.subjects), len(claim.figures)
        part = "The variant" if some else "No variant"
        if count > 1:
            part = f"All {count}" if some == count else f"{some} of {count}" if some else f"None of the {count}"
        assert claim.text.startswith(part)
        for place, figure in enumerate(claim.figures):
            moved = figure.low > 0 if higher or "raised" in claim.text else figure.high < 0
            assert moved == (place < some)
        assert all(figure.of_seeds == (claim.scope != "weights") for figure in claim.figures)
        assert all(figure.of_rows == (claim.scope != "rows") for figure in claim.figures)
    elif claim.kind == "counted":
        significant = sum(pair.significant for pair in claim.figures)
        stated = re.match(r"Of (\d+) pairs? .*?, (\d+|none) differ", claim.text)
        assert stated and int(stated[1]) == len(claim.figures)
        assert (0 if stated[2] == "none" else int(stated[2])) == significant
        assert all(pair.scope == claim.scope for pair in claim.figures)
    elif claim.kind == "open":
        assert claim.figures and not any(pair.significant for pair in claim.figures)


def check_answer(lines, table, family, findings):
    if len(family.ordered) < 2:
        assert len(lines) == len(family.ordered)
        return
    best = lines[0]
    assert best.label == family.ordered[0] and estimate_text(family.estimates[best.label]) in best.text
    equal = not_worse(family)
    against = family.to_best()
    stated = best.text.removesuffix(".").removesuffix(" with these weights").removesuffix(" on these rows")
    better = stated.endswith(("better than every other", "significantly better"))
    assert better == all(pair.significant for pair in against.values()), best.text
    assert ("not significantly worse" in best.text) == (len(equal) > 1)
    untested = [name for name, pair in against.items() if pair.scope == "nothing"]
    if "all but" in best.text:
        assert untested and all(pair.significant for name, pair in against.items() if name not in untested)
    for line in lines[1:]:
        if line.cheapest:
            assert line.label in equal and not any(pair.significant for pair in line.figures)
            for cost, found in line.cheapest.items():
                assert all(found.mean <= findings.costs[cost][other].mean for other in equal)
            for pair in line.figures:
                assert "equal to" in line.text if pair.value == 0 else size_text(pair) in line.text
                assert worse_by(pair, table) >= 0
        elif line.figures:
            assert not line.figures[0].significant and family.scope == "methods"


def test_no_claim_contradicts_its_figures():
    kinds, scopes = set(), set()
    for seed in range(COMPARISONS):
        table = invent(seed)
        findings = find(table)
        for family in findings.families:
            claims = describe_groups(table, family)
            for pair in family.differences:
                check_interval(pair)
            for claim in claims:
                check_group_claim(claim, family, table)
            worse = {(claim.subjects[0], other) for claim in claims if claim.kind == "worse" for other in claim.others}
            assert len(worse) == (len(family.significant) if len(family.ordered) > 1 else 0)
            check_answer(answer(table, findings, family), table, family, findings)
            kinds |= {claim.kind for claim in claims}
            scopes |= {family.scope}
        can, cannot = conclude(table, findings)
        for claim in (*can, *cannot):
            check_whole_claim(claim, table.report.higher_is_better)
        kinds |= {claim.kind for claim in (*can, *cannot)}
    assert kinds == {"best", "not different", "better", "worse", "counted", "moved", "open", "limit"}
    assert scopes == {"methods", "rows", "weights", "nothing"}


def test_without_scores_of_rows_a_difference_is_one_on_these_rows_without_a_rate_of_false_ones():
    """Equal methods differ by the prompts that were drawn: 12 to 61 % of comparisons, more with every seed."""
    table = next(
        table for table in map(invent, range(400))
        if find(table).families[0].scope == "rows" and find(table).families[0].significant
    )  # fmt: skip
    findings = find(table)
    claims = describe_groups(table, findings.families[0])
    significant = [str(claim) for claim in claims if claim.kind in ("worse", "better")]
    assert significant and all(" on these rows" in text for text in significant)
    assert str(claims[-1]) == "Other rows may order the variants otherwise (not tested)."
    assert not any("5 %," in str(claim) or "at most 5 %" in str(claim) for claim in conclude(table, findings)[0])
    assert any("seeds alone" in note for note in findings.notes)


def test_with_one_seed_a_change_and_a_difference_are_significant_of_these_weights():
    """The first report of a stranger: one seed, intervals far from 0, and no sentence that denies them."""
    table = next(
        table for table in map(invent, range(400))
        if len(table.report.seeds) == 1 and any(pair.significant for pair in find(table).families[0].differences)
    )  # fmt: skip
    findings = find(table)
    claims = describe_groups(table, findings.families[0])
    worse = [claim.text for claim in claims if claim.kind == "worse"]
    assert worse and all(" with these weights, by " in text for text in worse)
    assert str(claims[-1]) == "Another seed may order the variants otherwise (not tested)."
    assert any("with the one seed tried" in str(claim) for claim in conclude(table, findings)[0])


def test_the_cheapest_of_several_or_of_some_seeds_alone_says_so(tmp_path):
    """LoRA and QLoRA train equally many parameters. LoRA's mean of 20 s is the least; one of its seeds took 30 s."""
    seconds = {"lora": (10, 20, 30), "qlora": (25, 25, 25), "full": (50, 51, 52)}

    class Close(Maker):
        def fill(self, result, folder, method, loss):
            super().fill(result, folder, method, 3.6 + loss % 0.001)
            result.seconds["training"] = seconds[method][result.recipe["run"]["seed"]]

    table = read_table(Close(tmp_path, methods=tuple(seconds), rows=20, without=("memory", "general")).write())
    findings = find(table)
    (family,) = findings.families
    text = " ".join(one.text for one in answer(table, findings, family) if one.question.startswith("cheapest"))
    assert set(not_worse(family)) == set(seconds), "all three can be the cheapest"
    first, second = (
        ("lora", "qlora") if family.ordered.index("lora") < family.ordered.index("qlora") else ("qlora", "lora")
    )
    assert f"{first}: fewest trainable parameters (175k, as {second})" in text
    assert "fastest training (20.0 s, not in every seed)" in text
