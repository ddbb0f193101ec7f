"""AdamW (https://arxiv.org/abs/1711.05101): torch's, or bitsandbytes' with states in 8 bits or in pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from peftlab.errors import MissingRequirementError
from peftlab.optimizers.base import Groups, Optimizer, StateTensor

if TYPE_CHECKING:
    import torch

# Below these sizes bitsandbytes keeps a tensor's moments in 32 bits, and on the device.
SMALLEST_8BIT, SMALLEST_PAGED = 4096, 100_000
STATE_BLOCK = 256
Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamW(Optimizer):
    title: ClassVar[str] = "AdamW"

    type: Literal["adamw"] = "adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""
    bits: Literal[32, 8] = 32
    """Bits of the moments: 8 uses bitsandbytes (CUDA)."""
    paged: bool = False
    """Keep large moments in pages that can move to the host when the device is full (bitsandbytes, CUDA)."""

    @property
    def needs_cuda(self) -> bool:
        return self.bits == 8 or self.paged

    @property
    def elementwise(self) -> bool:
        return not self.needs_cuda

    def build(self, groups: Groups, learning_rate: float, device: torch.device) -> torch.optim.Optimizer:
        """Return the optimiser. Raises MissingRequirementError for bitsandbytes' away from CUDA."""
        import torch

        settings: dict[str, Any] = {"lr": learning_rate, "betas": self.betas, "eps": self.eps}
        if not self.needs_cuda:
            return torch.optim.AdamW(groups, **settings, fused=True)
        if device.type != "cuda":
            raise MissingRequirementError(
                f"training.optimizer: {self.variant} needs CUDA; on {device.type} use bits: 32 and paged: false"
            )
        return self.build_quantised(groups, settings)

    def build_quantised(self, groups: Groups, settings: dict[str, Any]) -> torch.optim.Optimizer:
        """Return bitsandbytes' optimiser for these bits and pages."""
        import bitsandbytes

        from peftlab.optimization.paging import keep_paged

        if not self.paged:
            return bitsandbytes.optim.AdamW8bit(groups, **settings)
        kind = bitsandbytes.optim.PagedAdamW8bit if self.bits == 8 else bitsandbytes.optim.PagedAdamW
        return keep_paged(kind)(groups, **settings)

    def reuse(self, new: torch.optim.Optimizer, former: torch.optim.Optimizer) -> None:
        from peftlab.optimization.paging import take_over

        if self.paged:  # bitsandbytes never frees pages
            take_over(new, former)

    @property
    def variant(self) -> str:
        """The short name: adamw, adamw_8bit, paged_adamw, paged_adamw_8bit."""
        return f"{'paged_' if self.paged else ''}adamw{'_8bit' if self.bits == 8 else ''}"

    def state_tensors(self, count: int) -> dict[str, StateTensor]:
        if not self.needs_cuda:
            return {"step": StateTensor(1, "float32")} | {
                name: StateTensor(count, "float32") for name in ("exp_avg", "exp_avg_sq")
            }
        small = count < SMALLEST_8BIT or self.bits == 32
        states: dict[str, StateTensor] = {}
        if not (self.paged and count >= SMALLEST_PAGED):
            dtype = "float32" if small else "uint8"
            states |= {name: StateTensor(count, dtype) for name in ("state1", "state2")}
        if not small:
            blocks = -(-count // STATE_BLOCK)
            states |= {name: StateTensor(blocks, "float32") for name in ("absmax1", "absmax2")}
        return states or {"step": StateTensor(1, "float32")}

    def count_saved_bytes(self, count: int) -> int:
        return super(AdamW, self.model_copy(update={"paged": False})).count_saved_bytes(count)

    def plan(self, groups: Groups, device_type: str) -> torch.optim.Optimizer:
        import torch

        from peftlab.optimization.planned import PlannedStates

        if self.needs_cuda:
            return PlannedStates(groups, self)
        return torch.optim.AdamW(groups, fused=True)  # no scratch space
