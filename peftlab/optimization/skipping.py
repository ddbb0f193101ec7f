"""Which optimisers skip an update by a flag on the device that nobody has to read."""

from __future__ import annotations

import torch

# Types of device whose queue nobody waits for: a flag is read at once, so that a bad step ends a run at that step.
READ_AT_ONCE = ("cpu",)


def skips_by_flag(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether torch's fused update of `optimizer` obeys `found_inf`, where reading it would wait."""
    groups = optimizer.param_groups
    return all(group.get("fused") for group in groups) and groups[0]["params"][0].device.type not in READ_AT_ONCE
