"""What a model counts, and what a method's plan counts and takes."""

from __future__ import annotations

from pydantic import Field, computed_field

from peftlab.reports.base import Report


class CountRow(Report):
    """Parameters of one group: a kind or a layer."""

    name: str
    total: int
    trainable: int


class ParameterReport(Report):
    """Logical counts: a 4-bit weight counts as what it stands for, a tied weight once.

    `active` is what one token uses (less than `total` only with experts), `stored_bytes` what the result of
    the run takes on disk as tensors. `notes` say what is not counted or gets no update.
    """

    total: int
    trainable: int
    active: int
    stored_bytes: int
    kinds: list[CountRow]
    layers: list[CountRow]
    notes: list[str] = Field(default_factory=list)

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use, which mypy does not know
    @property
    def fraction(self) -> float:
        return self.trainable / self.total if self.total else 0.0
