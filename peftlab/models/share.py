"""One base for several runs: modules of their own, and the same memory for what none of them trains."""

from __future__ import annotations

import copy
from collections.abc import Collection

from torch import nn
from transformers import PreTrainedModel

from peftlab.parameters.trainable import is_quantized, named_parameters


def share_weights(model: PreTrainedModel, own: Collection[str]) -> PreTrainedModel:
    """Return a copy of a frozen model whose parameters are in the same memory, but for copies of those in `own`.

    `own` are canonical names. A method can be applied to the copy without a change of `model`, as long as it writes
    to no other parameter.
    """
    shared = {id(one): _same_memory(one) for name, one in named_parameters(model).items() if name not in own}
    return copy.deepcopy(model, shared)


def _same_memory(parameter: nn.Parameter) -> nn.Parameter:
    """Return another parameter with the same memory, so that a change of its type is not one of the original's."""
    if is_quantized(parameter):
        return parameter
    return nn.Parameter(parameter.detach(), requires_grad=False)
