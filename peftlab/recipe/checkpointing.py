"""How many layers are recomputed in the backward pass: what a recipe may ask for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

AUTO: Literal["auto"] = "auto"
OFFLOAD: Literal["offload"] = "offload"

Checkpointing = bool | Annotated[int, Field(ge=0)] | Literal["auto", "offload"]


def asks_for_checkpointing(wanted: Checkpointing) -> bool:
    """Return whether at least one layer is recomputed; `auto` asks for none until a plan has decided."""
    return wanted == OFFLOAD or (isinstance(wanted, int) and wanted > 0)
