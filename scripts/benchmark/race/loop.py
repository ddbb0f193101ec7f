"""A plain training loop with transformers and peft: what a person writes who needs no trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from race.clock import Clock
from race.job import Job
from race.models import build

BETAS = (0.9, 0.999)


def run(job: Job, clock: Clock, build: Callable[[Job], nn.Module] = build) -> dict[str, Any]:
    model = build(job)
    model.train()
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job.learning_rate, betas=BETAS, eps=1e-8, weight_decay=0.0)
    precision = getattr(torch, job.precision)
    for rows in job.steps_of_rows():
        batch = {name: one.to(job.device) for name, one in collate(rows, job.pad_id).items()}
        with torch.autocast(job.device, precision, enabled=precision != torch.float32):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.step(loss.item())
    return {}


def collate(rows: list[dict[str, list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """Return a batch padded to its longest row, as the collators of transformers make it."""
    width = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, value: int) -> torch.Tensor:
        return torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])

    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = (torch.arange(width)[None] < lengths[:, None]).long()
    return {"input_ids": padded("input_ids", pad_id), "attention_mask": mask, "labels": padded("labels", -100)}
