"""Text fields that name an entry of a registry: checked like a Literal, but open to what is registered later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic_core import PydanticCustomError, core_schema


class OneOf:
    """Annotation of a text that must be one of the names that `names` returns when it is checked.

    `renamed` has names of earlier versions, which become the present ones.
    """

    def __init__(self, names: Callable[[], Iterable[str]], renamed: Mapping[str, str] | None = None):
        self.names, self.renamed = names, renamed or {}

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Callable[[Any], Any]) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.names())}

    def _check(self, value: str) -> str:
        value = self.renamed.get(value, value)
        if value not in self.names():
            raise PydanticCustomError("literal_error", "Input should be one of the known names")
        return value
