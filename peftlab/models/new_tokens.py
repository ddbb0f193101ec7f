"""New tokens of a recipe: rows of the embeddings that no checkpoint has, each begun as the mean of its pieces' rows."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from peftlab.models.tokenizer import load_tokenizer
from peftlab.parameters.kinds import note_new_tokens
from peftlab.recipe.schema import Model
from peftlab.shapes import NewTokens


def add_new_tokens(model: PreTrainedModel, section: Model) -> None:
    """Give the embeddings of `model` a row for each of the recipe's new tokens, and keep on it which they are.

    The input's and, where they are not tied, the output's embeddings have a row each. It begins as the mean of the
    rows of the pieces that the tokenizer makes of the token's text. Works on the meta device.
    """
    if not section.add_tokens:
        return
    tokenizer = load_tokenizer(section)
    plain = load_tokenizer(section.model_copy(update={"add_tokens": ()}))
    vocabulary = tokenizer.get_vocab()
    named = {vocabulary[token]: token for token in section.add_tokens}
    known = _weight(model.get_input_embeddings()).shape[0]
    needed = max(named) + 1
    if needed > known:
        with torch.random.fork_rng(devices=[]):  # the rows are overwritten: nothing else may depend on their number
            model.resize_token_embeddings(needed, mean_resizing=False)
    ids = tuple(sorted({*named, *range(known, needed)}))
    tables = _find_tables(model)
    for name, *_ in tables:
        weight = _weight(model.get_submodule(name))
        for row in ids if not weight.is_meta else ():
            pieces = plain(named[row], add_special_tokens=False)["input_ids"] if row in named else []
            source = weight[[piece for piece in pieces if piece < known]] if pieces else weight[:known]
            with torch.no_grad():
                weight[row] = source.float().mean(dim=0).to(weight.dtype)
    note_new_tokens(model, NewTokens(ids, tuple(tables)))


def _find_tables(model: PreTrainedModel) -> list[tuple[str, ...]]:
    """Return for each table of tokens the names of the modules that have it as their weight, tied ones together."""
    tables = []
    known: set[int] = set()
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if module is None or id(weight := _weight(module)) in known:
            continue
        known.add(id(weight))
        names = (name for name, one in model.named_modules(remove_duplicate=False) if vars(one).get("_parameters"))
        tables.append(tuple(name for name in names if model.get_submodule(name)._parameters.get("weight") is weight))
    return tables


def _weight(module: nn.Module) -> nn.Parameter:
    return module.get_parameter("weight")
