"""Loading a model's tokenizer with a padding token, and checking that it fits the model."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from peftlab.errors import ModelError
from peftlab.models.config import hub_arguments, one_line_errors
from peftlab.models.reference import resolve
from peftlab.recipe.schema import Model


def load_tokenizer(section: Model) -> PreTrainedTokenizerBase:
    """Return the recipe's tokenizer, which pads on the right and always has a padding token.

    If the model has none, its end-of-text token is used: safe because rows are masked by length, never by id.
    Raises ModelError.
    """
    reference = resolve(section.name, section.revision) if section.tokenizer is None else resolve(section.tokenizer)
    arguments = hub_arguments(reference, section)
    with one_line_errors(reference, "given a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(reference.source, **arguments)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                f"model {reference.label!r}: its tokenizer has neither a padding nor an end-of-text token; "
                "set model.tokenizer to one that has"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def fit_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the model's padding token to the tokenizer's. Raises ModelError if a token has no embedding."""
    rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise ModelError(
            f"the tokenizer has the token {token!r} with id {largest}, but the model's embedding has only {rows} rows; "
            "use the model's own tokenizer"
        )
    # A decoder's classification head reads the last token that is not this one.
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
