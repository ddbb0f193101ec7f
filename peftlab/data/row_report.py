"""Single examples as the model gets them: tokens, supervised pieces, prompt, and what is unusual about each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from peftlab.data.examples import content_key
from peftlab.data.splits import Examples
from peftlab.data.token_rows import TokenRow
from peftlab.data.tokenised_part import tokenising
from peftlab.data.tokens import REASON
from peftlab.data.view import view_row
from peftlab.reports import RowReport
from peftlab.tasks.formats import Example

# What a row's own counts say of it, in the order of how much it matters.
FAULTS = {
    "dropped": "dropped: no token is supervised",
    "skipped": "skipped: longer than data.max_length",
    "lost_supervised": "cut: supervised tokens are lost",
    "unended": "an answer ends without a supervised end marker",
    "unprompted": "the last answer does not begin as the template's generation prompt has it",
    "unwritten_tools": "the chat template does not write the row's tools",
    "unwritten_messages": "the chat template leaves out a message that is not the assistant's",
    "unwritten_reasoning": "the chat template does not write the reasoning of the last answer",
    "straddling": "a token crosses from the prompt into the completion and is not supervised",
    "carried": "the text contains special tokens",
    "unaligned": "a word has no token of its own, so that its tag is ignored",
    "cut_turns": "the oldest messages are cut",
    "truncated": "cut to data.max_length",
    "chunked": "cut into several rows",
}


class RowReports:
    """Reports on the examples of one part, each tokenised alone.

    Faults that concern several rows are found by content: an example that occurs twice, or in another part too.
    """

    def __init__(self, examples: Examples, part: str, tokenizer: Any) -> None:
        self.examples, self.tokenizer = examples, tokenizer
        self.part: Sequence[Example] = getattr(examples, part)
        self._first: dict[str, int] = {}
        for index, example in enumerate(self.part):
            self._first.setdefault(content_key(example), index)
        self._elsewhere = {
            name: {content_key(example) for example in getattr(examples, name)}
            for name in ("train", "evaluation", "test")
            if name != part
        }

    def report(self, index: int) -> list[RowReport]:
        """Return what the model gets of one example: a report for each row that it makes, or one without tokens."""
        example, counts = self.part[index], Counter[str]()
        how = tokenising(self.examples, self.tokenizer, counts, prompts=True)
        rows, prompts = self.examples.task.tokenise([example], how)
        prompt = prompts[0].text if prompts else None
        faults = [*self._own_faults(counts), *self._shared_faults(index)]
        if not rows:
            return [RowReport(index=index, prompt=prompt, supervised=[], ids=[], spans=[], faults=faults)]
        return [self._report_row(index, prompt, row, faults) for row in rows]

    def _report_row(self, index: int, prompt: str | None, row: TokenRow, faults: list[str]) -> RowReport:
        view = view_row(row, self.tokenizer, self.examples.labels)
        ids = row.tokens.tolist()
        pieces = [span.text for span in view.spans if span.supervised]
        return RowReport(
            index=index,
            prompt=prompt,
            supervised=pieces,
            ids=ids,
            spans=view.spans,
            label=view.label,
            faults=[*faults, *self._token_faults(row, ids)],
        )

    def _own_faults(self, counts: Counter[str]) -> Iterator[str]:
        reasons = [key.removeprefix(REASON) for key in counts if key.startswith(REASON)]
        for key, text in FAULTS.items():
            if counts[key] and not (key == "truncated" and counts["lost_supervised"]):
                yield f"dropped: {reasons[0]}" if key == "dropped" and reasons else text

    def _shared_faults(self, index: int) -> Iterator[str]:
        key = content_key(self.part[index])
        if self._first[key] != index:
            yield f"the same content as row {self._first[key]}"
        for name, keys in self._elsewhere.items():
            if key in keys:
                yield f"also in data.{name}"

    def _token_faults(self, row: TokenRow, ids: list[int]) -> Iterator[str]:
        opening = self.tokenizer.bos_token_id
        if opening is not None and ids[:2] == [opening, opening]:
            yield "begins with two beginning tokens"
        marked = row.supervised_tokens
        if marked.any() and not self.tokenizer.decode(row.tokens[marked], skip_special_tokens=True).strip():
            yield "the answer is empty"


def oddest(reports: Sequence[RowReport]) -> list[RowReport]:
    """Return reports ordered by the number of faults, then by the fewest supervised tokens."""
    return sorted(
        reports, key=lambda one: (-len(one.faults), sum(span.tokens for span in one.spans if span.supervised))
    )
