"""Every method's answers: a batch of prompts of many lengths is answered token for token as each prompt alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from peftlab.evaluation.generate import generate_answers
from peftlab.methods import METHODS, Prefix
from peftlab.models.load import load_model
from peftlab.parameters.shape import shape_of
from peftlab.parameters.trainable import trainable_parameters
from peftlab.recipe.schema import Generation, Model
from tests.evaluation.test_generate import EOS, VOCABULARY, Numbers, answer_by_loop
from tests.evaluation.texts import generate_text
from tests.methods.tiny import tiny_config
from tests.sampling import diagonals

VARIANTS = {
    **{name: method() for name, method in METHODS.items()},
    **{f"qlora-{name}": method for name, method in METHODS["qlora"].variants().items()},
    "prompt": Prefix(kind="prompt", length=4),
}
FAMILIES = ("llama", "gpt2", "opt")  # rotary, absolute and shifted positions
LENGTHS = (1, 2, 3, 7, 7, 16, 31)
PROMPTS = [np.random.default_rng(place).integers(3, 60, length).tolist() for place, length in enumerate(LENGTHS)]
SETTINGS = Generation(max_new_tokens=8)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Return a function that makes a family's model with a method, its learned numbers large and random."""
    made = {}

    def build(family, name):
        if (family, name) in made:
            return made[family, name]
        folder = tmp_path_factory.mktemp(family)
        ends = {"bos_token_id": None, "eos_token_id": EOS}
        init = {"init_std" if family == "opt" else "initializer_range": 0.35}  # large, so that answers vary
        tiny_config(family, vocab_size=VOCABULARY, **ends, **init).save_pretrained(folder)
        torch.manual_seed(0)
        method = VARIANTS[name]
        base = load_model(Model(name=str(folder), tokenizer="builtin:tiny", init="random"), **method.base_storage)
        if problems := method.check(shape_of(base.model, base.fresh, "causal-lm")):
            pytest.skip(f"{name} on {family}: {problems[0][1]}")
        model = method.apply(base.model, base.fresh).eval()
        for parameter in trainable_parameters(model).values():
            nn.init.normal_(parameter, std=0.35 if parameter.ndim > 1 else 0.1)
        return made.setdefault((family, name), model)

    return build


@pytest.mark.parametrize(("family", "name"), diagonals(FAMILIES, VARIANTS))
def test_a_batch_is_answered_as_each_prompt_alone(build, family, name):
    model = build(family, name)
    prompting = VARIANTS[name].prompting
    alone = [generate_text(model, Numbers(), [one], SETTINGS, prompting=prompting)[0] for one in PROMPTS]
    for size in (2, 3, len(PROMPTS)):
        assert generate_text(model, Numbers(), PROMPTS, SETTINGS, size, prompting=prompting) == alone
    if prompting.batched:  # else an answer depends on which tokens are computed together, as a cache has them
        assert alone[:3] == [answer_by_loop(model, one, SETTINGS.max_new_tokens) for one in PROMPTS[:3]]
    assert len(set(alone)) > 1


def test_an_answer_says_whether_it_ended_by_itself(build):
    model = build("llama", "lora")
    free = generate_answers(model, Numbers(), PROMPTS, SETTINGS)
    place = next(place for place, answer in enumerate(free) if not answer.ended)
    tokens = free[place].text.split()
    model.generation_config.eos_token_id = [EOS, int(tokens[-1])]
    (ended,) = generate_answers(model, Numbers(), [PROMPTS[place]], SETTINGS)
    assert ended.ended and ended.text.split() == tokens[: tokens.index(tokens[-1])]
    model.generation_config.eos_token_id = EOS


def test_the_tokens_that_a_model_has_no_room_for_are_counted(build):
    model = build("gpt2", "lora")
    (answer,) = generate_answers(model, Numbers(), [list(range(3, 60)) * 2], SETTINGS)
    assert answer.cut == 2 * 57 - (64 - SETTINGS.max_new_tokens)
