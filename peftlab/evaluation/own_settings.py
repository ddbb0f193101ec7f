"""A model's own generation settings, set aside while answers are written by a recipe's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from torch import nn
from transformers import GenerationConfig

from peftlab.parameters.trainable import find_base

# What a model's tokens mean, and which it must never write.
KEPT = frozenset(
    {
        *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id"),
        *("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "use_cache", "transformers_version"),
    }
)


@contextmanager
def without_own_settings(model: nn.Module) -> Iterator[None]:
    """Set a model's own defaults of generation aside while the context is open, but for the ids of `KEPT`.

    transformers fills what a caller leaves unset from them: BART-large-CNN's forbid repeated triples and answers below
    56 tokens, which no recipe said. Settings that only the model's class knows stay.
    """
    with ExitStack() as stack:
        for holder in dict.fromkeys((model, find_base(model)[1])):
            own = getattr(holder, "generation_config", None)
            if own is not None:
                stack.enter_context(mock.patch.object(holder, "generation_config", _plain(own)))
        yield


def _plain(own: GenerationConfig) -> GenerationConfig:
    plain: Any = copy.deepcopy(own)
    for name in vars(GenerationConfig()):
        if name not in KEPT and not name.startswith("_"):
            setattr(plain, name, None)
    return plain
