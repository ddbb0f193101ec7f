"""The plain loop with AdapterHub's library `adapters`, for bottleneck adapters on the families that it has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from race import loop
from race.clock import Clock
from race.job import Job
from race.models import base


def run(job: Job, clock: Clock) -> dict[str, Any]:
    import adapters

    return loop.run(job, clock, build) | {"version": adapters.__version__}


def build(job: Job) -> nn.Module:
    """Return the model with the job's first adapters, of which only these train."""
    import adapters

    if not job.adapterhub.is_dir():
        raise ValueError("AdapterHub's library cannot have these adapters in this model")
    model = base(job, config=read_config(job.model))
    adapters.init(model)
    name = model.load_adapter(str(job.adapterhub), set_active=True, use_safetensors=True)
    model.train_adapter(name)
    if job.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.to(job.device)


def read_config(folder: str) -> Any:
    """Return the model's configuration as transformers 4 reads it: the base of its rotary embedding has a field."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    written = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    if rotary := written.get("rope_parameters"):
        config.rope_theta = rotary["rope_theta"]
    return config
