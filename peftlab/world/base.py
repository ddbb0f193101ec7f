"""One process of a run: its device, its place among the run's processes, and what it exchanges with them.

To add a strategy: subclass `World` in a file of this folder and add the class to `open.STRATEGIES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from peftlab.errors import StorageError
from peftlab.parameters.divided import divided_as, whole, whole_gradient, whole_shape
from peftlab.parameters.trainable import kept_buffers, set_buffers, trainable_parameters
from peftlab.recipe.schema import Recipe
from peftlab.world import hardware
from peftlab.world.determinism import is_repeatable
from peftlab.world.dtypes import autocast
from peftlab.world.tracker_texts import accept_texts

# How torch's optimizers compute an update, which a strategy decides: tensor parallel can use neither.
OWN_SETTINGS = ("fused", "foreach")
Item = TypeVar("Item")
Batch = TypeVar("Batch", bound=dict[str, torch.Tensor])


class Tracker(Protocol):
    """Sends a run's numbers to a service or a folder."""

    name: str

    def store_init_configuration(self, values: dict[str, Any]) -> Any: ...

    def log(self, values: dict[str, Any], *, step: int) -> Any: ...

    def finish(self) -> Any: ...


class World(ABC):
    """A strategy for training on one or several devices. Every process of a launch has its own, on one device.

    Methods that exchange something must be called by all processes at the same point. `notes` are lines about the
    launch that a user should see.
    """

    strategy: ClassVar[str]
    divided: ClassVar[bool] = False
    """Whether each process has a part of every weight, so that all must make the same forward passes together."""
    whole_head: ClassVar[bool] = False
    """Whether each process has the output head whole when it trains, though weights are divided."""
    shares_rows: ClassVar[bool] = False
    """Whether all processes compute the same rows."""
    alone: ClassVar[str] = ""
    """What to tell a user whose launch has one process, where that trains as without a launch."""
    hidden_variables: ClassVar[tuple[str, ...]] = ()
    """A launcher's variables that accelerate must not see: it would divide the work itself, or refuse to."""
    dropped_variables: ClassVar[tuple[str, ...]] = ()
    """A launcher's variables by which libraries would make weights in some processes alone: each has its own."""
    package: ClassVar[str] = ""
    """A package that this strategy needs, which is also the name of peftlab's extra for it."""
    undo_settings: Callable[[], None] = staticmethod(lambda: None)
    """Restores what was set in this process for the run; called when the world is left."""

    def __init__(self, accelerator: Accelerator, notes: Sequence[str] = ()):
        self._accelerator = accelerator
        self.notes = tuple(notes)
        device: torch.device = accelerator.device
        # accelerate numbers the CPU by process, and what is moved to `cpu:1` is copied, though there is one CPU.
        self.device = torch.device("cpu") if device.type == "cpu" else device
        self.processes: int = accelerator.num_processes
        self.process: int = accelerator.process_index

    @property
    def mesh(self) -> DeviceMesh | None:
        """The processes among which a base is divided when it is loaded; None where each loads all of it."""
        return None

    @property
    def row_processes(self) -> int:
        """The number of processes among which rows are divided."""
        return 1 if self.shares_rows else self.processes

    @property
    def row_process(self) -> int:
        """This process's place among those."""
        return 0 if self.shares_rows else self.process

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.process == 0

    @property
    def takes_part(self) -> bool:
        """Whether this process must join in what the main one does with the model."""
        return self.is_main or self.divided

    def own_share(self, count: int) -> Sequence[int]:
        """Return the numbers below `count` that this process works on, all of them where weights are divided.

        Generation has as many passes as its longest answer, and all processes must make the same.
        """
        return range(count) if self.divided else range(self.process, count, self.processes)

    @classmethod
    def why_not(cls, recipe: Recipe, device: torch.device) -> str:
        """Return why this strategy cannot train a recipe on a device, and what to change; empty if it can."""
        return ""

    def refuse_model(self, build: Callable[[], nn.Module]) -> None:  # noqa: B027  # most strategies train any model
        """Raise UsageError for a base that this strategy cannot train; `build` returns it without its weights."""

    @property
    @abstractmethod
    def gradient_factor(self) -> float:
        """What a loss is multiplied by before its gradient is taken.

        The loss is already divided by the count of all processes; the factor makes the exchanged gradient the sum
        over processes.
        """

    @abstractmethod
    def prepare(self, model: nn.Module) -> nn.Module:
        """Return `model` on this process's device, wrapped for training by this strategy."""

    def join(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return the new optimizer of a prepared model; a strategy that divides states alone gives it parts here."""
        return optimizer

    def backward(self, loss: torch.Tensor) -> None:
        """Compute the gradients of a loss, and exchange them unless they are accumulated."""
        loss.backward()

    def gradients(self, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        """Return the gradients with which this process will update, after a step's last backward pass."""
        parameters = (one for group in optimizer.param_groups for one in group["params"])
        return [one.grad for one in parameters if one.grad is not None]

    def gradient_of(self, parameter: torch.Tensor) -> torch.Tensor | None:
        """Return the whole gradient of a parameter of the prepared model, if it has one; all processes call it."""
        return whole_gradient(parameter)

    def clip(self, optimizer: torch.optim.Optimizer, limit: float, foreach: bool | None) -> torch.Tensor:
        """Clip the gradients of all processes to the norm `limit`, and return the norm before that."""
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        norm = whole(torch.nn.utils.get_total_norm(self.gradients(optimizer), foreach=foreach)).to(self.device)
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm, foreach=foreach)
        return norm

    def update(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        """Update the weights, and drop the gradients."""
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    @abstractmethod
    def accumulating(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which backward passes of a prepared model exchange no gradients."""

    @abstractmethod
    def gather(self, items: list[Item]) -> list[Item]:
        """Return the items of all processes, in the order of processes."""

    def gather_rows(self, items: list[Item]) -> list[Item]:
        """Return what was found for the rows of all processes, each row once."""
        return self.gather(items)

    @abstractmethod
    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over all rows' processes of tensors of one shape."""

    @abstractmethod
    def wait(self) -> None:
        """Wait until every process is here."""

    @property
    @abstractmethod
    def sharing(self) -> int:
        """Return the number of processes that share the memory of this process's device."""

    def highest(self, number: int) -> int:
        """Return the highest of all processes' numbers."""
        return max(self.gather([number]))

    def capture(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the trained weights and the buffers of a prepared model, by canonical name, and the optimizer's state.

        All processes must call this together. The tensors are the live ones: copy them before the next step. Where
        weights are divided, each process returns its own parts; otherwise only what the main one returns is used.
        Any strategy can restore what another has captured, when the parts are joined.
        """
        weights = {name: parameter.detach() for name, parameter in trainable_parameters(model).items()}
        buffers = kept_buffers(model)
        return {"weights": weights, "optimizer": optimizer.state_dict(), **({"buffers": buffers} if buffers else {})}

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Set the weights and the optimizer's state to captured ones, in place.

        Raises StorageError, with nothing changed, unless the weights have the names and shapes of what trains here.
        """
        parameters, weights = trainable_parameters(model), state["weights"]
        odd = [
            name
            for name, parameter in parameters.items()
            if name not in weights or whole_shape(weights[name]) != whole_shape(parameter)
        ]
        odd += sorted(weights.keys() - parameters.keys())
        if odd:
            raise StorageError(f"the checkpoint's trained weights are not those of this run ({odd[0]}, ...)")
        self.fill(model, weights)
        with torch.no_grad():
            set_buffers(model, state.get("buffers", {}))
        self.set_states(optimizer, state["optimizer"])

    def set_states(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Set an optimizer's state to a captured one; how it computes its update remains its own."""
        groups = [
            saved | {name: own[name] for name in OWN_SETTINGS if name in own}
            for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
        ]
        optimizer.load_state_dict({**state, "param_groups": groups})

    def fill(self, model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
        """Set what trains in `model` to weights by canonical name, whole ones or this process's parts, in place."""
        with torch.no_grad():
            for name, parameter in trainable_parameters(model).items():
                parameter.copy_(divided_as(weights[name], parameter))

    @contextmanager
    def whole(self, model: nn.Module, everything: bool) -> Iterator[None]:
        """While the context is open, what a saved copy of the model contains is whole, or `everything` is.

        All processes must enter it together; nothing is exchanged inside.
        """
        yield

    def engine_tensors(self) -> dict[str, list[torch.Tensor]]:
        """Return what the strategy keeps on this device beside a model and an optimizer's states, by category."""
        return {}

    def autocast(self, precision: torch.dtype) -> AbstractContextManager:
        """Return a context that computes in `precision` on this device; none is needed for float32."""
        return autocast(precision, self.device)

    def move(self, batch: Batch) -> Batch:
        """Return the batch on this device; a copy from pinned memory does not wait."""
        return _changed(batch, lambda value: value.to(self.device, non_blocking=True))

    def stage(self, batch: Batch) -> Batch:
        """Return a batch on the CPU in memory from which this device copies without waiting."""
        if self.device.type != "cuda":
            return batch
        return _changed(batch, lambda value: value.pin_memory())

    def synchronize(self) -> None:
        """Wait for the device's queue, so that a clock that is read next is right."""
        hardware.synchronize(self.device)

    def free_bytes(self) -> int:
        """Return the memory that this process can count on now: what its device has free, shared evenly."""
        return hardware.free_bytes(self.device) // self.sharing

    def seed(self, number: int) -> None:
        """Seed every generator of this process, its devices' included."""
        set_seed(number)

    def open_trackers(self, names: Sequence[Any], project: str, folder: Path) -> list[Tracker]:
        """Return the trackers of these names, started for `project`, which write under `folder`.

        Empty on all processes but the main one. Raises what the tracker's library raises.
        """
        if not names or not self.is_main:
            return []
        opener = Accelerator(
            cpu=self.device.type == "cpu", mixed_precision="no", log_with=list(names), project_dir=str(folder)
        )
        opener.init_trackers(project)
        return [accept_texts(tracker) for tracker in opener.trackers]

    @property
    def repeatable(self) -> bool:
        """Whether a step that is computed again gives the same bytes."""
        return is_repeatable(self.device)

    def close(self) -> None:
        """End this run; the processes of the launch remain together for the next one, until they end."""
        self.undo_settings()

    def abort(self) -> None:
        """Leave the others after an error, without waiting for one that may wait for this: no run can follow."""
        try:
            self.close()
        finally:
            self._accelerator.state.destroy_process_group()


def _changed(batch: Batch, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """Return a batch of the same kind whose tensors are changed."""
    changed = copy(batch)
    changed.update({name: change(value) for name, value in batch.items()})
    return changed
