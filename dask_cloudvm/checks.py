"""Checks layers against the schemas and collects every problem, each with its place, before anything is raised."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from dask_cloudvm import layers as gather
from dask_cloudvm import schema
from dask_cloudvm.errors import Problem, ProfileError, did_you_mean
from dask_cloudvm.layers import Layer
from dask_cloudvm.schema import Option, show
from dask_cloudvm.text import read

Path = tuple[str, ...]


def merge(low: Any, high: Any) -> Any:
    """``high`` over ``low``: mappings key by key, anything else as a whole."""
    if isinstance(low, Mapping) and isinstance(high, Mapping):
        return {**low, **{key: merge(low.get(key), value) for key, value in high.items()}}
    return copy.deepcopy(high)


class Checks:
    """Collects problems, so that all of them are reported at once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.warned: list[Problem] = []

    def stop(self) -> None:
        if self.problems:
            raise ProfileError(dict.fromkeys(self.problems))

    def add(self, layer: Layer, path: Path, what: str) -> None:
        self.problems.append(Problem(layer.origin(path), ".".join(_visible(path)), what))

    def unknown(self, layer: Layer, path: Path, known: Sequence[str]) -> None:
        what = f"there is no option {path[-1]!r}{did_you_mean(path[-1].lower(), known)}"
        problem = Problem(layer.origin(path), ".".join(_visible(path)), what)
        (self.warned if layer.ambient else self.problems).append(problem)

    def top(self, layer: Layer) -> None:
        """The keys directly under ``cloudprovider``."""
        top = schema.sections_of_profile()
        if not isinstance(layer.tree, Mapping):
            return self.add(layer, (), f"expected a mapping, got {show(layer.tree)}")
        for key, value in layer.tree.items():
            if key not in (*top, schema.ANY):
                moved = next(
                    (f"; write it under {s}" for s in (schema.SHARED, *schema.clouds()) if key in schema.names(s)), ""
                )
                what = f"there is no section {key!r}{moved or did_you_mean(key, top)}"
                self.add(layer, (key,), what)
            elif (
                key != "cloud"
                and key in (*schema.clouds(), schema.SHARED, "profiles", schema.ANY)
                and value is not None
                and not isinstance(value, Mapping)
            ):
                self.add(layer, (key,), f"expected a mapping, got {show(value)}")

    def named_cloud(self, layer: Layer) -> str | None:
        """The value of ``cloud:`` in one layer."""
        chosen = _mapping(layer.tree).get("cloud")
        if chosen is not None and chosen not in schema.clouds():
            near = did_you_mean(str(chosen), schema.clouds())
            self.add(
                layer, ("cloud",), f"there is no cloud {show(chosen)}; there is {', '.join(schema.clouds())}{near}"
            )
            return None
        return None if chosen is None else str(chosen)

    def cloud(self, stack: Sequence[Layer]) -> str:
        """The cloud that the layers choose: ``cloud:``, else the only section, else ``local``."""
        for layer in reversed(stack):
            if chosen := self.named_cloud(layer):
                return chosen
        for group in ([x for x in stack if x.chosen], [x for x in stack if not x.chosen]):
            present = {c: layer.origin((c,)) for layer in group for c in schema.clouds() if c in _mapping(layer.tree)}
            if len(present) > 1:
                what = f"sections for {' and '.join(present)} are present; choose one by 'cloud: {next(iter(present))}'"
                self.problems.append(Problem(list(present.values())[-1], "cloud", what))
            if present:
                return next(iter(present))
        return schema.clouds()[0]

    def layer(self, layer: Layer, cloud: str) -> dict[str, tuple[Any, str]]:
        """What one layer says about ``cloud``: canonical name -> (value, place); the more specific section wins."""
        found: dict[str, tuple[Any, str]] = {}
        for section in schema.sections(cloud):
            for name, value, path in self.section(layer, section, cloud):
                option = schema.options(cloud)[name]
                value = _null(option, read(option.schema, value))
                if value is not None and self.value(cloud, option, value, layer.origin, path):
                    value = merge(found[name][0], value) if name in found else value
                found[name] = (value, layer.origin(path))
        return found

    def section(self, layer: Layer, section: Path, cloud: str) -> Iterator[tuple[str, Any, Path]]:
        tree: Any = layer.tree
        for key in section:
            tree = _mapping(tree).get(key)
        if tree is not None and not isinstance(tree, Mapping):
            return self.add(layer, section, f"expected a mapping, got {show(tree)}")
        names = schema.names(schema.SHARED if section == (schema.SHARED,) else cloud)
        nested = {s[-1] for s in schema.sections(cloud) if s[:-1] == section and s != section}
        seen: dict[str, str] = {}
        for key, value in _mapping(tree).items():
            key, path = str(key).replace("-", "_"), (*section, key)
            if key in nested:
                continue
            if key not in names:
                self.unknown(layer, path, list(names))
            elif names[key] in seen:
                self.add(layer, path, f"{key} and {seen[names[key]]} are the same option; keep one")
            else:
                seen[names[key]] = key
                yield names[key], value, path

    def everything(self, layer: Layer) -> None:
        """Every section of every cloud of a profile, and its named profiles."""
        tree = _mapping(layer.tree)
        self.named_cloud(layer)
        for cloud in [c for c in schema.clouds() if c in tree] or schema.clouds()[:1]:
            for name, (value, place) in self.layer(layer, cloud).items():
                if value is not None and not self.problems:
                    self.value(cloud, schema.options(cloud)[name], value, partial(fixed, place), (name,), whole=True)
        for name in _mapping(tree.get("profiles")):
            inner = gather.under(layer.tree, layer.where, "profiles", name)
            self.top(inner)
            self.everything(inner) if isinstance(inner.tree, Mapping) else None

    def value(
        self, cloud: str, option: Option, value: Any, origin: Callable[[Path], str], path: Path, whole: bool = False
    ) -> bool:
        """Whether a value is right; adds a problem for each thing that is not."""
        if whole and value == option.default:
            return True
        fine = True
        for error in schema.validator(cloud, option.name, whole).iter_errors(value):
            inner = (*path, *map(str, error.absolute_path))
            for key, what in _messages(error):
                fine = False
                place = (*inner, key) if key else inner
                self.problems.append(Problem(origin(place), ".".join(_visible(place)), what))
        return fine


def fixed(place: str, path: Path) -> str:
    """The origin of everything, as ``partial(fixed, place)``."""
    return place


def _visible(path: Path) -> Path:
    return path[1:] if path[:1] == (schema.ANY,) else path


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _null(option: Option, value: Any) -> Any:
    """Empty text is the same as null where null is the default, as in dask-cloudprovider's own YAML."""
    return None if value == "" and option.default is None else value


_LIMITS = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "more than",
    "exclusiveMaximum": "less than",
}


def _messages(error: Any) -> Iterator[tuple[str | None, str]]:
    """One jsonschema error in words: (key it is about, or None; message)."""
    rule, limit, value = error.validator, error.validator_value, error.instance
    if rule == "type":
        allowed = [limit] if isinstance(limit, str) else [t for t in limit if t != "null"]
        yield None, f"expected {' or '.join(allowed)}, got {show(value)}"
    elif rule == "enum":
        allowed = [x for x in limit if x is not None]
        near = did_you_mean(str(value), map(str, allowed))
        yield None, f"expected one of {', '.join(map(show, allowed))}, got {show(value)}{near}"
    elif rule in _LIMITS:
        yield None, f"must be {_LIMITS[rule]} {limit}, got {show(value)}"
    elif rule in ("pattern", "format"):
        yield None, f"{show(value)} is not right; {_help(error)}"
    elif rule == "additionalProperties" and isinstance(value, Mapping):
        known = error.schema.get("properties", {})
        for key in (k for k in value if k not in known):
            yield str(key), f"there is no key {key!r}{did_you_mean(str(key), known)}"
    elif rule == "required":
        yield None, f"needs {', '.join(k for k in limit if k not in value)}"
    else:
        yield None, str(error.message)


def _help(error: Any) -> str:
    if "x-help" in error.schema:
        return str(error.schema["x-help"])
    return (
        "use a network such as 203.0.113.0/24, or me"
        if error.validator == "format"
        else f"it must match {error.validator_value}"
    )
