"""The loss of answers beside an encoder is transformers' own, for classes that shift answers in several ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from peftlab.data.batches import collate
from peftlab.data.token_rows import PairRow
from peftlab.losses.answers import AnswerCrossEntropy
from tests.gauntlet.small import small_config

# M2M-100 and Blenderbot leave the shift to their own loss, mBART's start is the answer's last token.
FAMILIES = ("t5", "bart", "mbart", "m2m_100", "blenderbot", "seamless_m4t", "t5gemma")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_has_the_loss_that_the_model_itself_computes(family):
    from transformers import AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(small_config(family)).eval()
    row = PairRow(np.arange(5, 12, dtype=np.int32), np.array([20, 30, 25, 40, 0], np.int32))
    batch = collate([row], 1)
    with torch.no_grad():
        own = AnswerCrossEntropy(model).total(model, batch)
        theirs = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["answers"]
        ).loss
    assert float(own) == pytest.approx(5 * float(theirs), rel=1e-5)
