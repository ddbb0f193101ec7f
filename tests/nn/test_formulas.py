"""Formulas: which functions are compiled, when, and that both forms compute the same."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from peftlab.losses.online_softmax import ONLINE
from peftlab.methods import METHODS
from peftlab.nn.formulas import Formula, compile_formulas, compiled_formulas
from peftlab.speed.apply import speed_up
from peftlab.speed.compiling import Compiling
from peftlab.speed.feed_forward import CANDIDATES
from tests.speed.layers import assert_equal
from tests.speed.test_layers import build, make_recipe, moved, results

NO_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler is installed")


@pytest.fixture
def compiled(monkeypatch):
    """Put a function that notes its calls in the compiler's place; return the names of the functions called."""
    calls: list[str] = []

    def compile_(function, **options):
        assert options == {"dynamic": True, "fullgraph": True}
        return lambda *arguments: calls.append(function.__name__) or function(*arguments)

    monkeypatch.setattr(torch, "compile", compile_)
    return calls


def double(x):
    return x.mul_(2)


def doubled(x):
    return x * 2


def test_a_formula_is_compiled_in_steps_of_the_models_that_ask_for_it(compiled):
    formula, model, other = Formula(double, doubled), torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    compile_formulas(model, True)
    x = torch.ones(2)
    with compiled_formulas(model):
        assert formula(x).tolist() == [2, 2] and x.tolist() == [1, 1]
        with compiled_formulas(other):
            formula(x.clone())
        assert compiled == ["doubled"]
        formula(x)
    formula(x.clone())
    assert compiled == ["doubled", "doubled"]
    compile_formulas(model, False)
    with compiled_formulas(model):
        formula(x)
    assert compiled == ["doubled", "doubled"]


def test_where_operations_are_counted_each_is_seen(compiled):
    formula, model = Formula(double, doubled), torch.nn.Linear(1, 1)
    compile_formulas(model, True)

    class Counts(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with compiled_formulas(model), Counts():
        formula(torch.ones(1))
    assert not compiled


def test_what_is_compiled_writes_into_no_argument_and_computes_the_same():
    torch.manual_seed(0)
    logits, largest, places = torch.randn(5, 9), torch.randn(5, 1), torch.randint(9, (5, 1))
    arguments = [(ONLINE, (logits, places, torch.tensor([1, 0, 1, 1, 0], dtype=torch.bool)[:, None], largest))]
    for activation in CANDIDATES:
        outer, gate, up = torch.randn(3, 4, 6, dtype=torch.float64)
        arguments += [(activation.product, (gate, up)), (activation.by_gate, (outer, gate, up))]
    for formula, inputs in arguments:
        before = [one.clone() for one in inputs]
        found = formula.functional(*inputs)
        assert all(torch.equal(one, other) for one, other in zip(inputs, before, strict=True))
        wanted = formula.plain(*before)
        if formula is ONLINE:  # the target's logit is of no use where it is not in the tile
            found, wanted = ((*one[:3], one[3][inputs[2]]) for one in (found, wanted))
        torch.testing.assert_close(found, wanted)


def test_every_switch_with_formulas_uses_them(compiled):
    model = moved(METHODS["lora"](rank=4).apply(build("llama"))).train()
    speed_up(model, make_recipe())
    compile_formulas(model, True)
    with compiled_formulas(model):
        results(model)
    assert {"_norm", "_gradients", "_turn", "_turn_back", "<lambda>"} == set(compiled)


def test_it_is_declined_where_runs_are_deterministic_or_nothing_is_left_to_compile():
    recipe = make_recipe()
    run = recipe.model_copy(update={"run": recipe.run.model_copy(update={"deterministic": True})})
    assert "deterministic" in Compiling().decline(build("llama"), run).reason
    off = make_recipe(loss="off", feed_forward="off", norm="off", rotary="off")
    assert "are off" in Compiling().decline(build("llama"), off).reason


def test_a_plan_asks_no_compiler_and_accepts_the_switch():
    with torch.device("meta"):
        model = build("llama")
    declined = Compiling().decline(model, make_recipe(compile="on"))
    assert declined.possible and declined.reason == "a plan sees each operation"


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    assert (
        Compiling().decline(build("llama"), make_recipe()).reason == "torch needs a C++ compiler, and none is installed"
    )


@NO_COMPILER
@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_compiled_formulas_have_the_gradients_of_the_plain_path(family):
    plain = moved(METHODS["lora"](rank=4, dropout=0.1).apply(build(family))).train()
    fast = copy.deepcopy(plain)
    report = speed_up(fast, make_recipe(compile="on"))
    assert report.uses("compile")
    with compiled_formulas(fast):
        found = results(fast)
    assert_equal(results(plain), found)


@NO_COMPILER
def test_a_run_whose_shapes_need_many_kernels_does_not_stop():
    """The number of dimensions is part of a kernel; torch allows eight for one function."""
    formula = Formula(lambda x: x * 2)
    for dimensions in range(1, 11):
        assert (formula.compiled(torch.ones((2,) * dimensions)) == 2).all()
