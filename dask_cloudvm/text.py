"""Reads text from the environment and ``--set`` by the type that the schema gives its option."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from dask_cloudvm import schema


class Text(str):
    """Text whose type only the schema knows."""


_BOOLEANS = {**dict.fromkeys(("true", "yes", "on", "1"), True), **dict.fromkeys(("false", "no", "off", "0"), False)}
_SCALARS: dict[str, Callable[[str], Any]] = {
    "integer": int,
    "number": float,
    "boolean": lambda text: _BOOLEANS[text.lower()],
}


def read(spec: Mapping[str, Any], value: Any) -> Any:
    """``value`` with each :class:`Text` in it read by the type its schema gives; other values as they are."""
    if isinstance(value, Text):
        return _read_text(schema.types(spec), str(value))
    if isinstance(value, dict):
        inner, rest = spec.get("properties", {}), spec.get("additionalProperties")
        spelled = {
            key: key.lower() if isinstance(v, Text) and key.lower() in inner else key for key, v in value.items()
        }
        return {
            spelled[k]: read(inner.get(spelled[k]) or (rest if isinstance(rest, dict) else {}), v)
            for k, v in value.items()
        }
    return value


def _read_text(kinds: tuple[str, ...], text: str) -> Any:
    """The first of ``kinds`` that ``text`` can be; a list or mapping is tried before text, since any text is text."""
    plain = text.strip()
    if not kinds:
        return _read_untyped(plain)
    if "null" in kinds and plain.lower() in ("", "null", "none"):
        return None
    found = _collection(plain) if "array" in kinds or "object" in kinds else None
    if isinstance(found, list if "array" in kinds else dict) or (isinstance(found, dict) and "object" in kinds):
        return found
    if "array" in kinds and ("," in plain or "string" not in kinds):
        return [_read_untyped(part.strip()) for part in plain.split(",") if part.strip()]
    for kind in kinds:
        if kind in _SCALARS:
            try:
                return _SCALARS[kind](plain)
            except (ValueError, KeyError):
                continue
        if kind == "string":
            break
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _read_untyped(text: str) -> Any:
    """Text for a key that the schema leaves open, as in ``worker_options``: a number, boolean, collection or text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = _collection(text)
        return text if found is None else found


def _collection(text: str) -> Any:
    """A list or mapping written as Python, JSON or YAML; None where it is neither."""
    for parse in (ast.literal_eval, yaml.safe_load):
        try:
            found = parse(text)
        except (ValueError, SyntaxError, yaml.YAMLError, MemoryError, RecursionError):
            continue
        if isinstance(found, (list, dict, tuple)):
            return list(found) if isinstance(found, tuple) else found
    return None
