"""Examples that are read from left to right as rows: which tokens are supervised, and what a limit removes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from peftlab.data.prompts import Prompt, merge_prompts
from peftlab.data.token_rows import IGNORED, TextRow
from peftlab.data.tokens import check_tokenizer, cut_positions, cut_prompt
from peftlab.recipe.schema import Data
from peftlab.tasks.base import Tokenised, Tokenising
from peftlab.tasks.formats import Example, Format


@dataclass(frozen=True, slots=True)
class Answer:
    """The last answer of a row: the tokens `first` to `last`, its prompt's text, and its own as generated text is.

    `prompt_ids` are the prompt's own where they are not the row's tokens before the answer.
    """

    first: int
    last: int
    prompt: str
    reference: str
    prompt_ids: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example as tokens, before they are cut: int64 ids, and which of them are supervised.

    `lead` is how many tokens at the beginning a cut of the prompt keeps. `removed` and `lost` count the tokens and
    the supervised tokens of whole turns that are gone already, and `partial` says that text was cut before it was
    tokenised. `answer` is there where prompts are wanted.
    """

    ids: np.ndarray
    supervised: np.ndarray
    lead: int
    answer: Answer | None = None
    removed: int = 0
    lost: int = 0
    partial: bool = False


def tokenise_encoded(examples: Sequence[Example], how: Tokenising) -> Tokenised:
    """Return the rows that keep a supervised token, and the distinct prompts, of examples whose format encodes them.

    `how.counts` gains: truncated (rows cut), cut_tokens, cut_text (rows of which more was cut unseen),
    lost_supervised (rows that lost supervised tokens),
    lost_tokens (how many they lost), chunked (documents cut into several rows), skipped (rows left out because they
    are too long), dropped (rows left out, without any supervised token), and what the format's encoder counts.
    Raises DataError without a fast tokenizer.
    """
    check_tokenizer(how.tokenizer)
    rows: list[TextRow] = []
    prompts: list[Prompt] = []
    assert how.format.encode is not None, "the format of a task that reads from left to right says how"
    long = long_rows(how.section, how.format)
    for one in how.format.encode(examples, how):
        if len(one.ids) > how.section.max_length and long == "skip":
            how.counts["skipped"] += 1
            continue
        if long == "chunk":
            found = _chunk(one, how.section, how.counts)
        else:
            found = [_shorten(one, how.section, how.counts)]
        kept = [row for row in found if row.supervised]
        how.counts["dropped"] += not kept
        rows += kept
        if one.answer is not None:
            prompts.append(_prompt(one, one.answer, how.section))
    return Tokenised(rows, merge_prompts(prompts))


def long_rows(section: Data, layout: Format) -> str:
    """Return what happens to rows that are too long: running text is cut into several, others are shortened."""
    return section.long or ("chunk" if layout.documents else "cut")


def _shorten(one: Encoded, section: Data, counts: Counter[str]) -> TextRow:
    keep = _positions(one, section)
    counts["truncated"] += len(keep) < len(one.ids) or one.removed > 0
    counts["cut_tokens"] += len(one.ids) - len(keep) + one.removed
    counts["cut_text"] += one.partial
    lost = one.lost + int(one.supervised.sum() - one.supervised[keep].sum())
    counts["lost_supervised"] += lost > 0
    counts["lost_tokens"] += lost
    return _row(one.ids[keep], one.supervised[keep])


def _positions(one: Encoded, section: Data) -> np.ndarray:
    way = section.truncate
    return cut_positions(one.supervised, one.lead, section.max_length, middle=way == "middle", rest=way == "left")


def _chunk(one: Encoded, section: Data, counts: Counter[str]) -> list[TextRow]:
    """Return a document as rows of `max_length`; what one repeats of the row before is not supervised again."""
    length, limit = len(one.ids), section.max_length
    if length <= limit:
        return [_row(one.ids, one.supervised)]
    counts["chunked"] += 1
    rows, done = [], 0
    while done < length:
        context = section.overlap if done else 0
        if length - done == 1:  # a row's first token is never predicted
            context = min(max(context, 1), limit - 1)
        first = max(done - context, 0)
        last = min(first + limit, length)
        supervised = one.supervised[first:last].copy()
        supervised[: done - first] = False
        rows.append(_row(one.ids[first:last], supervised))
        done = last
    return rows


def _row(ids: np.ndarray, supervised: np.ndarray) -> TextRow:
    ids = ids.astype(np.int32)
    return TextRow(ids, np.where(supervised, ids, IGNORED).astype(np.int32))


def _prompt(one: Encoded, answer: Answer, section: Data) -> Prompt:
    """Return what stands before the answer, cut as its row is, or by itself where that leaves nothing of it."""
    if answer.prompt_ids is not None:
        whole = answer.prompt_ids
        ids = cut_prompt(whole, one.lead, section.max_length, middle=section.truncate == "middle")
        return Prompt(answer.prompt, ids, (answer.reference,), one.lead, len(whole) - len(ids))
    keep = _positions(one, section)
    ids = one.ids[keep[keep < answer.first]].tolist() if answer.last - 1 in keep else []
    if not ids:  # the answer leaves no room for its prompt: no answer could be generated after none
        ids = cut_prompt(one.ids[: answer.first], one.lead, section.max_length, middle=section.truncate == "middle")
    return Prompt(answer.prompt, ids, (answer.reference,), one.lead, answer.first - len(ids) + one.removed)
