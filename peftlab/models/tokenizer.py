"""Loading a model's tokenizer with a padding token, and checking that it fits the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from peftlab.errors import ModelError
from peftlab.models.config import hub_arguments, one_line_errors
from peftlab.models.reference import Reference, resolve
from peftlab.parameters.shape import padded_positions
from peftlab.recipe.schema import Model

# Parts of the names that transformers' tokenizers give to their files.
FILE_NAMES = ("token", "vocab", "spiece", "sentencepiece", "merges", "tekken", "spm", "bpe", "dict")


def load_tokenizer(section: Model) -> PreTrainedTokenizerBase:
    """Return the recipe's tokenizer, which pads on the right and always has a padding token.

    If the model has none, its end-of-text token is used: safe because rows are masked by length, never by id.
    Raises ModelError.
    """
    reference = resolve(section.name, section.revision) if section.tokenizer is None else resolve(section.tokenizer)
    arguments = hub_arguments(reference, section)
    _refuse_without_files(reference)
    with one_line_errors(reference, "given a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(reference.source, **arguments)
    _add_tokens(tokenizer, section.add_tokens)
    return _with_padding(tokenizer, reference)


def load_saved_tokenizer(folder: Path, section: Model) -> PreTrainedTokenizerBase:
    """Return the tokenizer, with its chat template, that a run saved beside its weights; else the recipe's.

    Raises ModelError.
    """
    if not (folder / "tokenizer_config.json").is_file():
        return load_tokenizer(section)
    reference = Reference(label=str(folder), folder=folder)
    with one_line_errors(reference, "given a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=section.trust_remote_code
        )
    return _with_padding(tokenizer, reference)


def _refuse_without_files(reference: Reference) -> None:
    """Raise ModelError for a folder without any file of a tokenizer."""
    if reference.folder is None or reference.gguf_file:
        return
    if not any(part in path.name for path in reference.folder.iterdir() for part in FILE_NAMES):
        raise ModelError(
            f"model {reference.label!r}: the folder has no tokenizer (such as tokenizer.json); set model.tokenizer to "
            "a model that has one"
        )


def _add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Add new tokens, each one token wherever its text occurs. Raises ModelError for one that is a token already."""
    known = tokenizer.get_vocab()
    for token in tokens:
        if token in known:
            raise ModelError(f"model.add_tokens: {token!r} is already a token of the model's tokenizer; remove it")
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])


def _with_padding(tokenizer: PreTrainedTokenizerBase, reference: Reference) -> PreTrainedTokenizerBase:
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                f"model {reference.label!r}: its tokenizer has neither a padding nor an end-of-text token; "
                "set model.tokenizer to one that has"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def find_pad_id(tokenizer: Any, vocabulary: int | None = None) -> int:
    """Return an id to pad with, one that a model of this vocabulary has; any would do: masks come from lengths."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(i for i in ids if i is not None and (vocabulary is None or i < vocabulary))


def fit_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the model's padding token to the tokenizer's, or to one that its embedding has.

    Tokens beyond the embedding matter only to rows that use them, which the data refuses. A model that counts
    positions from its padding token (RoBERTa) keeps that: read again from its folder, it would count others.
    """
    if padded_positions(model):
        return
    rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    # A decoder's classification head reads the last token that is not this one.
    model.config.get_text_config().pad_token_id = find_pad_id(tokenizer, rows)
