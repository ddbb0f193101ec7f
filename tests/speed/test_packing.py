"""Packed rows against the same rows one by one: losses, gradients, and the families for which they are declined."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, Qwen2MoeConfig, Qwen2MoeForCausalLM

from peftlab.data.batches import EndToEnd, Padded, group_rows
from peftlab.errors import MethodError
from peftlab.models.recompute import recompute_activations
from peftlab.optimization.step import optimizer_step
from peftlab.recipe.schema import Recipe
from peftlab.speed.apply import speed_up
from peftlab.speed.attention import NAME, RowsError, attention_of_rows, rows_attention
from peftlab.speed.packing import Packing, judge, layout_of, probe, training_layout
from tests.methods.tiny import GATED
from tests.sampling import diagonals
from tests.speed.rows import (
    FAMILIES,
    METHODS,
    PADDED,
    WINDOW,
    precise,
    random_rows,
    small_model,
    total_and_gradients,
    with_method,
)
from tests.training.small import small_recipe, small_setup, tiny_llama

LENGTHS = (5, 3, 1, 9, 9, 12, 2)


def assert_as_separate(model, family, rows, tolerance: float = 1e-5, loss=None) -> None:
    right, gradients = total_and_gradients(model, family, Padded(0), [[row] for row in rows if row.supervised], loss)
    total, found = total_and_gradients(model, family, layout_of(model), [rows], loss)
    assert total == pytest.approx(right, rel=tolerance)
    assert found.keys() >= gradients.keys()
    scale = max(gradient.norm() for gradient in gradients.values())
    for name, gradient in found.items():
        one = gradients.get(name, torch.zeros_like(gradient))
        assert (gradient - one).norm() <= tolerance * max(one.norm(), 1e-3 * scale), name


@pytest.mark.parametrize(("family", "method"), diagonals(FAMILIES, METHODS))
def test_packed_loss_and_gradients_are_the_sum_of_separate_rows(family, method):
    try:
        model = with_method(family, method)
    except MethodError as error:
        pytest.skip(f"refused: {error}")
    assert judge(model) == ""
    # QLoRA computes in float32, where a padded batch of these rows differs from them by 3e-5 too.
    assert_as_separate(model, family, random_rows(family, LENGTHS), 1e-4 if method == "qlora" else 1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss", "gpt2", "roberta"])
def test_rows_of_any_lengths_are_kept_apart(family):
    model, chance = small_model(family), np.random.default_rng(1)
    for seed in range(8):
        lengths = chance.choice([1, 2, 3, WINDOW, WINDOW + 1, 17, 31], size=chance.integers(1, 9))
        assert_as_separate(precise(model, family), family, random_rows(family, [*lengths, 2], seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_keeps_rows_apart_passes_the_probe(family):
    model = small_model(family)
    assert probe(model.train(), layout_of(model)) == ""
    assert model.training


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_random_weights_in_16_bits_pass_the_probe(family):
    model = small_model(family, scale=0.5).bfloat16()
    assert probe(model, layout_of(model)) == ""


@pytest.mark.parametrize("family", PADDED)
def test_a_model_that_cannot_keep_rows_apart_is_declined_and_would_fail_the_probe(family):
    model = small_model(family)
    assert judge(model)
    assert probe(model, EndToEnd())


def test_positions_that_do_not_begin_again_fail_the_probe(monkeypatch):
    monkeypatch.setattr(EndToEnd, "_positions", lambda self, ids: np.arange(len(ids)) + 7)
    assert "change the model's outputs" in probe(small_model("gpt2"), EndToEnd())


def test_a_window_that_attention_does_not_get_is_declined(monkeypatch):
    """Rows of the probe are shorter than this window, so that outputs cannot show it."""
    model = small_model("mistral", sliding_window=2000)
    assert probe(model, EndToEnd()) == ""

    def forgetful(*inputs, sliding_window=None, **others):
        return rows_attention(*inputs, **others)

    monkeypatch.setitem(AttentionInterface._global_mapping, NAME, forgetful)
    assert probe(model, EndToEnd()) == "its attention does not get its window"


@pytest.mark.parametrize(
    ("window", "reason"),
    [(4, "packed rows change the model's outputs"), (2000, "rows of the proof are shorter than its window")],
)
def test_a_decoder_made_to_see_both_ways_is_declined_for_its_wider_window(window, reason):
    """With `is_causal: false` transformers' masks show a token one more key on each side than its layers' window."""
    model = small_model("mistral", sliding_window=window, is_causal=False)
    assert probe(model, EndToEnd()).startswith(reason)
    assert probe(small_model("llama", is_causal=False), EndToEnd()) == ""


def test_a_family_with_a_window_in_its_masks_alone_is_declined():
    sizes = {**GATED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    assert judge(Qwen2MoeForCausalLM(Qwen2MoeConfig(**sizes))) == ""
    assert "window" in judge(Qwen2MoeForCausalLM(Qwen2MoeConfig(**sizes, **window)))


def test_attention_is_the_models_own_again_after_packed_rows():
    model = small_model("llama")
    before = model.config._attn_implementation
    with pytest.raises(RowsError), attention_of_rows(model, group_rows([2, 2])):
        model(input_ids=torch.ones(1, 5, dtype=torch.long))
    assert model.config._attn_implementation == before


def test_memory_of_attention_grows_with_rows_and_not_with_their_square():
    """No mask and no scores of all tokens: 40 rows of 50 tokens would need 4 million of each head."""
    model = small_model("llama", max_position_embeddings=64)
    rows = random_rows("llama", [50] * 40)
    sizes = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    with Largest():
        total_and_gradients(model, "llama", layout_of(model), [rows])
    assert max(sizes) <= 40 * 50 * 67


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_steps_on_packed_rows_give_the_losses_of_padded_ones(checkpointing):
    """Twelve steps of two micro-batches, weights updated between them; layers are computed again in backward."""

    def losses(layout):
        model = tiny_llama()
        if checkpointing:
            recompute_activations(model)
        setup = small_setup(model, layout=layout, batch_size=3, gradient_accumulation=2, steps=12)
        steps = (
            optimizer_step(setup, setup.rows.batches(step), setup.rows.count(step).targets) for step in range(1, 13)
        )
        return torch.stack([one.losses.sum() for one in steps])

    packed, padded = losses(EndToEnd()), losses(Padded(0))
    assert padded[0] > 1.2 * padded[-1]
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=0)


def test_dropout_in_attention_keeps_a_rows_expected_output():
    """The mean of 4,000 draws: attention's dropout divides what it keeps by its share."""
    torch.manual_seed(0)
    model = small_model("llama", attention_dropout=0.3, num_hidden_layers=1)
    attention = model.model.layers[0].self_attn
    query, key, value = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    with attention_of_rows(model, group_rows([2, 4])):
        plain = rows_attention(attention, query, key, value, None)[0]
        drawn = [rows_attention(attention, query, key, value, None, dropout=0.3)[0] for _ in range(4000)]
    assert not torch.equal(drawn[0], plain)
    torch.testing.assert_close(torch.stack(drawn).mean(0), plain, rtol=0, atol=0.08)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": {"type": "prefix", "kind": "prompt"}}, "before a line of the input"),
        ({"batch_size": 1}, "a micro-batch is one row"),
        ({}, ""),
    ],
)
def test_rows_that_are_padded_have_a_reason(changes, reason):
    changes = {"task": "causal-lm", "method": {"type": "full"}, "batch_size": 2} | changes
    recipe = Recipe.model_validate(
        {
            "model": {"name": "-", "task": changes["task"]},
            "method": changes["method"],
            "data": {"train": "-"},
            "training": {"steps": 1, "learning_rate": 1e-3, "batch_size": changes["batch_size"]},
        }
    )
    model = small_model("llama")
    declined = Packing().decline(model, recipe)
    layout = training_layout(model, recipe, 0)
    if not reason:
        assert declined is None and layout == EndToEnd()
    else:
        assert reason in declined.reason and layout == Padded(0, by_length=True)


def test_packing_that_is_on_is_accepted_where_a_micro_batch_is_one_row(monkeypatch):
    monkeypatch.setattr("peftlab.speed.packing.probe", lambda *_: pytest.fail("nothing is packed"))
    recipe = small_recipe(batch_size=1)
    speed = recipe.training.speed.model_copy(update={"packing": "on"})
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"speed": speed})})
    model = small_model("llama")
    (found,) = [one for one in speed_up(model, recipe).switches if one.name == "packing"]
    assert found.used and "a micro-batch is one row" in found.part
    assert training_layout(model, recipe, 0) == Padded(0, by_length=True)


def test_a_model_proves_itself_once(monkeypatch):
    calls = []
    monkeypatch.setattr("peftlab.speed.packing.probe", lambda model, *_: calls.append(model) or "it differs")
    model, recipe = small_model("llama"), small_recipe(batch_size=2)
    assert Packing().decline(model, recipe).reason == "it differs"
    assert training_layout(model, recipe, 0) == Padded(0, by_length=True)
    assert len(calls) == 1
