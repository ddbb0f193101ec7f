"""Whether a loss can be computed without logits, by what it is and by the model's head."""

from __future__ import annotations

from torch import nn

from peftlab.losses.after_head import UnknownHeadError, watch_after_head
from peftlab.losses.base import Loss
from peftlab.losses.chunked import ChunkedCrossEntropy
from peftlab.losses.cross_entropy import CrossEntropy, PositionCrossEntropy
from peftlab.parameters.divided import is_divided


def without_logits(
    loss: Loss, model: nn.Module, device: str = "cpu", *, divided: bool = False, liger: bool = False
) -> ChunkedCrossEntropy:
    """Return the loss that equals `loss` and never has all logits, in chunks for a type of device.

    A head that is `divided` now may be whole when the loss is computed. `liger` lets Liger's kernel compute it
    where it can. Raises UnknownHeadError with the reason if there is none.
    """
    if not isinstance(loss, PositionCrossEntropy) or any(
        getattr(type(loss), name) is not getattr(CrossEntropy, name) for name in ("total", "rows_of")
    ):
        raise UnknownHeadError("the task's loss is not a cross-entropy of tokens")
    if loss.head is None:
        raise UnknownHeadError("the task has a small head or none, whose logits cost little")
    head = plain_head(loss.head, divided=divided)
    return ChunkedCrossEntropy(loss, head, watch_after_head(model, head), device, liger)


def plain_head(head: nn.Module, *, divided: bool = False) -> nn.Linear:
    """Return the head if it is one plain matrix product. Raises UnknownHeadError where anything is added to it.

    Its weights must be whole, unless it may be `divided`.
    """
    kind = type(head)
    if not isinstance(head, nn.Linear) or kind.forward is not nn.Linear.forward or "forward" in vars(head):
        raise UnknownHeadError(
            f"the output head is not a plain linear layer ({kind.__module__.split('.')[0]} {kind.__name__})"
        )
    if is_divided(head.weight) and not divided:
        raise UnknownHeadError("the output head's weights are divided among processes")
    if not head.weight.is_floating_point() or head._forward_hooks or head._forward_pre_hooks:
        raise UnknownHeadError("the output head is quantised or watched by another library")
    return head
