"""bitsandbytes' paged optimisers with states that stay paged: after a checkpoint is loaded, and from trial to run.

bitsandbytes 0.50 allocates pages that move between device and host and frees none while the process lives. Its own
`load_state_dict` puts states into plain memory of the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from peftlab.optimization.average import AVERAGE

if TYPE_CHECKING:
    from bitsandbytes.optim.optimizer import Optimizer8bit

# The names of states that can be paged.
PAGED = ("state1", "state2")


def keep_paged(kind: type[Optimizer8bit]) -> type[Optimizer8bit]:
    """Return a subclass of a paged optimiser whose states are paged again after loading."""

    class Paged(kind):  # type: ignore[valid-type,misc]  # a base that is known at run time only
        def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
            former = {parameter: dict(state) for parameter, state in self.state.items()}
            super().load_state_dict(state_dict, move_to_device=False)
            for parameter, state in self.state.items():
                for name, value in state.items():
                    if torch.is_tensor(value):
                        state[name] = self._placed(parameter, name, value, former.get(parameter, {}))

        def _placed(self, parameter: torch.Tensor, name: str, value: torch.Tensor, former: dict) -> torch.Tensor:
            """Return a loaded state on its parameter's device, in pages where it had or would get some."""
            if name not in PAGED:
                return value.to(parameter.device)
            buffer = former.get(name)
            if buffer is None:
                buffer = self.get_state_buffer(parameter, dtype=value.dtype)
            return buffer.copy_(value)

    Paged.__name__ = Paged.__qualname__ = kind.__name__
    return Paged


def take_over(new: torch.optim.Optimizer, former: torch.optim.Optimizer) -> None:
    """Give a new optimiser the states of a former one of the same parameters, as they are before the first step."""
    for parameter, state in former.state.items():
        own = {name: value for name, value in state.items() if name != AVERAGE}
        new.state[parameter] = {name: _cleared(name, value) for name, value in own.items()}
    former.state.clear()


def _cleared(name: str, value: Any) -> Any:
    """Return a state as it is made; the code books of 8-bit states are constants."""
    if torch.is_tensor(value):
        return value if name.startswith("qmap") else value.zero_()
    return 0
