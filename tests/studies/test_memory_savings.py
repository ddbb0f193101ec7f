"""Bytes by hand, and the verdict on made-up memory."""

from __future__ import annotations

import pytest

from peftlab.recipe.dump import dump_values
from peftlab.recipe.load import parse_recipe
from peftlab.reports import MemoryReport
from peftlab.runs.loading import read_shape
from peftlab.studies.compared import Arm
from peftlab.studies.memory_savings import MEMORY_SAVINGS, SHAPES, measure, parts, state_bytes
from peftlab.studies.parts import Planned
from peftlab.studies.study import Setting, conclude

from .invented import invent

# Published totals, in billions.
PUBLISHED = {
    "llama-2-7b": 6.738, "llama-3.1-8b": 8.030, "llama-2-13b": 13.016, "llama-65b": 65.286, "llama-3.1-70b": 70.554
}  # fmt: skip


def test_shapes_have_the_published_numbers_of_parameters(tmp_path):
    planning = parts(Setting("large", tmp_path))[0]
    planning.prepare(tmp_path)
    counts = {}
    for name in SHAPES:
        recipe = parse_recipe(dump_values(planning.recipes[f"{name} full"]))
        counts[name] = round(read_shape(recipe, None).total / 1e9, 3)
    assert counts == PUBLISHED


def test_state_is_weights_gradients_and_optimiser():
    # 10 frozen and 2 trained parameters of four bytes: 40 + 8, gradients 8, two moments 16.
    categories = {"frozen_weights": 40, "trainable_weights": 8, "gradients": 3, "optimiser_state": 16, "logits": 99}
    assert state_bytes(categories) == 40 + 8 + 8 + 16


def arm(trainable: int, frozen_bytes: int, error: float = 0.0) -> Arm:
    categories = {"frozen_weights": frozen_bytes, "trainable_weights": 4 * trainable, "optimiser_state": 8 * trainable}
    peak = 10**9
    return Arm(trainable, 10**6, 1e-4, 1.0, {"measured": peak, "predicted": round(peak * (1 + error))},
               {"measured": categories})  # fmt: skip


def judged(arms):
    found = measure({"measured": invent({"loss": {name: [1.0] for name in arms}}, arms)}, 0.95)
    outcomes = {one.name: one.judge(found.quantities.get(one.name)) for one in MEMORY_SAVINGS.expectations("trial")}
    return conclude([*outcomes.values()]), outcomes, found


def test_savings_as_claimed_do_not_refute():
    arms = {"full": arm(10**6, 0), "lora": arm(10**4, 4 * 10**6), "qlora": arm(10**4, 10**6)}
    verdict, _, found = judged(arms)
    assert verdict == "not refuted"
    assert found.quantities["measured adam"].value == 16
    assert found.quantities["measured lora"].value == pytest.approx((4e6 + 16e4) / 16e6)


def test_a_plan_that_is_three_percent_off_refutes():
    arms = {"full": arm(10**6, 0, 0.03), "lora": arm(10**4, 4 * 10**6), "qlora": arm(10**4, 10**6)}
    verdict, outcomes, _ = judged(arms)
    assert verdict == "refuted" and outcomes["plan of full"] == "refuted"


def test_a_method_that_did_not_run_leaves_the_claim_undecided():
    verdict, outcomes, _ = judged({"full": arm(10**6, 0), "lora": arm(10**4, 4 * 10**6)})
    assert verdict == "undecided" and outcomes["measured qlora"] == "undecided"


def test_plans_are_judged_by_model():
    def plan(frozen: float, trained: float, peak: float) -> MemoryReport:
        categories = {"frozen_weights": int(frozen), "trainable_weights": int(4 * trained),
                      "optimiser_state": int(8 * trained)}  # fmt: skip
        return MemoryReport(source="predicted", device="cuda", peak_bytes=int(peak), categories=categories)

    reports, trainable, total = {}, {}, {}
    for name, size in PUBLISHED.items():
        for method, (frozen, trained, peak) in {
            "full": (0, size, 16 * size), "lora": (2 * size, size / 100, 2.2 * size),
            "qlora": (0.55 * size, size / 100, 0.7 * size),
        }.items():  # fmt: skip
            label = f"{name} {method}"
            reports[label] = plan(frozen * 1e9, trained * 1e9, peak * 1e9)
            trainable[label], total[label] = int(trained * 1e9), int(size * 1e9)
    for text, size in (("float32", 27e9), ("16 bits", 13.5e9), ("4 bits", 3.9e9)):
        reports[f"llama-2-7b in {text}"] = plan(size, 0.0001, size)
    arms = {"full": arm(10**6, 0), "lora": arm(10**4, 4 * 10**6), "qlora": arm(10**4, 10**6)}
    measured = invent({"loss": {name: [1.0] for name in arms}}, arms)
    found = measure({"plans": Planned(reports, trainable, total), "measured": measured}, 0.95)
    outcomes = {one.name: one.judge(found.quantities[one.name]) for one in MEMORY_SAVINGS.expectations("large")}
    assert conclude([*outcomes.values()]) == "not refuted"
    assert found.quantities["65b qlora"].value == pytest.approx(0.7 * 65.286)
