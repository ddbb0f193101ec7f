"""A model's tokenizer, able to pad, and its fit to the model."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from peftlab.errors import ModelError
from peftlab.models.config import hub_arguments, one_line_errors
from peftlab.models.reference import resolve
from peftlab.recipe.schema import Model


def load_tokenizer(section: Model) -> PreTrainedTokenizerBase:
    """Return the recipe's tokenizer; it pads on the right and always has a padding token.

    Where the model names none, its end-of-text token pads: safe because rows are masked by their length, never
    by the id. Raises ModelError.
    """
    reference = resolve(section.name, section.revision) if section.tokenizer is None else resolve(section.tokenizer)
    arguments = hub_arguments(reference, section)
    with one_line_errors(reference, "given a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(reference.source, **arguments)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"model {reference.label!r}: its tokenizer has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def fit_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the model pad as its tokenizer does. Raises ModelError where a token has no embedding."""
    rows = model.get_input_embeddings().num_embeddings
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise ModelError(
            f"the tokenizer has the token {token!r} of id {largest}, but the model's embedding ends at {rows - 1}: "
            "they belong to different models"
        )
    # A decoder's classification head reads the last token that is not this one.
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
