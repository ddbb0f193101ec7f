"""transformers' Trainer, plain or with Liger's kernels, and TRL's SFTTrainer, set to do the same as the other runs."""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from race.clock import Clock
from race.job import Job
from race.loop import collate
from race.models import build


def run_trainer(job: Job, clock: Clock, **arguments: Any) -> dict[str, Any]:
    """Train with `TrainingArguments` that have `arguments` beside the shared ones."""
    from transformers import Trainer, TrainingArguments

    settings = TrainingArguments(**shared(job), **arguments)
    trainer = Trainer(
        model=build(job), args=settings, train_dataset=Flat(job), data_collator=lambda rows: collate(rows, job.pad_id)
    )
    return watched(trainer, clock)


def run_liger(job: Job, clock: Clock) -> dict[str, Any]:
    """Liger's loss, norms, rotations and feed-forwards in place of the model's own, as the Trainer puts them there."""
    from importlib.metadata import version

    return run_trainer(job, clock, use_liger_kernel=True) | {"version": version("liger-kernel")}


def run_trl(job: Job, clock: Clock) -> dict[str, Any]:
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    settings = SFTConfig(**shared(job), max_length=None, packing=False, dataset_kwargs={"skip_prepare_dataset": True})
    trainer = SFTTrainer(
        model=build(job),
        args=settings,
        train_dataset=Dataset.from_list([row for rows in job.steps_of_rows() for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(job.model),
    )
    return watched(trainer, clock) | {"version": trl.__version__}


def shared(job: Job) -> dict[str, Any]:
    rows = job.steps_of_rows()
    return {
        "output_dir": tempfile.mkdtemp(prefix="race-"),
        "per_device_train_batch_size": len(rows[0]),
        "max_steps": job.steps,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "bf16": job.precision == "bfloat16",
        "use_cpu": job.device == "cpu",
        "gradient_checkpointing": job.checkpointing,
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
    }


class Flat(torch.utils.data.Dataset):
    """The rows of all steps in their order."""

    def __init__(self, job: Job):
        self.rows = [row for rows in job.steps_of_rows() for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        return self.rows[number]


def watched(trainer: Any, clock: Clock) -> dict[str, Any]:
    """Train, with a stamp at every logged step."""
    from transformers import TrainerCallback

    class Stamps(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                clock.step(float(logs["loss"]))

    trainer.add_callback(Stamps())
    trainer.train()
    return {}
