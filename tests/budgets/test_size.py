"""Solved sizes on ten published models, all six methods: nothing is nearer, within 2 % where the steps allow it."""

from __future__ import annotations

import pytest

from peftlab.budgets.solve import apply_budget
from peftlab.errors import MethodError
from peftlab.methods import METHODS
from peftlab.recipe.budget import parse_budget
from peftlab.reports import BudgetReport
from tests.budgets.recipes import recipe_for
from tests.budgets.shapes import MODELS, published_shape
from tests.sampling import diagonals

WITHOUT_BIASES = ("SmolLM2-135M", "Llama 3 8B", "Llama 3.1 70B")
TARGETS = ("trainable=300k", "trainable=20M", "trainable=0.5%", "trainable=2%")


def method_for(kind: str, model: str) -> dict:
    return {"type": kind, "add_missing": True} if kind == "bitfit" and model in WITHOUT_BIASES else {"type": kind}


def neighbours(method, shape, size) -> list[float]:
    """Return how far the sizes beside the solved one are from it: the granularity here."""
    sizes = method.sizes(shape)
    place = list(sizes.values).index(size)
    near = [sizes.values[i] for i in (place - 1, place + 1) if 0 <= i < len(sizes.values)]
    own = method.count_trainable(shape)
    return [method.resized(sizes.field, other).count_trainable(shape) - own for other in near]


def test_of_several_limits_the_smallest_size_counts():
    shape = published_shape("GPT-2 medium")
    recipe = recipe_for({"type": "lora", "targets": "attention"}, shape.task)

    def solved(text: str) -> BudgetReport:
        return apply_budget(recipe, parse_budget(text), shape)[1]

    parameters, stored = solved("trainable=300k"), solved("stored=400KiB")
    assert stored.solved["method.rank"] < parameters.solved["method.rank"]
    for text in ("trainable=300k,stored=400KiB", "stored=400KiB,trainable=300k"):
        both = solved(text)
        assert (both.kind, both.solved, both.met) == ("stored", stored.solved, stored.met)
        assert f"trainable of 300,000 alone would give method.rank={parameters.solved['method.rank']}" in both.notes


@pytest.mark.parametrize("text", ["stored=1MiB,trainable=200M", "trainable=200M,stored=1MiB"])
def test_a_limit_that_no_size_meets_is_the_one_that_is_shown_beside_one_that_is_met(text):
    shape = published_shape("GPT-2 medium")  # full fine-tuning stores 354,823,168 parameters, whichever layers train
    _, both = apply_budget(recipe_for({"type": "full"}, shape.task), parse_budget(text), shape)
    assert both.kind == "stored" and both.reached == 4 * 354_823_168 and both.met is False
    assert both.reason is not None and "method.layers does not change it" in both.reason


def test_what_is_stored_and_what_trains_have_a_field_each_where_a_projection_is_dropped():
    shape = published_shape("GPT-2 medium")  # 24 layers of 1,024: keys and values of a virtual token are 49,152 numbers
    recipe = recipe_for({"type": "prefix", "projection": True}, shape.task)
    _, both = apply_budget(recipe, parse_budget(f"stored={10 * 49152 * 4 // 1024}KiB,trainable=2M"), shape)
    assert both.solved["method.length"] == 10 and both.met
    width = both.solved["method.projection_dim"]
    # embedding, two layers with biases
    trained = 10 * 1024 + (1024 * width + width) + (width * 49152 + 49152)
    assert 1_900_000 < trained <= 2_000_000 * 1.02


@pytest.mark.parametrize(("model", "kind"), diagonals(MODELS, METHODS))
def test_a_solved_size_is_within_2_percent_or_one_step_below(model, kind):
    shape = published_shape(model)
    recipe = recipe_for(method_for(kind, model), shape.task)
    for target in TARGETS:
        solved, report = apply_budget(recipe, parse_budget(target), shape)
        field = solved.method.sizes(shape).field
        assert report.reached == solved.method.count_trainable(shape)
        assert report.solved[f"method.{field}"] == getattr(solved.method, field)
        steps = neighbours(solved.method, shape, getattr(solved.method, field))
        error = report.reached - report.asked
        # The budget lies beyond the smallest or largest size ...
        beyond = all((step > 0) == (error > 0) for step in steps)
        # ... or no size beside the solved one is nearer within 2 %, and beyond 2 % the next would exceed the budget.
        within = abs(error) <= 0.02 * report.asked
        assert beyond or all(
            abs(error) <= abs(error + step) if within else error < 0 and (step < 0 or error + step > 0)
            for step in steps
        )
        graded = kind != "bitfit"
        assert report.met == (abs(error) <= 0.02 * report.asked or (graded and not beyond))
        assert (report.reason is None) == (abs(error) <= 0.02 * report.asked)


def test_every_method_but_bitfit_and_full_is_within_2_percent_where_a_step_is_small():
    """2 % of these models is more than 25 steps of every scale."""
    for model in ("GPT-2 medium", "Llama 3.1 70B"):
        shape = published_shape(model)
        for kind in ("lora", "qlora", "adapters", "prefix"):
            report = apply_budget(recipe_for({"type": kind}), parse_budget("trainable=2%"), shape)[1]
            assert report.met and abs(report.error) <= 0.02, (model, kind)


# By hand: Llama 3 8B has 32 layers, width 4096, keys and values of 1024, a feed-forward of 14336.
RANK_STEP = 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
BY_HAND = [
    ({"type": "lora"}, "trainable=20M", {"rank": 7}, 7 * RANK_STEP),
    ({"type": "lora", "targets": "attention"}, "trainable=20M", {"rank": 23}, 23 * 32 * (2 * 8192 + 2 * 5120)),
    ({"type": "adapters"}, "trainable=20M", {"bottleneck": 38}, 64 * (2 * 4096 * 38 + 38 + 4096)),
    (
        {"type": "adapters", "reduction_factor": 4, "placement": "pfeiffer"},
        "trainable=20M",
        {"bottleneck": 76, "reduction_factor": None},
        32 * (2 * 4096 * 76 + 76 + 4096),
    ),
    ({"type": "prefix"}, "trainable=20M", {"length": 305}, 305 * 2 * 32 * 1024),
    ({"type": "prefix", "kind": "prompt"}, "trainable=200k", {"length": 49}, 49 * 4096),
    (
        {"type": "prefix", "projection": True, "length": 10},
        "trainable=20M",
        {"projection_dim": 299},
        10 * 1024 + 299 * (1024 + 1) + 65536 * (299 + 1),
    ),
    ({"type": "full"}, "trainable=500M", {"layers": 2}, 2 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 8192)),
    ({"type": "full"}, "trainable=100%", {"layers": "all"}, 8_030_261_248),
]


@pytest.mark.parametrize(("method", "target", "size", "count"), BY_HAND)
def test_llama_3_8b_gets_the_size_that_the_formula_gives_by_hand(method, target, size, count):
    solved, report = apply_budget(recipe_for(method), parse_budget(target), published_shape("Llama 3 8B"))
    assert report.reached == count
    assert {name: getattr(solved.method, name) for name in size} == size
    assert {path for path in report.solved if path != "method.alpha"} == {f"method.{name}" for name in size}


@pytest.mark.parametrize(("settings", "scale"), [({}, 2.0), ({"alpha": 32, "rank": 4}, 8.0)])
def test_alpha_follows_the_rank_so_that_the_update_keeps_its_scale(settings, scale):
    shape = published_shape("all-MiniLM-L6")
    for kind in ("lora", "qlora"):
        recipe = recipe_for({"type": kind, **settings}, shape.task)
        method = apply_budget(recipe, parse_budget("trainable=3M"), shape)[0].method
        assert method.rank == 72 and method.alpha / 72 == pytest.approx(scale)


def test_alpha_follows_the_root_of_the_rank_with_rslora():
    shape = published_shape("all-MiniLM-L6")
    recipe = recipe_for({"type": "lora", "rslora": True, "rank": 4, "alpha": 16}, shape.task)
    method = apply_budget(recipe, parse_budget("trainable=3M"), shape)[0].method
    assert method.alpha / method.rank**0.5 == pytest.approx(8)


def test_an_orthogonal_start_gets_an_even_rank():
    shape = published_shape("all-MiniLM-L6")
    recipe = recipe_for({"type": "lora", "init": "orthogonal"}, shape.task)
    assert apply_budget(recipe, parse_budget("trainable=300k"), shape)[0].method.rank == 6


def test_a_new_head_counts_and_is_reported():
    shape = published_shape("RoBERTa-base")
    head = 768 * 768 + 768 + 768 * 7 + 7
    report = apply_budget(recipe_for({"type": "prefix"}, shape.task), parse_budget("trainable=300k"), shape)[1]
    assert report.reached == head + 2 * 12 * 768
    assert not report.met and "the smallest size, already has 614,407 parameters" in report.reason
    assert f"the new head always trains and is counted: {head:,} parameters" in report.notes


def test_bitfit_has_its_own_numbers_and_says_so():
    shape = published_shape("BERT-base")
    report = apply_budget(recipe_for({"type": "bitfit"}, shape.task), parse_budget("trainable=300k"), shape)[1]
    assert report.reached == 102_912 + 768 * 7 + 7 and not report.met
    assert report.reason.startswith(
        "the only sizes are method.terms=subset (51,463 parameters) and method.terms=all (108"
    )


def test_a_share_is_of_the_base_and_the_same_for_every_method():
    shape = published_shape("Qwen2-0.5B")
    for kind in METHODS:
        report = apply_budget(recipe_for({"type": kind}), parse_budget("trainable=0.5%"), shape)[1]
        assert report.asked == 0.005 * 494_032_768
        assert "0.5% of the base model's 494,032,768 parameters" in report.notes


def test_a_method_that_no_size_fits_is_refused():
    with pytest.raises(MethodError, match="method.terms: this llama model has no biases"):
        apply_budget(recipe_for({"type": "bitfit"}), parse_budget("trainable=300k"), published_shape("Llama 3 8B"))
    with pytest.raises(MethodError, match="method.targets: 'q_prj' matches no linear layer"):
        recipe = recipe_for({"type": "lora", "targets": ["q_prj"]})
        apply_budget(recipe, parse_budget("trainable=300k"), published_shape("Llama 3 8B"))


def test_a_rank_that_the_model_has_no_room_for_is_no_fault_as_it_is_replaced():
    recipe = recipe_for({"type": "lora", "rank": 5000})
    assert apply_budget(recipe, parse_budget("trainable=20M"), published_shape("Llama 3 8B"))[0].method.rank == 7
