"""Turns the environment, ``--set`` and keywords into plain data of the type that the schema gives an option."""

from __future__ import annotations

import ast
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from typing import Any

from dask_cloudvm import profile, schema
from dask_cloudvm.errors import ProfileError

Path = tuple[str, ...]


class Text(str):
    """Text whose type only the schema knows."""


class NotPlain(ValueError):
    """Something that no profile could hold, at ``path``."""

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what
        super().__init__(what)


def plain(value: Any, path: Path = ()) -> Any:
    """``value`` as JSON could hold it: tuples and arrays as lists, every key as text. Raises :class:`NotPlain`."""
    if len(path) > profile.DEEPEST:
        raise NotPlain(path[:3], "nested too deeply")
    if isinstance(value, Mapping):
        return {str(key): plain(each, (*path, str(key))) for key, each in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [plain(each, (*path, str(i))) for i, each in enumerate(value)]
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        return plain(value.tolist(), path)
    return _plain_scalar(value, path)


def _plain_scalar(value: Any, path: Path) -> Any:
    if isinstance(value, (str, int)) or value is None:
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, date):
        return value.isoformat()
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if not isinstance(number, float):
        raise NotPlain(path, f"expected text, a number, a list or a mapping, got {type(value).__name__}")
    if not math.isfinite(number):
        raise NotPlain(path, f"expected a finite number, got {number}")
    return number


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


_BOOLEANS = {**dict.fromkeys(("true", "yes", "on", "1"), True), **dict.fromkeys(("false", "no", "off", "0"), False)}
_WORDS = {"true": True, "false": False, "none": None, "null": None}
_SCALARS: dict[str, Callable[[str], Any]] = {
    "integer": int,
    "number": _number,
    "boolean": lambda text: _BOOLEANS[text.lower()],
}


def read(spec: Mapping[str, Any], value: Any) -> Any:
    """``value`` with each :class:`Text` in it read by the type its schema gives, and 2.0 as 2 where 2 is due."""
    if isinstance(value, Text):
        return _read_text(spec, str(value))
    if isinstance(value, dict):
        inner, rest = spec.get("properties", {}), spec.get("additionalProperties")
        rest = rest if isinstance(rest, dict) else {}
        return {key: read(inner.get(key, rest), each) for key, each in value.items()}
    if isinstance(value, list):
        return [read(spec.get("items", {}), each) for each in value]
    if isinstance(value, float) and value.is_integer():
        kinds = schema.types(spec)
        return int(value) if "integer" in kinds and "number" not in kinds else value
    return value


def _read_text(spec: Mapping[str, Any], text: str) -> Any:
    """The first type that ``text`` can be; a list or mapping is tried before text, since any text is text."""
    kinds, bare = schema.types(spec), text.strip()
    if not kinds:
        return _read_untyped(bare)
    if "null" in kinds and bare.lower() in ("", "null", "none") and bare not in spec.get("x-words", ()):
        return None
    if "array" in kinds or "object" in kinds:
        found = _read_collection(spec, bare)
        if found is not None:
            return found
    for kind in kinds:
        if kind in _SCALARS:
            try:
                return _SCALARS[kind](bare)
            except (ValueError, KeyError):
                continue
        if kind == "string":
            break
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _read_collection(spec: Mapping[str, Any], text: str) -> Any:
    """A list or mapping that the schema allows; None where ``text`` is neither."""
    kinds, comma, found = schema.types(spec), spec.get("x-separator", ","), _collection(text)
    if "object" in kinds and isinstance(found, dict):
        return read(spec, found)
    if "array" in kinds and isinstance(found, list) and text[0] in "[(-":
        return read(spec, found)
    if "array" in kinds and (comma in text or "string" not in kinds):
        return [read(spec.get("items", {}), Text(part.strip())) for part in text.split(comma) if part.strip()]
    return None


def _read_untyped(text: str) -> Any:
    """Text for a key that the schema leaves open, as in ``worker_options``, read as Dask reads it, or as YAML."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    found = _collection(text)
    if found is not None:
        return found
    try:
        return plain(_literal(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _collection(text: str) -> Any:
    """A list or mapping written as JSON, Python or YAML; None where it is neither."""
    for parse in (json.loads, _literal, _yaml):
        try:
            found = plain(parse(text))
        except (ValueError, SyntaxError, TypeError, ProfileError, MemoryError, RecursionError):
            continue
        if isinstance(found, (list, dict)):
            return found
    return None


def _literal(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of '\d' and the like, which is no mistake in a user's text
        return ast.literal_eval(text)


def _yaml(text: str) -> Any:
    return profile.value(text, "")[0]
