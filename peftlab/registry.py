"""Kinds of a recipe section by their `type`: built-in ones, those of installed packages, and what a program registers.

Used for methods and optimisers. A package offers a kind by an entry point of the registry's group: the name is the
kind's `type`, the object its class. `add` does the same for a class of a notebook or a test, in this process only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from inspect import isclass
from typing import Any, Generic, TypeVar, get_args

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, PydanticKnownError, core_schema, to_json

from peftlab.errors import PeftlabError, one_line

Kind = TypeVar("Kind", bound=BaseModel)


class Registry(Mapping[str, type[Kind]], Generic[Kind]):
    """Classes derived from `base` by `type`: the built-in ones first, then the others in the order of their finding.

    Installed packages are searched at the first use, and not at import: a package's own module imports `base`
    before its class exists. `unloadable` says, by name, why an installed one is missing. `error` is raised for a
    class that cannot be added.
    """

    def __init__(self, noun: str, base: type[Kind], built_in: tuple[type[Kind], ...], error: type[PeftlabError]):
        self.noun, self.base, self.group, self.error = noun, base, f"peftlab.{noun}s", error
        self._built_in = {_type_of(kind): kind for kind in built_in}
        self._known = dict(self._built_in)
        self._unloadable: dict[str, str] = {}
        self._searched = False

    def __getitem__(self, name: str) -> type[Kind]:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    @property
    def unloadable(self) -> dict[str, str]:
        self._all()
        return self._unloadable

    def add(self, kind: type[Kind]) -> None:
        """Make a class known. A class that is defined again (a notebook's cell) replaces itself.

        Raises `error` for a class that is incomplete and for the `type` of another one.
        """
        if fault := self._fault_of(kind):
            raise self._refusal(kind, fault)
        name = _type_of(kind)
        known = self._known.get(name, kind)
        if known is not kind and (name in self._built_in or _origin(known) != _origin(kind)):
            raise self._refusal(kind, f"the type {name!r} belongs to {'.'.join(_origin(known))}; choose another")
        self._known[name] = kind

    def remove(self, name: str) -> None:
        """Forget a class that was added."""
        del self._known[name]

    def _refusal(self, kind: object, fault: str) -> PeftlabError:
        return self.error(f"{getattr(kind, '__name__', kind)} cannot be registered as {self._article}: {fault}")

    @property
    def _article(self) -> str:
        return f"{'an' if self.noun[0] in 'aeiou' else 'a'} {self.noun}"

    def _all(self) -> dict[str, type[Kind]]:
        if not self._searched:
            self._searched = True  # before the search: a package's module may ask for the kinds itself
            for entry in entry_points(group=self.group):
                self._add_installed(entry)
        return self._known

    def _add_installed(self, entry: EntryPoint) -> None:
        try:
            kind = entry.load()
            self.add(kind)
            if _type_of(kind) != entry.name:
                raise self.error(f"its entry point must have the name of its type, {_type_of(kind)!r}")
        except Exception as error:  # whatever a package does as it is imported must not stop the others
            package = f"package {entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"
            reason = one_line(error) if isinstance(error, self.error) else f"{type(error).__name__}: {one_line(error)}"
            self._unloadable[entry.name] = f"{self.noun} {entry.name!r} of {package} cannot be loaded: {reason}"

    def _fault_of(self, kind: object) -> str | None:
        """Say what a class lacks that every kind must have."""
        if not (isclass(kind) and issubclass(kind, self.base)):
            return f"it is not a subclass of {self.base.__module__.rpartition('.')[0]}.{self.base.__name__}"
        field = kind.model_fields["type"]
        if not isinstance(field.default, str) or get_args(field.annotation) != (field.default,):
            return 'its type must be a literal with a default, such as `type: Literal["mine"] = "mine"`'
        if not isinstance(getattr(kind, "title", None), str):
            return "it has no title"
        if required := [name for name, field in kind.model_fields.items() if field.is_required()]:
            return f"every field needs a default, and {required[0]} has none"
        return None


def _type_of(kind: type[BaseModel]) -> str:
    return kind.model_fields["type"].default


def _origin(kind: type) -> tuple[str, str]:
    return kind.__module__, kind.__qualname__


class ByType:
    """Annotation of a recipe section: a tagged union of all kinds that a registry knows at the time of validation.

    Pydantic's own union is fixed when a recipe's class is made; a kind may be registered later. `expand` turns a
    value that stands for a section into that section.
    """

    def __init__(self, registry: Registry[Any], expand: Callable[[Any], Any] = lambda value: value):
        self.registry, self.expand = registry, expand

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        lax, strict = (
            core_schema.with_info_plain_validator_function(partial(self._validate, strict)) for strict in (None, True)
        )
        return core_schema.lax_or_strict_schema(lax, strict)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        choices = {name: kind.__pydantic_core_schema__ for name, kind in self.registry.items()}
        return handler(core_schema.tagged_union_schema(choices, "type"))

    def _validate(self, strict: bool | None, value: Any, info: ValidationInfo) -> Any:
        value = self.expand(value)
        kind = self.registry[self._known_type(value)]
        if info.mode == "json":
            text = to_json(value, inf_nan_mode="constants")
            return kind.model_validate_json(text, strict=strict, context=info.context)
        return kind.model_validate(value, strict=strict, context=info.context)

    def _known_type(self, value: Any) -> str:
        """Return the type that a section names, or raise pydantic's errors of tagged unions.

        Raises ValueError for an unloadable one.
        """
        if isinstance(value, self.registry.base):
            value = {"type": value.type}
        if not isinstance(value, dict):
            raise PydanticKnownError("model_attributes_type")
        if "type" not in value:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": "'type'"})
        tag = value["type"]
        if isinstance(tag, str) and tag in self.registry:
            return tag
        if isinstance(tag, str) and tag in self.registry.unloadable:
            raise ValueError(self.registry.unloadable[tag])
        known = ", ".join(repr(name) for name in self.registry)
        facts = {"discriminator": "'type'", "tag": str(tag), "expected_tags": known}
        raise PydanticKnownError("union_tag_invalid", facts)
