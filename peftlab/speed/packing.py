"""Rows of a batch laid end to end as one line, so that no padding is computed: for which models, and the proof."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from peftlab.data.batches import EndToEnd, Layout, Padded
from peftlab.data.token_rows import LINE_POSITIONS, ClassRow, TextRow, TokenRow
from peftlab.errors import one_line
from peftlab.losses.cross_entropy import score_rows
from peftlab.parameters.divided import whole_shape
from peftlab.parameters.trainable import find_base, find_body
from peftlab.recipe.schema import Recipe
from peftlab.speed.attention import Call, attention_of_rows, watch_calls
from peftlab.speed.base import Decline, SpeedUp
from peftlab.world.dtypes import autocast, resolve_types

# What a layer's type may say of its attention: all earlier tokens, or those in a window.
FULL, SLIDING = "full_attention", "sliding_attention"
# Families whose masks have a window that their attention function does not get (transformers 5.23).
WINDOW_IN_MASK_ONLY = frozenset({"phimoe", "qwen2_moe"})
# The probe's rows: short ones, and one that is longer than the attention's window where that is small.
PROBED = (5, 3, 1)
LARGEST_PROBED = 512
ONE_ROW = "a micro-batch is one row"
# Draws of rows: a mixture of experts may choose others where two are nearly equal, by rounding alone.
DRAWS = 3
# The largest relative difference of outputs that rounding makes, by their type.
ROUNDING = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# What outputs change by when rows do see each other must be so many times as much as what packing changes.
POWER = 4

_reasons: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


class Packing(SpeedUp):
    """Rows of a micro-batch lie end to end in one line, in which attention never leaves a row."""

    name: ClassVar[str] = "packing"
    does: ClassVar[str] = "rows lie end to end, and no padding is computed"
    reads_weights: ClassVar[bool] = False

    def decline(self, model: nn.Module, recipe: Recipe) -> Decline | None:
        reason = why_padded(model, recipe)  # also for one row: a plan asks the same model for larger batches
        if recipe.training.batch_size == 1:
            return Decline(ONE_ROW, possible=True)
        grouped = recipe.training.gradient_accumulation > 1 and recipe.training.batch_size > 1
        instead = "; rows of like length share a micro-batch instead" if reason and grouped else ""
        return Decline(f"{reason}{instead}") if reason else None

    def apply(self, model: nn.Module, recipe: Recipe) -> str:
        return f"no row: {ONE_ROW}, which has no padding" if recipe.training.batch_size == 1 else ""


def training_layout(model: nn.Module, recipe: Recipe, pad_id: int) -> Layout:
    """Return how the rows of training become batches for a model with its method."""
    if recipe.training.speed.packing == "off":
        return Padded(pad_id)
    return Padded(pad_id, by_length=True) if why_padded(model, recipe) else layout_of(model, pad_id)


def why_padded(model: nn.Module, recipe: Recipe) -> str:
    """Return why the rows of a recipe's training are padded; empty where they lie end to end.

    A model with weights has to prove that this is right, once. One without, in a plan, is judged by its architecture.
    """
    row_class = recipe.task.row_class
    if any(parameter.is_meta for parameter in model.parameters()):
        # Kept for when the plan's tensors are fake, which no longer shows in them.
        _reasons[model] = judge(model, row_class.pooled)
    if recipe.training.batch_size == 1:
        return ONE_ROW
    unsuited = row_class.why_padded or recipe.method.why_padded
    if not unsuited and model not in _reasons:
        device = next(model.parameters()).device
        types = resolve_types(recipe.model.dtype, recipe.training.precision, device)
        with autocast(types.computation, device):
            reason = judge(model, row_class.pooled)
            _reasons[model] = reason or probe(model, layout_of(model, _padding_of(model)), row_class.pooled)
    return unsuited or _reasons[model]


def judge(model: nn.Module, pooled: bool = False) -> str:
    """Return why rows cannot be laid end to end for a model of this architecture; empty where they can.

    `pooled` says that they would be below its head alone.
    """
    base: Any = find_base(model)[1]
    kind = getattr(getattr(base, "config", None), "model_type", type(base).__name__)
    if not (getattr(base, "_supports_flash_attn", False) and getattr(base, "_supports_attention_backend", False)):
        return f"the attention of {kind} cannot learn where rows begin"
    if getattr(base, "_is_stateful", False) or any(isinstance(module, nn.Conv1d) for module in base.modules()):
        return f"{kind} has states or convolutions that pass from row to row"
    reader = find_body(model) if pooled else base
    if reader is None:
        return f"the layers of {kind} are not apart from its head"
    if "position_ids" not in inspect.signature(reader.forward).parameters:
        return f"{kind} takes no position ids"
    config = base.config.get_text_config()
    if kind in WINDOW_IN_MASK_ONLY and getattr(config, "sliding_window", None):
        return f"the attention of {kind} does not get its window"
    odd = sorted(set(getattr(config, "layer_types", None) or ()) - {FULL, SLIDING})
    return f"{kind} has layers of another kind than attention ({', '.join(odd)})" if odd else ""


def layout_of(model: nn.Module, pad_id: int = 0) -> EndToEnd:
    """Return how rows are laid end to end for a model: where its position ids begin."""
    for module in find_base(model)[1].modules():
        padding = getattr(module, "padding_idx", None)
        if hasattr(module, "create_position_ids_from_input_ids") and isinstance(padding, int):
            return EndToEnd(padding + 1, padding, pad_id)
    return EndToEnd(pad_id=pad_id)


@torch.no_grad()
def probe(model: nn.Module, layout: EndToEnd, pooled: bool = False) -> str:
    """Return why this model's outputs for packed rows are not those for separate ones; empty where they are.

    Rows of random tokens go through it one by one and packed, in evaluation mode; below its head alone where that
    takes whole rows (`pooled`). The difference must be within rounding, and far below what it is when rows see each
    other.
    """
    was_training = model.training
    model.eval()
    try:
        reason = ""
        for seed in range(DRAWS):
            reason = _compare(model, layout, pooled, seed)
            if not reason:
                break
        return reason
    except Exception as error:  # whatever the code of a family raises: it then trains on padded rows
        return f"the model fails on packed rows ({type(error).__name__}: {one_line(str(error))[:100]})"
    finally:
        model.train(was_training)


def _compare(model: nn.Module, layout: EndToEnd, pooled: bool, seed: int) -> str:
    rows = _random_rows(model, layout, seed, pooled)
    device = next(model.parameters()).device
    packed = layout.batch(rows)
    batch = {name: value.to(device) for name, value in packed.items()}
    with attention_of_rows(model, packed.groups), watch_calls() as calls:
        found = _outputs(model, batch)
    right = torch.cat([_outputs(model, _plain(row.input_ids, device)) for row in rows])
    mixed = _outputs(model, _as_one_row(batch))
    difference, leak = (float((other - right).norm() / right.norm()) for other in (found, mixed))
    if not difference <= ROUNDING.get(right.dtype, ROUNDING[torch.bfloat16]):
        return f"packed rows change the model's outputs by {difference:.0e}"
    base: Any = find_base(model)[1]
    if len(calls) < base.config.get_text_config().num_hidden_layers:
        return "not all of its layers take their attention from transformers' registry"
    # Random weights in 16 bits may show rounding alone; the calls that were seen keep rows apart.
    if difference * POWER > leak and right.dtype == torch.float32:
        return "the model's outputs do not show whether rows see each other"
    if not _shown_window(model) and any(call.has_window and not call.causal for call in calls):
        return "rows of the proof are shorter than its window in both directions"
    return "" if all(_gets_window(model, call) for call in calls) else "its attention does not get its window"


def _shown_window(model: nn.Module) -> int:
    """Return the attention's window where the probe's rows can be longer than it, else 0.

    A causal window is the same in all of transformers; one in both directions has its last token or has not, as the
    family's masks say (5.23: a decoder with `is_causal: false` has, Gemma 3 has not).
    """
    base: Any = find_base(model)[1]
    window = getattr(base.config.get_text_config(), "sliding_window", None) or 0
    return window if 0 < window <= LARGEST_PROBED else 0


def _gets_window(model: nn.Module, call: Call) -> bool:
    """Whether an attention layer got a window if its masks have one."""
    base: Any = find_base(model)[1]
    config = base.config.get_text_config()
    types = getattr(config, "layer_types", None)
    if call.has_window or getattr(config, "sliding_window", None) is None:
        return True
    if not types or call.layer is None:
        return getattr(config, "use_sliding_window", True) is False
    return types[call.layer] != SLIDING


@torch.no_grad()
def watch_packed_rows(model: nn.Module, pooled: bool = False) -> list[Call]:
    """Return what a forward pass on packed rows of random tokens, in training mode, calls attention with."""
    layout, device, was_training = layout_of(model, _padding_of(model)), next(model.parameters()).device, model.training
    packed = layout.batch(_random_rows(model, layout, 0, pooled))
    try:
        model.train()
        with torch.random.fork_rng(), attention_of_rows(model, packed.groups), watch_calls() as calls:
            _outputs(model, {name: value.to(device) for name, value in packed.items()})
    finally:
        model.train(was_training)
    return calls


def _random_rows(model: nn.Module, layout: EndToEnd, seed: int, pooled: bool) -> list[TokenRow]:
    """Return rows of random tokens, the shortest first, without the padding token."""
    base: Any = find_base(model)[1]
    config, chance = base.config.get_text_config(), np.random.default_rng(seed)
    window = _shown_window(model)
    longer = [window + 3] if window else []
    tokens = whole_shape(base.get_input_embeddings().weight)[0]
    allowed = np.setdiff1d(np.arange(tokens, dtype=np.int32), [config.pad_token_id or 0, layout.unplaced or 0])
    drawn = [chance.choice(allowed, length) for length in sorted([*PROBED, *longer])]
    return [ClassRow(ids, 0) if pooled else TextRow(ids, ids) for ids in drawn]


def _outputs(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits of all tokens, (tokens, outputs), or of all rows, (rows, outputs)."""
    return score_rows(model, batch).flatten(0, -2)


def _plain(ids: np.ndarray, device: torch.device) -> dict[str, torch.Tensor]:
    one = torch.from_numpy(ids).long()[None].to(device)
    return {"input_ids": one, "attention_mask": torch.ones_like(one)}


def _as_one_row(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the batch with positions that do not begin again, for attention in which all of its rows are one."""
    if LINE_POSITIONS not in batch:
        return {"input_ids": batch["input_ids"], "attention_mask": torch.ones_like(batch["input_ids"])}
    positions = batch[LINE_POSITIONS]
    return batch | {LINE_POSITIONS: positions.min() + torch.arange(positions.shape[1], device=positions.device)[None]}


def _padding_of(model: nn.Module) -> int:
    """Return the token by which the model's head knows padding."""
    base: Any = find_base(model)[1]
    return base.config.get_text_config().pad_token_id or 0
