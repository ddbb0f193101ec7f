"""Packed rows of several lengths in one call: what torch's kernel is asked, and where it is not used."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from peftlab.errors import MethodError
from peftlab.speed import row_kernel
from peftlab.speed.apply import speed_up
from peftlab.speed.attention import use_one_call
from peftlab.speed.packing import layout_of, watch_packed_rows
from peftlab.speed.row_kernel import find_kernel
from peftlab.speed.varlen import Varlen, prove
from tests.sampling import diagonals
from tests.speed.rows import FAMILIES, WINDOW, random_rows, small_model, total_and_gradients, with_method
from tests.speed.test_layers import make_recipe
from tests.speed.varlen_reference import varlen_reference

BY_LENGTH = {"gemma2": "soft-capped scores", "gpt_oss": "sinks"}


@pytest.fixture
def kernel(monkeypatch):
    """Put the reference in place of torch's kernel, for any device and type; return the calls of it."""
    calls: list[tuple[int, ...]] = []

    def watched(query, key, value, cu_seq_q, *others, **options):
        calls.append(tuple(cu_seq_q.diff().tolist()))
        return varlen_reference(query, key, value, cu_seq_q, *others, **options)

    watched.__signature__ = inspect.signature(varlen_reference)  # type: ignore[attr-defined]
    monkeypatch.setattr(row_kernel, "find_kernel", lambda: watched)
    monkeypatch.setattr("peftlab.speed.attention.suits", lambda query, key, value: True)
    prove.cache_clear()
    yield calls
    prove.cache_clear()


def test_this_torch_has_the_kernel_that_is_called():
    """Or it would be off everywhere, and nobody would see it."""
    kernel = find_kernel()
    assert callable(kernel)
    names = list(inspect.signature(kernel).parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"scale", "window_size", "enable_gqa"} <= set(names)


@pytest.mark.parametrize(
    ("family", "method"),
    diagonals(sorted(FAMILIES.keys() - BY_LENGTH.keys() - {"mixtral"}), ["full", "lora", "prefix"]),
)
def test_one_call_has_the_loss_and_gradients_of_a_call_for_each_length(kernel, family, method):
    try:
        model = with_method(family, method).float()
    except MethodError as error:
        pytest.skip(f"refused: {error}")
    rows = random_rows(family, (5, 3, WINDOW + 3, 1, 5, 5))
    layout = layout_of(model)
    right, gradients = total_and_gradients(model, family, layout, [rows])
    assert not kernel
    use_one_call(model, True)
    total, found = total_and_gradients(model, family, layout, [rows])
    assert kernel and set(kernel) == {(1, 3, 5, 5, 5, WINDOW + 3)}
    assert total == pytest.approx(right, rel=1e-5)
    largest = max(gradient.norm() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert (found[name] - gradient).norm() <= 1e-4 * max(gradient.norm(), 1e-2 * largest), name


def test_rows_of_one_length_stay_one_plain_call(kernel):
    model = small_model("llama")
    use_one_call(model, True)
    total_and_gradients(model, "llama", layout_of(model), [random_rows("llama", (4, 4, 4))])
    assert not kernel


@pytest.mark.parametrize("family", BY_LENGTH)
def test_what_the_kernel_cannot_do_is_computed_by_length_and_said(kernel, family):
    model = small_model(family)
    assert BY_LENGTH[family] in {call.by_length for call in watch_packed_rows(model)}
    use_one_call(model, True)
    total_and_gradients(model, family, layout_of(model), [random_rows(family, (5, 2))])
    assert not kernel


def test_dropout_of_attention_is_computed_by_length_and_draws_no_random_number_of_the_run(kernel):
    model = small_model("llama", attention_dropout=0.5)
    state = torch.get_rng_state()
    assert {call.by_length for call in watch_packed_rows(model)} == {"dropout"}
    assert torch.equal(state, torch.get_rng_state()) and not model.training


def test_the_proof_is_passed_by_the_documented_kernel_and_by_no_other(kernel, monkeypatch):
    assert prove(torch.device("cpu"), torch.bfloat16) is None

    def leaky(query, key, value, cu_seq_q, cu_seq_k, *others, window_size, **options):
        return varlen_reference(query, key, value, cu_seq_q, cu_seq_k, *others, **options)  # sees what comes later

    leaky.__signature__ = inspect.signature(varlen_reference)  # type: ignore[attr-defined]
    monkeypatch.setattr(row_kernel, "find_kernel", lambda: leaky)
    prove.cache_clear()
    assert "differs from rows one by one" in str(prove(torch.device("cpu"), torch.bfloat16))


def test_without_grouped_heads_in_the_kernel_keys_are_repeated(monkeypatch):
    """As torch 2.11's signature has it."""

    def older(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        options = {"scale": scale, "window_size": window_size}
        return varlen_reference(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **options)

    monkeypatch.setattr(row_kernel, "find_kernel", lambda: older)
    prove.cache_clear()
    assert prove(torch.device("cpu"), torch.bfloat16) is None
    prove.cache_clear()


def test_on_a_cpu_it_is_declined():
    (found,) = [one for one in speed_up(small_model("llama"), make_recipe()).switches if one.name == "varlen"]
    assert not found.used and found.reason == "it needs CUDA"


def test_lengths_of_a_batch_become_int32_bounds():
    assert row_kernel._bounds((3, 1, 2), 2, torch.device("cpu")).numpy().tolist() == np.cumsum([0, 5, 3, 4]).tolist()


def test_the_switch_is_of_the_model_and_not_of_its_wrapper(kernel):
    model = with_method("llama", "lora").float()
    Varlen().apply(model, make_recipe())
    total_and_gradients(model, "llama", layout_of(model), [random_rows("llama", (5, 2))])
    assert kernel
    Varlen().remove(model)
    kernel.clear()
    total_and_gradients(model, "llama", layout_of(model), [random_rows("llama", (5, 2))])
    assert not kernel
