"""A real byte-level BPE tokenizer, trained in the test: eos is also pad (trap: masks by id), and it has a bos."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from peftlab.recipe.schema import Data

CORPUS = [
    "There is a place in the city centre that is not family-friendly.",
    "name[Blue Spice], eatType[coffee shop], area[city centre]",
    "Facts: the cat sat on the mat\nText: the cat sat",
    "Question: what is two and two? Answer: four, which is an even number.",
    "user assistant system",
]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_bpe(*, bos: bool = True, eos: bool = True) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|eos|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", pair="<|bos|> $A <|bos|>:1 $B:1", special_tokens=[("<|bos|>", 1)]
        )
    names = {"bos_token": "<|bos|>"} if bos else {}
    names |= {"eos_token": "<|eos|>", "pad_token": "<|eos|>"} if eos else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def bpe() -> PreTrainedTokenizerFast:
    return train_bpe()


@pytest.fixture(scope="session")
def bpe_without_specials() -> PreTrainedTokenizerFast:
    return train_bpe(bos=False, eos=False)


@pytest.fixture
def section():
    """Make a data section; the source of training rows matters only where a test reads it."""

    def make(**fields) -> Data:
        return Data(**{"train": "unused.jsonl", **fields})

    return make
