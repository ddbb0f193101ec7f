"""Data parallel: every process has the whole model and its own rows, and gradients are averaged over processes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cached_property

import torch
from accelerate.utils import gather_object
from torch import distributed, nn

from peftlab.recipe.schema import Recipe
from peftlab.world.base import Item, World

UPDATES_ALONE = (
    "training.optimizer_in_backward: processes exchange gradients after the backward pass; set it to false, or use one "
    "process"
)


class Ddp(World):
    strategy = "ddp"

    @classmethod
    def why_not(cls, recipe: Recipe, device: torch.device) -> str:
        return UPDATES_ALONE if recipe.training.optimizer_in_backward else ""

    @property
    def gradient_factor(self) -> float:
        return float(self.processes)  # DDP averages, and the gradient of a step is a sum

    @property
    def sharing(self) -> int:
        return 1 if self.device.type == "cuda" else self.processes

    def prepare(self, model: nn.Module) -> nn.Module:
        return self._accelerator.prepare_model(model)

    def accumulating(self, model: nn.Module) -> AbstractContextManager[None]:
        return self._accelerator.no_sync(model)

    def gather(self, items: list[Item]) -> list[Item]:
        return gather_object(items)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._accelerator.reduce(tensor, "sum")

    def highest(self, number: int) -> int:
        """Return the highest of all processes' numbers; the device's queue is not waited for."""
        found = torch.tensor(number)
        distributed.all_reduce(found, distributed.ReduceOp.MAX, self._host_group)
        return int(found)

    @cached_property
    def _host_group(self) -> distributed.ProcessGroup | None:
        """The processes, exchanging values between their hosts' memories; None where the default group does.

        NCCL exchanges on the device only, so that reading a value would wait for all that the device has to do.
        """
        return None if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")

    def abort(self) -> None:
        """Leave after an error. NCCL would wait for the others, which wait for this process: it is cut off."""
        if distributed.get_backend() != "nccl":
            super().abort()  # closing gloo's connections is what tells the others
            return
        self.undo_settings()
        # Not `_abort_process_group`, which fails at the host's group before it reaches NCCL's (torch 2.13).
        distributed.distributed_c10d._get_default_group()._get_backend(self.device).abort()

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()
