"""The recipe's `method` section: it becomes the method that its `type` names when it is validated."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, PydanticKnownError, core_schema, to_json

from peftlab.methods.base import Method
from peftlab.methods.registry import METHODS


class _ByType:
    """A tagged union of all methods that are known at the time of validation.

    Pydantic's own union is fixed when a recipe's class is made; a method may be registered later.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        lax, strict = (
            core_schema.with_info_plain_validator_function(partial(_validate, strict)) for strict in (None, True)
        )
        return core_schema.lax_or_strict_schema(lax, strict)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        choices = {name: method.__pydantic_core_schema__ for name, method in METHODS.items()}
        return handler(core_schema.tagged_union_schema(choices, "type"))


def _validate(strict: bool | None, value: Any, info: ValidationInfo) -> Method:
    method = METHODS[_known_type(value)]
    if info.mode == "json":
        text = to_json(value, inf_nan_mode="constants")
        return method.model_validate_json(text, strict=strict, context=info.context)
    return method.model_validate(value, strict=strict, context=info.context)


def _known_type(value: Any) -> str:
    """Return the type that a section names. Raises pydantic's errors of tagged unions, ValueError for an unloadable."""
    if isinstance(value, Method):
        value = {"type": value.type}
    if not isinstance(value, dict):
        raise PydanticKnownError("model_attributes_type")
    if "type" not in value:
        raise PydanticKnownError("union_tag_not_found", {"discriminator": "'type'"})
    tag = value["type"]
    if isinstance(tag, str) and tag in METHODS:
        return tag
    if isinstance(tag, str) and tag in METHODS.unloadable:
        raise ValueError(METHODS.unloadable[tag])
    known = ", ".join(repr(name) for name in METHODS)
    raise PydanticKnownError("union_tag_invalid", {"discriminator": "'type'", "tag": str(tag), "expected_tags": known})


if TYPE_CHECKING:
    AnyMethod = Method
else:
    AnyMethod = Annotated[Method, _ByType]
