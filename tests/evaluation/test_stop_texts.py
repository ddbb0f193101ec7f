"""A stop text ends the answer that has it, where it has it, and not one whose prompt has a part of it."""

from __future__ import annotations

import pytest
import torch

from peftlab.evaluation.generate import Answer, generate_answers
from peftlab.evaluation.stop_texts import StopTexts
from peftlab.recipe.schema import Generation
from tests.evaluation.test_generate import EOS, PROMPTS, Numbers, build

NEW = 8


class Letters:
    """A tokenizer whose tokens are letters; the last one is special and ends a text, the one before it pads."""

    eos_token_id, pad_token_id = EOS, EOS - 1

    def decode(self, ids, skip_special_tokens):
        names = {self.eos_token_id: "<end>", self.pad_token_id: "<pad>"}
        return "".join(chr(256 + i) if i not in names else "" if skip_special_tokens else names[i] for i in ids)


def answers(model, prompts, stop, **settings) -> list[Answer]:
    generation = Generation(max_new_tokens=NEW, stop=stop)
    return generate_answers(model, Letters(), prompts, generation, 8, likelihoods=True, **settings)


def likelihood(model, prompt, answer) -> float:
    """Return the log-probability of an answer by one pass over it and its prompt."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
    return sum(float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(answer))


def ids_of(text):
    return [ord(letter) - 256 for letter in text]


@pytest.fixture(scope="module")
def model():
    model = build("llama", "plain")
    with torch.no_grad():
        model.lm_head.weight[EOS - 1 :] = 0  # neither end nor padding is written
    return model


def test_the_probability_of_an_answer_is_that_of_its_own_tokens_whatever_is_beside_it(model):
    free = [ids_of(one.text) for one in answers(model, PROMPTS, ())]
    stop = chr(256 + free[0][2])
    found = answers(model, PROMPTS, (stop,))
    for one, prompt, whole in zip(found, PROMPTS, free, strict=True):
        own = whole[: whole.index(ord(stop) - 256) + 1] if ord(stop) - 256 in whole else whole
        assert one.ended == (len(own) < NEW) and one.text == "".join(chr(256 + i) for i in own).removesuffix(stop)
        assert one.log_probability == pytest.approx(likelihood(model, prompt, own), abs=1e-4)
    assert {one.ended for one in found} == {True, False}


def test_the_end_token_counts_also_where_there_are_stop_texts(model):
    first = ids_of(answers(model, PROMPTS[:1], ())[0].text)
    model.generation_config.eos_token_id = first[2]
    try:
        (found,) = answers(model, PROMPTS[:1], ("never",))
    finally:
        model.generation_config.eos_token_id = EOS
    assert found.ended and ids_of(found.text) == first[:2]
    assert found.log_probability == pytest.approx(likelihood(model, PROMPTS[0], first[:3]), abs=1e-4)


def test_a_text_that_begins_in_the_prompt_is_not_in_the_answer(model):
    """Say the stop is an empty line and the prompt ends with a line break: the answer's first one is not an end."""
    (free,) = answers(model, PROMPTS[:1], ())
    overlapping = chr(256 + PROMPTS[0][-1]) + free.text[0]
    assert overlapping not in free.text
    assert answers(model, PROMPTS[:1], (overlapping,)) == [free]


def test_the_name_of_a_special_token_ends_an_answer():
    stop = StopTexts(Letters(), ("<end>",), begun=2)
    assert stop.count([5, 6, EOS, 7]) == 3 and stop.count([5, 6, 7]) is None
    assert stop(torch.tensor([[EOS, EOS, 5, EOS], [EOS, EOS, 5, 6]]), None).tolist() == [True, False]


def test_a_text_of_many_tokens_is_found_at_its_last_one():
    text = "".join(chr(256 + i) for i in range(40))
    assert StopTexts(Letters(), (text,), begun=0).count([*range(60, 90), *range(50)]) == 70


def test_beams_end_at_a_text_too(model):
    whole = generate_answers(model, Letters(), PROMPTS[:1], Generation(max_new_tokens=NEW, beams=3))[0].text
    settings = Generation(max_new_tokens=NEW, beams=3, stop=(whole[-1],))
    assert whole[-1] not in generate_answers(model, Letters(), PROMPTS[:1], settings)[0].text


def test_numbers_are_cut_where_their_text_is(model):
    (free,) = generate_answers(model, Numbers(), PROMPTS[:1], Generation(max_new_tokens=NEW))
    words = free.text.split()
    settings = Generation(max_new_tokens=NEW, stop=(f" {words[3]}",))
    (found,) = generate_answers(model, Numbers(), PROMPTS[:1], settings)
    assert found.ended and found.text == free.text[: free.text.index(f" {words[3]}")]
