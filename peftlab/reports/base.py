"""What every report is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Report(BaseModel):
    # JSON has no NaN and no infinity: as texts they come back as the numbers that they are.
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")
