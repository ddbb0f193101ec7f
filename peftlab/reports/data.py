"""What a model will see of a recipe's data."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from peftlab.reports.base import Report


class Span(Report):
    """Neighbouring tokens of one row as text, all of them supervised or none."""

    text: str
    tokens: int
    supervised: bool


class RowView(Report):
    """One row as the model sees it; `label` is a classified row's."""

    tokens: int
    supervised: int
    spans: list[Span]
    label: str | None = None


class RowReport(Report):
    """One row of a recipe's data before any training: what the model gets, and what is unusual about it.

    `index` counts the part's examples from 0. `prompt` is the text that generation would be given, None where the
    row has none. `supervised` has the supervised pieces in order, decoded with their special tokens, `ids` the
    tokens. A row that is dropped has no ids; the reason is among its `faults`.
    """

    index: int
    prompt: str | None
    supervised: list[str]
    ids: list[int]
    spans: list[Span]
    label: str | None = None
    faults: list[str] = Field(default_factory=list)


class LengthBin(Report):
    """Rows of `first` to `last` tokens."""

    first: int
    last: int
    rows: int


class StepsReport(Report):
    """What training steps take: rows and tokens of a step, and the share of padding in its batches, as means."""

    steps: int
    epochs: float
    rows: int
    tokens: float
    supervised: float
    padding: float


class DataReport(Report):
    """What a model will see of a recipe's data. `data` is the part of a run's result on its rows.

    `refusal` is the reason why training would refuse the data. `part` names the rows that `rows` and `lengths` are of.
    """

    part: str
    data: dict[str, Any]
    ends: list[str]
    steps: StepsReport | None
    lengths: list[LengthBin]
    notes: list[str]
    refusal: str | None
    rows: list[RowReport]
