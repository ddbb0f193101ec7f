"""Private and version-bound interfaces of other libraries that plan and ledger rely on, and the versions tried.

Nothing else in this room names one. Where a library changes one, this file changes and `TRIED` with it.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import accumulate
from math import prod
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode
from torch.utils._pytree import tree_iter

from peftlab.errors import ModelError, PeftlabError, one_line
from peftlab.models.quantizer import BLOCK, SCALE_BLOCK

__all__ = ["FakeTensor", "FakeTensorMode", "TorchDispatchMode"]

TRIED = {
    "torch": ("2.13", "2.11"),
    "transformers": ("5.23", "5.17"),
    "peft": ("0.21",),
    "bitsandbytes": ("0.50",),
}
"""The versions that this room's tests pass with, by their first numbers: the first of each together, and the last."""


def untried_versions() -> list[str]:
    """Return a line for every installed library whose version these interfaces were not tried with."""
    found = []
    for name, versions in TRIED.items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if not any(f"{installed}.".startswith(f"{version}.") for version in versions):
            found.append(f"{name} {installed}: memory plans were tested with {' and '.join(versions)}")
    return found


# torch: operations and storages as a dispatch mode sees them.

# bitsandbytes' codes: the numbers that 4-bit values stand for, and those of scales that are quantised too.
CODES, SCALE_CODES = 16, 256
READS_VALUE = torch.ops.aten._local_scalar_dense.default
COUNTS_KINDS, TAKES = torch.ops.aten.unique_consecutive.default, torch.ops.aten.index.Tensor


def in_backward() -> bool:
    """Whether autograd is running a backward pass in this thread."""
    return torch._C._current_graph_task_id() >= 0


def active_mode() -> TorchDispatchMode | None:
    """Return the innermost dispatch mode; None inside an operation's own handling."""
    return _get_current_dispatch_mode()


def computes_numbers(func: Any, args: tuple) -> bool:
    """Whether an operation on tensors has only numbers that a program gave it, or computed of such."""
    if not args or func is torch.ops.aten.lift_fresh.default:  # what makes a fake tensor of a real one
        return False
    tensors = list(tensors_in(args))
    if tensors:
        return all(one.dim() == 0 and not isinstance(one, FakeTensor) for one in tensors)
    return isinstance(args[0], int | float) and str(func._schema.arguments[0].type) == "Tensor"


def without_modes() -> AbstractContextManager:
    """Return a context in which operations compute, whatever dispatch modes are entered."""
    return _disable_current_modes()


def tensors_in(result: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of an operation's result, however nested."""
    return (leaf for leaf in tree_iter(result) if isinstance(leaf, torch.Tensor))


def is_of_exchange(operation: Any) -> bool:
    """Return whether an operation fills or empties what processes exchange."""
    return getattr(operation, "namespace", "") in ("fsdp", "c10d")


def storage_key(storage: torch.UntypedStorage) -> int:
    """Return a number that is the storage's own while it lives, also for a fake one."""
    return storage._cdata


@contextmanager
def resized_storages(changed: Callable[[torch.UntypedStorage], None]) -> Iterator[None]:
    """Call `changed` after FSDP 2 has given a storage its size, or none: it keeps the tensors of gathered weights."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param, _fsdp_param_group

    def followed(resize: Callable[[torch.Tensor], None]) -> Callable[[torch.Tensor], None]:
        def resize_and_tell(tensor: torch.Tensor) -> None:
            resize(tensor)
            changed(tensor.untyped_storage())

        return resize_and_tell

    with ExitStack() as stack:
        for owner, name in (
            (_fsdp_param, "alloc_storage"),
            (_fsdp_param, "free_storage"),
            (_fsdp_param_group, "alloc_storage"),
        ):
            stack.enter_context(mock.patch.object(owner, name, followed(getattr(owner, name))))
        yield


def device_asked(func: Any, args: tuple) -> torch.device | None:
    """Return the device where `func` only asks a fake tensor for it (half of all operations of a trace), else None."""
    return args[0].fake_device if func is torch.ops.prim.device.default else None


def tensor_tables(module: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield the dictionaries in which a module keeps tensors: parameters, buffers, plain attributes.

    Also dictionaries among the attributes: PEFT keeps the ids of its virtual tokens there.
    """
    yield from (module._parameters, module._buffers, module.__dict__)
    yield from [
        value for name, value in module.__dict__.items() if isinstance(value, dict) and not name.startswith("_")
    ]


def explain_failure(error: Exception) -> str:
    """Return in one line why a model cannot run, on fake tensors or at all."""
    if isinstance(error, DynamicOutputShapeException | DataDependentOutputException):
        return f"the result of {error.func} depends on the values of tensors"
    name, text = type(error).__name__, one_line(str(error).strip().partition("\n")[0])
    return text if text and isinstance(error, RuntimeError | PeftlabError) else f"{name}: {text}" if text else name


@contextmanager
def quiet_fake_tensors() -> Iterator[None]:
    """Keep torch from logging the traceback of an operation that cannot run on fake tensors."""
    logger = logging.getLogger(FakeTensorMode.__module__)
    with mock.patch.object(logger, "disabled", True):
        yield


# transformers: masks, caches, logits.


@contextmanager
def masks_as_for_real_tensors() -> Iterator[None]:
    """Make transformers check fake masks too for masked tokens, instead of using the general path."""
    from transformers import masking_utils

    with mock.patch.object(masking_utils, "is_tracing", lambda *_: False):
        yield


def last_logits_only(base: nn.Module) -> dict[str, int]:
    """Return the arguments with which a model computes logits of the last token alone; none if it cannot."""
    supports: Callable[[], bool] | None = getattr(base, "_supports_logits_to_keep", None)
    return {"logits_to_keep": 1} if supports is not None and supports() else {}


def layer_types(base: nn.Module) -> tuple[str, ...]:
    """Return the kind of each layer in a model's config (`full_attention`, `sliding_attention`, ...); empty if nothing.

    Masks are picked by a layer's position in the list, caches by the number that the layer itself keeps.
    """
    config: Any = getattr(base, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return tuple(getattr(config, "layer_types", None) or ())


def find_cache(output: Mapping[str, Any]) -> tuple[str, Any]:
    """Return a model's cache and the name of the argument that takes it. Raises ModelError for an unknown kind."""
    from transformers import Cache

    for name, value in output.items():
        if isinstance(value, Cache):
            return name, value
    raise ModelError("its cache is not one of transformers' own")


def count_cached(cache: Any) -> int | None:
    """Return how many tokens the attention layers have read; None where all layers are recurrent."""
    lengths = [int(layer.get_seq_length()) for layer in cache.layers if _keeps_tokens(layer)]
    return max(lengths) if lengths else None


def lengthen(cache: Any, tokens: int) -> None:
    """Lengthen a cache by `tokens`, as if they had been written one at a time. Raises ModelError for an unknown layer.

    A sliding window then contains its last positions, in a storage one longer; recurrent states keep their size.
    """
    for layer in cache.layers:
        if type(layer).__module__ != "transformers.cache_utils":
            raise ModelError(f"its cache has layers of an unknown kind, {type(layer).__name__}")
        if tokens and _keeps_tokens(layer):
            _lengthen(layer, tokens)


def _keeps_tokens(layer: Any) -> bool:
    return getattr(layer, "keys", None) is not None


def _lengthen(layer: Any, tokens: int) -> None:
    window = getattr(layer, "sliding_window", None)
    count = tokens if window is None else min(tokens, max(window - layer.get_seq_length(), 1))
    layer.update(_more(layer.keys, count), _more(layer.values, count))
    if count < tokens:  # each further token replaces another one
        layer.cumulative_length += tokens - count
    if getattr(layer, "indexer_keys", None) is not None:
        layer.update_indexer(_more(layer.indexer_keys, count))


def _more(kept: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return zeros like `kept` (..., tokens, width) for other tokens, without a storage of that size."""
    return kept.new_zeros(()).expand(*kept.shape[:-2], tokens, kept.shape[-1])


# Operations that have no formula for fake tensors, or one for some types only.


def grouped_mm(
    left: torch.Tensor,
    right: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the products of a mixture's experts, empty. torch's own formula accepts bfloat16 alone."""
    shape = [left.shape[-2], right.shape[-1]]
    if offs is None:
        shape.insert(0, left.shape[0])
    elif left.dim() == right.dim():
        shape.insert(0, offs.shape[0])
    return left.new_empty(shape, dtype=out_dtype or left.dtype)


def split_with_sizes(whole: torch.Tensor, sizes: Sequence[int], dim: int = 0) -> tuple[torch.Tensor, ...]:
    """Return a tensor's parts of these sizes, of equal ones where the sizes were read from values (experts' tokens)."""
    length = whole.shape[dim]
    if sum(sizes) != length:
        sizes = [length // len(sizes) + (number < length % len(sizes)) for number in range(len(sizes))]
    ends = list(accumulate(sizes))
    return tuple(whole.narrow(dim, end - size, size) for end, size in zip(ends, sizes, strict=True))


def one_kind(counts: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return what `unique_consecutive` does where all values are equal."""
    return counts.new_empty(1), counts.new_empty(0), counts.new_empty(0)


def first_of_rows(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return what `values[mask]` does where each row of the mask, (rows, tokens), has one True."""
    return values.new_empty(mask.shape[0], *values.shape[mask.dim() :])


def _int8_quant(rows: torch.Tensor, *_) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scales = rows.new_empty(rows.shape[:-1].numel(), dtype=torch.float32)
    return torch.empty_like(rows, dtype=torch.int8), scales, rows.new_empty(0, dtype=torch.int64)


def _int8_mixed_mm(rows: torch.Tensor, _, weight: torch.Tensor, *__) -> tuple[torch.Tensor, torch.Tensor]:
    return rows.new_empty(*rows.shape[:-1], weight.shape[0]), rows.new_empty(*rows.shape[:-1], 0)


# bitsandbytes' results depend on how many columns contain outliers: here none.
FORMULAS: dict[str, Callable[..., Any]] = {
    "aten::_grouped_mm": grouped_mm,
    "aten::split_with_sizes": split_with_sizes,
    "bitsandbytes::int8_vectorwise_quant": _int8_quant,
    "bitsandbytes::int8_mixed_scaled_mm": _int8_mixed_mm,
}


# bitsandbytes: what its CUDA kernels allocate and free within one operation (backends/cuda/ops.py of 0.50).

# At most so many rows go through a kernel that reads packed weights; for more, a dense weight is made. Some devices
# switch later: this is the upper bound.
PACKED_ROWS = 64


def _gemm_4bit(rows: torch.Tensor, packed: torch.Tensor, shape: Any, scales: torch.Tensor, *_: Any) -> int:
    if rows.shape[:-1].numel() <= PACKED_ROWS:
        return 0
    return prod(shape) * rows.itemsize + 2 * 4 * -(-prod(shape) // BLOCK)


def _int8_rows(rows: torch.Tensor, *_: Any) -> int:
    """The absolute values, and where they are outliers."""
    return rows.numel() * (rows.itemsize + 1)


def _int8_product(rows: torch.Tensor, _: torch.Tensor, weight: torch.Tensor, *__: Any) -> int:
    """The product in int32, and it in float16 where another type is asked for."""
    count = rows.shape[:-1].numel() * weight.shape[0]
    return count * (4 + (0 if rows.dtype == torch.float16 else 2))


SCRATCH: dict[str, Callable[..., int]] = {
    "bitsandbytes::gemm_4bit": _gemm_4bit,
    "bitsandbytes::int8_vectorwise_quant": _int8_rows,
    "bitsandbytes::int8_mixed_scaled_mm": _int8_product,
}


def cuda_scratch(operation: Any, args: tuple) -> int:
    """Return the bytes that an operation allocates on CUDA and frees again before it returns, beside its results."""
    count = SCRATCH.get(operation.name())
    return count(*args) if count is not None else 0


# bitsandbytes: quantised weights with their scales.


def fake_parameter(tensor: torch.Tensor) -> torch.Tensor:
    """Return a fake copy of a tensor or a parameter, with the state of a quantised one. Needs a fake mode."""
    kind = type(tensor).__name__
    if kind == "Params4bit":
        return _fake_four_bit(tensor)
    if kind == "Int8Params":
        return _fake_int8(tensor)
    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


def _fake_four_bit(weight: Any) -> nn.Parameter:
    """Return packed bytes with a state as bitsandbytes would make it; its own class cannot wrap fake tensors."""
    from bitsandbytes.functional import QuantState

    blocks = -(-prod(weight.shape) // BLOCK)
    packed: Any = nn.Parameter(torch.empty(((prod(weight.shape) + 1) // 2, 1), dtype=torch.uint8), requires_grad=False)
    shared = {"shape": weight.shape, "code": torch.empty(CODES), "blocksize": BLOCK, "dtype": weight.dtype}
    if weight.compress_statistics:
        scales = torch.empty(-(-blocks // SCALE_BLOCK))
        second = QuantState(scales, code=torch.empty(SCALE_CODES), blocksize=SCALE_BLOCK, dtype=torch.float32)
        shared |= {"offset": torch.empty(()), "state2": second}
    absmax = torch.empty(blocks, dtype=torch.uint8 if weight.compress_statistics else torch.float32)
    packed.quant_state = QuantState(absmax, quant_type=weight.quant_type, **shared)
    return packed


def _fake_int8(weight: torch.Tensor) -> nn.Parameter:
    rows: Any = nn.Parameter(torch.empty(weight.shape, dtype=torch.int8), requires_grad=False)
    rows.CB, rows.SCB = rows.data, torch.empty(weight.shape[0])
    return rows


def quantisation_tensors(parameters: Iterable[nn.Parameter]) -> Iterator[torch.Tensor]:
    """Yield the scales and code books of bitsandbytes' quantised weights."""
    for parameter in parameters:
        state = getattr(parameter, "quant_state", None)
        while state is not None:
            yield from (t for t in (state.absmax, state.code, state.offset) if torch.is_tensor(t))
            state = state.state2
        scales = getattr(parameter, "SCB", None)
        if torch.is_tensor(scales):
            yield scales
