"""Which methods there are: the built-in ones, those of installed packages, and what a program registers itself.

A package offers a method by an entry point of the group `peftlab.methods`: the method's `type` is its name, the
class its object. `register` does the same for a class of a notebook or a test, in this process only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from inspect import isclass
from typing import get_args

from peftlab.errors import MethodError, one_line
from peftlab.methods.adapters import Adapters
from peftlab.methods.base import Method
from peftlab.methods.bitfit import BitFit
from peftlab.methods.full import Full
from peftlab.methods.lora import LoRA
from peftlab.methods.prefix import Prefix
from peftlab.methods.qlora import QLoRA

GROUP = "peftlab.methods"
BUILT_IN: tuple[type[Method], ...] = (Full, LoRA, QLoRA, Adapters, Prefix, BitFit)


class Registry(Mapping[str, type[Method]]):
    """Methods by `type`: the built-in ones first, then the others in the order in which they were found.

    Installed packages are searched at the first use, and not at import: a package's own module imports `Method`
    before its class exists. `unloadable` says, by name, why an installed method is missing.
    """

    def __init__(self, built_in: tuple[type[Method], ...]):
        self._built_in = {_type_of(method): method for method in built_in}
        self._known = dict(self._built_in)
        self._unloadable: dict[str, str] = {}
        self._searched = False

    def __getitem__(self, name: str) -> type[Method]:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    @property
    def unloadable(self) -> dict[str, str]:
        self._all()
        return self._unloadable

    def add(self, method: type[Method]) -> None:
        """Make a method known. A class that is defined again (a notebook's cell) replaces itself.

        Raises MethodError for a class that is not a complete method and for the `type` of another one.
        """
        if fault := _fault_of(method):
            raise MethodError(f"{getattr(method, '__name__', method)} cannot be registered as a method: {fault}")
        name = _type_of(method)
        known = self._known.get(name, method)
        if known is not method and (name in self._built_in or _origin(known) != _origin(method)):
            message = f"the type {name!r} belongs to {'.'.join(_origin(known))}; choose another"
            raise MethodError(f"{method.__name__} cannot be registered as a method: {message}")
        self._known[name] = method

    def remove(self, name: str) -> None:
        """Forget a method that was registered."""
        del self._known[name]

    def _all(self) -> dict[str, type[Method]]:
        if not self._searched:
            self._searched = True  # before the search: a package's module may ask for the methods itself
            for entry in entry_points(group=GROUP):
                self._add_installed(entry)
        return self._known

    def _add_installed(self, entry: EntryPoint) -> None:
        try:
            method = entry.load()
            self.add(method)
            if _type_of(method) != entry.name:
                raise MethodError(f"its entry point must have the name of its type, {_type_of(method)!r}")
        except Exception as error:  # whatever a package does as it is imported must not stop the other methods
            package = f"package {entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"
            reason = one_line(error) if isinstance(error, MethodError) else f"{type(error).__name__}: {one_line(error)}"
            self._unloadable[entry.name] = f"method {entry.name!r} of {package} cannot be loaded: {reason}"


def register(method: type[Method]) -> type[Method]:
    """Make a method known in this process, and return it: `@register` before a class does it.

    Raises MethodError for a class that is not a complete method and for a `type` that is taken.
    """
    METHODS.add(method)
    return method


def _type_of(method: type[Method]) -> str:
    return method.model_fields["type"].default


def _origin(method: type[Method]) -> tuple[str, str]:
    return method.__module__, method.__qualname__


def _fault_of(method: object) -> str | None:
    """Say what a class lacks that every method must have."""
    if not (isclass(method) and issubclass(method, Method)):
        return "it is not a subclass of peftlab.methods.Method"
    field = method.model_fields["type"]
    if not isinstance(field.default, str) or get_args(field.annotation) != (field.default,):
        return 'its type must be a literal with a default, such as `type: Literal["mine"] = "mine"`'
    if not isinstance(getattr(method, "title", None), str):
        return "it has no title"
    if required := [name for name, field in method.model_fields.items() if field.is_required()]:
        return f"every field needs a default, and {required[0]} has none"
    return None


METHODS = Registry(BUILT_IN)
