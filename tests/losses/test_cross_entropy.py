"""The loss against a hand loop in float64, and equal whichever way a batch is split or padded."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from peftlab.data.batches import collate
from peftlab.data.token_rows import IGNORED, ClassRow, TagRow, TextRow
from peftlab.losses.cross_entropy import PositionCrossEntropy, RowCrossEntropy
from peftlab.losses.selection import find_head

VOCABULARY = 61


@pytest.fixture(scope="module")
def rows():
    """Ragged rows with a masked prompt each, and a masked hole in one completion."""
    random = np.random.default_rng(0)
    made = []
    for length, prompt in ((9, 4), (3, 1), (14, 10), (6, 0), (2, 1)):
        ids = random.integers(0, VOCABULARY, length).astype(np.int32)
        labels = np.where(np.arange(length) < prompt, IGNORED, ids).astype(np.int32)
        made.append(TextRow(ids, labels))
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
    by_hand, number = loop_by_hand(llama, rows)
    for loss in (PositionCrossEntropy(), PositionCrossEntropy(find_head(llama))):
        total = loss.total(llama, batch)
        assert total.dtype == torch.float32 and total.shape == ()
        assert total.item() == pytest.approx(by_hand, rel=1e-6)
        each = loss.rows(llama, batch, [row.supervised for row in rows])
        assert each.losses.tolist() == pytest.approx([loop_by_hand(llama, [row])[0] for row in rows], rel=1e-5)
    assert len(batch["targets"]) == number == 4 + 2 + 4 + 5 + 1


def test_gradients_of_the_sum_add_up_over_micro_batches(llama, rows):
    def gradients(batches):
        llama.zero_grad()
        for batch in batches:
            PositionCrossEntropy(find_head(llama)).total(llama, collate(batch, pad_id=0)).backward()
        return torch.cat([p.grad.flatten() for p in llama.parameters()])

    whole, split = gradients([rows]), gradients([rows[:1], rows[1:3], rows[3:]])
    assert torch.allclose(whole, split, rtol=1e-4, atol=1e-5 * whole.abs().max().item())


def test_logits_in_sixteen_bits_are_summed_in_float32(rows):
    class Fixed(nn.Module):
        def forward(self, input_ids, attention_mask):
            logits = torch.zeros(*input_ids.shape, VOCABULARY, dtype=torch.bfloat16)
            return type("Output", (), {"logits": logits})

    batch = collate(rows * 40, pad_id=0)
    loss = PositionCrossEntropy()
    assert loss.scores(Fixed(), batch).dtype == torch.bfloat16
    assert loss.total(Fixed(), batch).item() == pytest.approx(len(batch["targets"]) * math.log(VOCABULARY), rel=1e-5)


def test_tokens_learned_before_the_input_do_not_shift_the_labels(llama, rows):
    class Longer(nn.Module):
        """Prompt tuning's shape: three more positions in front."""

        def forward(self, **inputs):
            logits = llama(**inputs).logits
            front = torch.full((len(logits), 3, VOCABULARY), 7.0)
            return type("Output", (), {"logits": torch.cat([front, logits], dim=1)})

    batch = collate(rows, pad_id=0)
    loss = PositionCrossEntropy()
    assert loss.total(Longer(), batch).equal(loss.total(llama, batch))


def test_batch_without_supervised_tokens_sums_to_zero(llama):
    batch = collate([TextRow(np.array([1, 2, 3]), np.array([IGNORED] * 3))], pad_id=0)
    assert PositionCrossEntropy(find_head(llama)).total(llama, batch).item() == 0.0 and not len(batch["targets"])


def test_classes_are_one_term_a_row():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    config.num_labels = 3
    model = BertForSequenceClassification(config).eval()
    rows = [ClassRow(np.arange(2, 2 + length), label) for length, label in ((5, 2), (3, 0), (8, 1))]
    batch = collate(rows, pad_id=0)
    by_hand = 0.0
    for row in rows:
        scores = model(input_ids=torch.tensor(row.input_ids[None])).logits[0].double()
        by_hand += (scores.exp().sum().log() - scores[row.labels]).item()
    assert RowCrossEntropy().total(model, batch).item() == pytest.approx(by_hand, rel=1e-5)
    assert len(batch["targets"]) == 3


def test_tags_are_predicted_at_their_own_positions():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    config.num_labels = 3
    model = BertForTokenClassification(config).eval()
    rows = [TagRow(np.array([2, 9, 4, 3]), np.array([IGNORED, 2, IGNORED, IGNORED]))]
    rows.append(TagRow(np.array([2, 8, 7, 6, 3]), np.array([IGNORED, 0, 1, 2, IGNORED])))
    batch = collate(rows, pad_id=0)
    by_hand, likeliest = [], []
    for row in rows:
        logits = model(input_ids=torch.tensor(row.input_ids[None])).logits[0].double()
        places = [i for i, label in enumerate(row.labels) if label != IGNORED]
        by_hand.append(-sum(logits[i].log_softmax(-1)[row.labels[i]].item() for i in places))
        likeliest += [int(logits[i].argmax()) for i in places]
    found = PositionCrossEntropy().rows(model, batch, [1, 3])
    assert found.losses.tolist() == pytest.approx(by_hand, rel=1e-5)
    assert found.predictions.tolist() == likeliest


SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
FAMILIES = {
    "llama, tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "gemma2, soft-capped": ("Gemma2ForCausalLM", {"final_logit_softcapping": 0.05}),
    "gemma3": ("Gemma3ForCausalLM", {}),
    "cohere, scaled": ("CohereForCausalLM", {"logit_scale": 3.0}),
    "granite, scaled": ("GraniteForCausalLM", {"logits_scaling": 7.0}),
    "phi, biased head": ("PhiForCausalLM", {"num_key_value_heads": 4}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "opt": ("OPTForCausalLM", {"ffn_dim": 48, "word_embed_proj_dim": 16, "max_position_embeddings": 64}),
    "gpt_neox": ("GPTNeoXForCausalLM", {}),
    "bert as a decoder": ("BertLMHeadModel", {"is_decoder": True}),
    "mamba": ("MambaForCausalLM", {"state_size": 4}),
}


def small_model(family: str) -> nn.Module:
    torch.manual_seed(0)
    name, changes = FAMILIES[family]
    cls = getattr(transformers, name)
    return cls(cls.config_class(**{**SMALL, **changes})).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_forms_logits_of_supervised_positions_only_and_the_loss_stays(family, rows):
    """Oracle: the same model's logits of all positions, selected afterwards; the head's output is looked at."""
    model = small_model(family)
    head, shapes = find_head(model), []
    head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    batch = collate(rows, pad_id=0)
    whole, selected = PositionCrossEntropy(), PositionCrossEntropy(head)
    gradients = []
    for loss in (whole, selected):
        model.zero_grad()
        loss.total(model, batch).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    width = batch["input_ids"].shape[1]
    assert shapes == [(len(rows), width, VOCABULARY), (len(batch["targets"]), VOCABULARY)]
    assert gradients[0].keys() == gradients[1].keys()
    largest = max(gradient.abs().max() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6 * largest.item())
    torch.testing.assert_close(selected.scores(model, batch), whole.scores(model, batch), rtol=1e-5, atol=1e-5)


def test_a_prompt_before_the_input_is_dropped_before_the_head(rows):
    from peftlab.methods import Prefix

    model = Prefix(kind="prompt", length=3).apply(small_model("llama, tied"))
    batch = collate(rows, pad_id=0)
    found = PositionCrossEntropy(find_head(model)).scores(model, batch)
    assert found.shape == (len(batch["targets"]), VOCABULARY)
    torch.testing.assert_close(found, PositionCrossEntropy().scores(model, batch), rtol=1e-5, atol=1e-6)
