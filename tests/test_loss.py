"""The loss against a hand loop in float64, and equal whichever way a batch is split or padded."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from peftlab.loss import IGNORED, count_supervised, supervised_loss, supervised_scores
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from peftlab.data.batches import collate
from peftlab.data.tokens import TokenRow

VOCABULARY = 61


@pytest.fixture(scope="module")
def rows():
    """Ragged rows with a masked prompt each, and a masked hole in one completion."""
    random = np.random.default_rng(0)
    made = []
    for length, prompt in ((9, 4), (3, 1), (14, 10), (6, 0), (2, 1)):
        ids = random.integers(0, VOCABULARY, length).astype(np.int32)
        labels = np.where(np.arange(length) < prompt, IGNORED, ids).astype(np.int32)
        made.append(TokenRow(ids, labels))
    made[0].labels[6] = IGNORED
    return made


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def loop_by_hand(model, rows):
    """Return the loss of each row alone, position by position, in float64."""
    total, count = 0.0, 0
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(row.input_ids[None], dtype=torch.long)).logits[0]
        for place in range(1, len(row.labels)):
            if row.labels[place] != IGNORED:
                scores = [math.fsum([float(x)]) for x in logits[place - 1]]
                total += math.log(math.fsum(math.exp(x) for x in scores)) - scores[row.labels[place]]
                count += 1
    return total, count


def test_sum_and_count_equal_a_loop_by_hand(llama, rows):
    batch = collate(rows, pad_id=0)
    loss_sum, count = supervised_loss(llama, batch)
    by_hand, number = loop_by_hand(llama, rows)
    assert loss_sum.dtype == torch.float32 and loss_sum.shape == () and count.dtype == torch.int64
    assert loss_sum.item() == pytest.approx(by_hand, rel=1e-6)
    assert count.item() == count_supervised(batch) == number == 4 + 2 + 4 + 5 + 1


def test_batch_without_prepared_positions_gives_the_same(llama, rows):
    batch = collate(rows, pad_id=0)
    bare = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    assert supervised_loss(llama, bare)[0].equal(supervised_loss(llama, batch)[0])
    assert count_supervised(bare) == count_supervised(batch)


def test_gradients_of_the_sum_add_up_over_micro_batches(llama, rows):
    def gradients(batches):
        llama.zero_grad()
        for batch in batches:
            supervised_loss(llama, collate(batch, pad_id=0))[0].backward()
        return torch.cat([p.grad.flatten() for p in llama.parameters()])

    whole, split = gradients([rows]), gradients([rows[:1], rows[1:3], rows[3:]])
    assert torch.allclose(whole, split, rtol=1e-4, atol=1e-5 * whole.abs().max().item())


def test_logits_in_sixteen_bits_are_summed_in_float32(rows):
    class Fixed(nn.Module):
        def forward(self, input_ids, attention_mask):
            logits = torch.zeros(*input_ids.shape, VOCABULARY, dtype=torch.bfloat16)
            return type("Output", (), {"logits": logits})

    batch = collate(rows * 40, pad_id=0)
    loss_sum, count = supervised_loss(Fixed(), batch)
    assert supervised_scores(Fixed(), batch)[0].dtype == torch.bfloat16
    assert loss_sum.item() == pytest.approx(count.item() * math.log(VOCABULARY), rel=1e-5)


def test_tokens_learned_before_the_input_do_not_shift_the_labels(llama, rows):
    class Longer(nn.Module):
        """Prompt tuning's shape: three more positions in front."""

        def forward(self, **inputs):
            logits = llama(**inputs).logits
            front = torch.full((len(logits), 3, VOCABULARY), 7.0)
            return type("Output", (), {"logits": torch.cat([front, logits], dim=1)})

    batch = collate(rows, pad_id=0)
    assert supervised_loss(Longer(), batch)[0].equal(supervised_loss(llama, batch)[0])


def test_batch_without_supervised_tokens_sums_to_zero(llama):
    batch = collate([TokenRow(np.array([1, 2, 3]), np.array([IGNORED] * 3))], pad_id=0)
    loss_sum, count = supervised_loss(llama, batch)
    assert loss_sum.item() == 0.0 and count.item() == 0


def test_classes_are_one_term_a_row():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    config.num_labels = 3
    model = BertForSequenceClassification(config).eval()
    rows = [TokenRow(np.arange(2, 2 + length), label) for length, label in ((5, 2), (3, 0), (8, 1))]
    loss_sum, count = supervised_loss(model, collate(rows, pad_id=0))
    by_hand = 0.0
    for row in rows:
        scores = model(input_ids=torch.tensor(row.input_ids[None])).logits[0].double()
        by_hand += (scores.exp().sum().log() - scores[row.labels]).item()
    assert loss_sum.item() == pytest.approx(by_hand, rel=1e-5)
    assert count.item() == 3
