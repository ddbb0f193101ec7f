"""The section `training.average`: which mean of the trained weights a run keeps in place of the last ones."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peftlab.recipe.section import Section


class Average(Section):
    """A mean of what trains. At most one of the two is set; without any, the last weights are the result."""

    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average over the steps, such as 0.999: evaluated and saved as the result."""
    last: Annotated[int, Field(ge=2)] | None = None
    """Number of latest checkpoints whose mean is the result: those of `run.save_every`, and the last step's."""
