"""What a model does to the logits after its output head: nothing, a scale, a soft cap. Found by watching its code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.modeling_outputs import BaseModelOutputWithPast

from peftlab.parameters.divided import own_part
from peftlab.parameters.trainable import find_base, find_body

# Functions of one tensor and numbers, by name, which act on each logit by itself.
ELEMENTWISE = {"mul", "__mul__", "__rmul__", "multiply", "div", "__truediv__", "true_divide", "divide", "tanh"}
# Functions that change the type, the place or the layout of a tensor, and none of its values.
CASTS = {"float", "to", "type", "contiguous", "clone"}


class UnknownHeadError(Exception):
    """A model whose way from hidden states to logits is not known; the message says why."""


class Operation(NamedTuple):
    function: Callable[..., torch.Tensor]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    @property
    def widens(self) -> bool:
        """Whether this only casts to float32, which a loss does anyway."""
        name = self.function.__name__
        return name == "float" or name == "to" and (*self.arguments, *self.keywords.values()) == (torch.float32,)


@dataclass(frozen=True)
class AfterHead:
    """The operations on logits after the head, in order; calling it applies them."""

    operations: tuple[Operation, ...] = ()

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        for function, arguments, keywords in self.operations:
            logits = function(logits, *arguments, **keywords)
        return logits

    @property
    def changes_values(self) -> bool:
        return not all(one.widens for one in self.operations)


def watch_after_head(model: nn.Module, head: nn.Linear) -> AfterHead:
    """Return what the plain model inside `model` does to the output of `head`.

    Its forward runs once on hidden states that are zeros: its layers are not run, and no weight is multiplied.
    Works on fake tensors too. Raises UnknownHeadError.
    """
    plain: Any = find_base(model)[1]
    watch = _Watch()
    hidden = own_part(head.weight).new_zeros(1, 2, head.in_features)

    def forward(states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return watch.begin(states.new_zeros(*states.shape[:-1], head.out_features))

    bodies = [one for one in _bodies(plain) if head not in one.modules()]
    try:
        with _resting(plain), _replaced(bodies, lambda *_, **__: _Outputs(hidden)), _replaced([head], forward):
            ids = torch.zeros(1, 2, dtype=torch.int64, device=hidden.device)
            answers = {"decoder_input_ids": ids} if getattr(plain.config, "is_encoder_decoder", False) else {}
            with torch.no_grad(), watch:
                logits = plain(input_ids=ids, **answers).logits
    except Exception as error:  # a model's code may fail in any way on outputs of a body that has not run
        raise UnknownHeadError(f"its head cannot be reached without its layers ({type(error).__name__})") from error
    if watch.calls != 1:
        raise UnknownHeadError(f"its head is used {watch.calls} times in one pass")
    return AfterHead(watch.operations_of(logits))


class _Watch(TorchFunctionMode):
    """Knows for each tensor that elementwise functions made of the head's output which these were."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self._found: dict[int, tuple[Operation, ...]] = {}
        self._alive: list[torch.Tensor] = []  # or a later tensor could have the number of one that is gone

    def begin(self, logits: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self._enter(logits, ())
        return logits

    def operations_of(self, logits: torch.Tensor) -> tuple[Operation, ...]:
        if id(logits) not in self._found:
            raise UnknownHeadError("what it does to logits after its head is not known")
        return self._found[id(logits)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if args and id(args[0]) in self._found:
            self._follow(func, args, kwargs or {}, result)
        return result

    def _follow(self, func: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        values = (*args[1:], *kwargs.values())
        cast = func.__name__ in CASTS
        if not (cast or func.__name__ in ELEMENTWISE) or any(isinstance(one, torch.Tensor) for one in values):
            if result is None or result is args[0]:  # it was written into
                del self._found[id(args[0])]
            return
        if result is args[0]:  # a cast to the type that it has
            return
        moves = cast and not any(isinstance(one, torch.dtype) for one in values) and func.__name__ != "float"
        step = () if moves else (Operation(func, args[1:], kwargs),)
        self._enter(result, self._found[id(args[0])] + step)

    def _enter(self, tensor: torch.Tensor, operations: tuple[Operation, ...]) -> None:
        self._alive.append(tensor)
        self._found[id(tensor)] = operations


class _Outputs(BaseModelOutputWithPast):
    """A body's output with hidden states, and None for everything else that a model may ask of it."""

    def __init__(self, hidden: torch.Tensor):
        super().__init__(last_hidden_state=hidden)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)


def _bodies(plain: nn.Module) -> list[nn.Module]:
    """Return the modules one of which a model calls for hidden states: its body, or a decoder or encoder of it."""
    body = find_body(plain)
    owners = [one for one in (plain, body) if one is not None]
    parts = [body, *(getattr(owner, name, None) for owner in owners for name in ("decoder", "encoder"))]
    return list(dict.fromkeys(one for one in parts if isinstance(one, nn.Module)))


@contextmanager
def _resting(model: nn.Module) -> Iterator[None]:
    """Switch off training mode, so that no dropout draws a random number."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _replaced(modules: list[Any], forward: Callable[..., Any]) -> Iterator[None]:
    former = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = forward
    try:
        yield
    finally:
        for module, old in zip(modules, former, strict=True):
            if old is None:
                del module.forward
            else:
                module.forward = old
