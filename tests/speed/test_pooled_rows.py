"""Packed rows whose head takes one token of each, or their mean: losses and gradients are those of separate rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from peftlab.data.batches import EndToEnd, Padded
from peftlab.data.token_rows import ClassRow, LabelSetRow, NumberRow
from peftlab.errors import MethodError
from peftlab.losses.cross_entropy import RowCrossEntropy
from peftlab.losses.one_line import end_of_layers
from peftlab.losses.pointwise import BinaryCrossEntropy, SquaredError
from peftlab.parameters.trainable import find_body
from peftlab.speed.packing import judge, layout_of, probe
from tests.sampling import sampled
from tests.speed.rows import FAMILIES, METHODS, POOLED, precise, small_model, total_and_gradients, with_method
from tests.speed.test_packing import LENGTHS, assert_as_separate

ROUNDED = 1e-4  # QLoRA computes in float32


def class_rows(lengths=LENGTHS, seed: int = 0, types: bool = False) -> list[ClassRow]:
    chance = np.random.default_rng(seed)
    rows = []
    for number, length in enumerate(lengths):
        segments = (np.arange(length) > length // 2).astype(np.int32) if types else None
        rows.append(ClassRow(chance.integers(3, 67, length).astype(np.int32), number % 3, segments))
    return rows


CASES = [(family, method) for family in FAMILIES | POOLED for method in METHODS]
SAMPLE = [(family, method) for family in ("llama", "roberta") for method in METHODS]
SAMPLE += [(family, "full") for family in ("gpt2", "gemma2", "bert", "distilbert", "modernbert", *POOLED)]


@pytest.mark.parametrize(("family", "method"), sampled(CASES, SAMPLE))
def test_packed_loss_and_gradients_are_the_sum_of_separate_rows(family, method):
    try:
        model = with_method(family, method, pooled=True)
    except MethodError as error:
        pytest.skip(f"refused: {error}")
    assert judge(model, pooled=True) == ""
    assert_as_separate(model, family, class_rows(), ROUNDED if method == "qlora" else 1e-5, RowCrossEntropy())


@pytest.mark.parametrize("family", sampled([*FAMILIES, *POOLED], ["llama", "gpt2", "mistral", "bert", *POOLED]))
def test_a_model_that_keeps_rows_apart_passes_the_probe(family):
    model = small_model(family, pooled=True)
    assert probe(model.train(), layout_of(model), pooled=True) == ""
    assert model.training


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_each_pooling_of_an_encoder_gets_its_own_rows(pooling):
    model = small_model("modernbert", pooled=True, classifier_pooling=pooling).double()
    assert_as_separate(model, "modernbert", class_rows(), loss=RowCrossEntropy())


def test_segments_of_two_texts_stay_with_their_tokens():
    model = precise(small_model("bert", pooled=True), "bert")
    assert_as_separate(model, "bert", class_rows(types=True), loss=RowCrossEntropy())


@pytest.mark.parametrize(
    ("loss", "kind", "label", "outputs"),
    [
        (SquaredError(), NumberRow, lambda number: 0.5 * number, 1),
        (BinaryCrossEntropy(), LabelSetRow, lambda number: np.eye(3, dtype=np.int8)[number % 3], 3),
    ],
)
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_numbers_and_sets_of_labels_are_packed_too(family, loss, kind, label, outputs):
    model = small_model(family, pooled=True, num_labels=outputs).double()
    rows = [kind(row.input_ids, label(number)) for number, row in enumerate(class_rows())]
    assert_as_separate(model, family, rows, loss=loss)


def test_layers_see_no_padding_and_the_head_sees_rows():
    model = small_model("llama", pooled=True)
    sizes = {}
    for name in ("model.layers.0", "score"):
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda _, inputs, name=name: sizes.update({name: inputs[0].shape}))

    total_and_gradients(model, "llama", layout_of(model), [class_rows()], RowCrossEntropy())
    assert sizes == {"model.layers.0": (1, sum(LENGTHS), 32), "score": (len(LENGTHS), max(LENGTHS), 32)}


def test_the_model_is_its_own_after_a_packed_batch():
    model = small_model("bert", pooled=True)
    batch = EndToEnd().batch(class_rows())
    RowCrossEntropy().scores(model, batch)
    body = find_body(model)
    assert not body._forward_pre_hooks and not end_of_layers(body)._forward_hooks


def test_a_head_that_gets_another_token_fails_the_probe(monkeypatch):
    monkeypatch.setattr(EndToEnd, "_positions", lambda self, ids: np.arange(len(ids)) + 7)
    assert "change the model's outputs" in probe(small_model("gpt2", pooled=True), EndToEnd(), pooled=True)


def test_models_whose_layers_cannot_be_packed_below_the_head_are_declined():
    for family in ("bloom", "gptj"):
        model = small_model(family, pooled=True)
        assert judge(model, pooled=True)
        assert probe(model, EndToEnd(), pooled=True)


def test_a_packed_batch_has_the_targets_of_its_rows_in_their_order():
    batch = EndToEnd(pad_id=9).batch(class_rows((3, 1, 2)))
    assert batch["targets"].tolist() == [1, 2, 0]
    assert batch["line"].tolist() == [0, 3, 4, 6, 7, 8]
    assert batch["line_positions"].tolist() == [[0, 0, 1, 0, 1, 2]]
    assert batch["input_ids"][0, 1:].tolist() == [9, 9]
    assert torch.equal(batch["attention_mask"], Padded(9).batch(class_rows((1, 2, 3)))["attention_mask"])
