"""The names in Azure's models with underscores, as its SDKs for Python had them, and as they are on the wire."""

from __future__ import annotations

import enum
import typing
from typing import Any

from azure_contract import compute, fields


def snake_case() -> dict[str, str]:
    """Of everything in the body of a virtual machine."""
    found: dict[str, str] = {}
    for model in _inside(compute.VirtualMachine, set()):
        found |= {name: field._rest_name for name, field in model({})._attr_to_rest_field.items()}
    return found


def _inside(model: Any, seen: set[Any]) -> set[Any]:
    if model not in seen:
        seen.add(model)
        for hint, _, _ in fields(model).values():
            for each in _types(hint):
                _inside(each, seen)
    return seen


def _types(hint: Any) -> list[Any]:
    """The models in a type."""
    inner = [each for argument in typing.get_args(hint) for each in _types(argument)]
    is_model = isinstance(hint, type) and hasattr(hint, "_deserialize") and not issubclass(hint, enum.Enum)
    return [hint, *inner] if is_model else inner
