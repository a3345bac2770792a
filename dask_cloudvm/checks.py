"""Checks layers against the schemas and collects every problem, each with its place, before anything is raised."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from dask_cloudvm import layers as gather
from dask_cloudvm import schema
from dask_cloudvm.errors import Problem, ProfileError, did_you_mean
from dask_cloudvm.layers import Layer
from dask_cloudvm.schema import Option, show
from dask_cloudvm.text import NotPlain, Text, plain, read

Path = tuple[str, ...]
HIDDEN = "***"
_SECRET = re.compile(r"(?i)token|secret|passw|credential")
_LOGIN = re.compile(r"://[^/@\s]+:[^/@\s]+@")  # in an address, such as a private index's
PACKAGES = ("packages", "requirements", "sync")
ENCRYPTED = ("tls", "wss")
_LONGEST = 100  # characters of a wrong value that a message shows


def merge(low: Any, high: Any) -> Any:
    """``high`` over ``low``: mappings key by key, anything else as a whole."""
    if isinstance(low, Mapping) and isinstance(high, Mapping):
        return {**low, **{key: merge(low.get(key), value) for key, value in high.items()}}
    return copy.deepcopy(high)


def hide(option: Option, value: Any) -> Any:
    """``value`` as it may be printed: without secret options, keys named like secrets and addresses with a password."""
    if option.secret and value is not None:
        return HIDDEN
    if isinstance(value, Mapping):
        return {key: HIDDEN if _is_secret(option, key) else hide(option, each) for key, each in value.items()}
    if isinstance(value, list):
        return [hide(option, each) for each in value]
    return HIDDEN if isinstance(value, str) and _LOGIN.search(value) else value


def hidden(value: Any, shown: Any) -> Iterator[str]:
    """The texts in ``value`` that :func:`hide` masked in ``shown``."""
    if isinstance(shown, (Mapping, list)):
        for key in shown if isinstance(shown, Mapping) else range(len(shown)):
            yield from hidden(value[key], shown[key])
    elif shown != value:
        yield str(value)


def _is_secret(option: Option, key: str) -> bool:
    """An environment variable's name tells more than a key of a cloud's request, where KeyName is none."""
    return bool(_SECRET.search(key)) or (option.name == "env_vars" and "key" in key.lower())


class Checks:
    """Collects problems, so that all of them are reported at once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.warned: list[Problem] = []

    def error(self) -> ProfileError:
        return ProfileError(dict.fromkeys(self.problems))

    def stop(self) -> None:
        if self.problems:
            raise self.error()

    def add(self, layer: Layer, path: Path, what: str) -> None:
        self.problems.append(Problem(layer.origin(path), ".".join(_visible(path)), what))

    def unknown(self, layer: Layer, path: Path, what: str) -> None:
        """A key that nobody knows: ours to refuse, but in Dask's own configuration other software may own it."""
        problem = Problem(layer.origin(path), ".".join(_visible(path)), what)
        (self.warned if layer.ambient else self.problems).append(problem)

    def top(self, layer: Layer) -> None:
        """The keys directly under ``cloudprovider``."""
        if not isinstance(layer.tree, Mapping):
            return self.add(layer, (), f"expected a mapping, got {_short(layer.tree)}")
        known = (*schema.sections_of_profile(), *([schema.ANY] if layer.direct else []))
        for key, value in layer.tree.items():
            if key not in known:
                home = _home(key, _present(layer))
                near = did_you_mean(key, (schema.SHARED, *schema.clouds(), "cloud", "profiles"))
                self.unknown(
                    layer, (key,), f"there is no section {key!r}{f'; write it under {home}' if home else near}"
                )
            elif layer.ambient:
                continue  # what is wrong with another cloud's section matters to nobody
            elif key == "cloud":
                self.named_cloud(layer)
            elif value is not None and not isinstance(value, Mapping):
                self.add(layer, (key,), f"expected a mapping, got {_short(value)}")

    def named_cloud(self, layer: Layer) -> str | None:
        """The value of ``cloud:`` in one layer."""
        chosen = _mapping(layer.tree).get("cloud")
        return None if chosen in (None, "") else self.known_cloud(layer, chosen)

    def known_cloud(self, layer: Layer, chosen: Any) -> str | None:
        """``chosen`` where there is such a cloud; None, with a problem, where there is not."""
        if chosen in schema.clouds():
            return str(chosen)
        there = f"there is {', '.join(schema.clouds())}{did_you_mean(str(chosen), schema.clouds())}"
        self.add(layer, ("cloud",), f"there is no cloud {_short(chosen)}; {there}")
        return None

    def cloud(self, stack: Sequence[Layer]) -> str | None:
        """The cloud that the layers choose: ``cloud:``, else the only section, else ``local``; None with a problem."""
        for layer in reversed(stack):
            if _mapping(layer.tree).get("cloud") not in (None, ""):
                return self.named_cloud(layer)
        for group in ([x for x in stack if x.chosen], [x for x in stack if not x.chosen]):
            present = {cloud: layer.origin((cloud,)) for layer in group for cloud in _present(layer)}
            if len(present) > 1:
                what = f"sections for {' and '.join(present)} are present; choose one by 'cloud: {next(iter(present))}'"
                self.problems.append(Problem(list(present.values())[-1], "cloud", what))
                return None
            if present:
                return next(iter(present))
        return schema.clouds()[0]

    def layer(self, layer: Layer, cloud: str) -> dict[str, tuple[Any, str]]:
        """What one layer says about ``cloud``: canonical name -> (value, place); the more specific section wins."""
        found: dict[str, tuple[Any, str]] = {}
        for section in schema.sections(cloud):
            for name, raw, path in self.section(layer, section, cloud):
                low, below = found.get(name, (None, ""))
                value = self.read(layer, cloud, schema.options(cloud)[name], raw, path)
                place = layer.origin(path)
                if isinstance(low, Mapping) and isinstance(value, Mapping) and place != below:
                    place = f"{place}, {below}"
                found[name] = (merge(low, value), place)
        return found

    def read(self, layer: Layer, cloud: str, option: Option, raw: Any, path: Path) -> Any:
        """The value of an option as its schema wants it; None, with a problem, where it is wrong."""
        if option.secret and raw is not None and (not layer.direct or isinstance(raw, Text)):
            self.add(layer, path, "this is secret; give it as a keyword argument, never in a file or as text")
            return None
        try:
            value = _null(option, read(option.schema, plain(raw, path)))
        except NotPlain as error:
            self.add(layer, error.path, error.what)
            return None
        return value if value is None or self.value(cloud, option, value, layer.origin, path) else None

    def section(self, layer: Layer, section: Path, cloud: str) -> Iterator[tuple[str, Any, Path]]:
        tree: Any = layer.tree
        for key in section:
            tree = _mapping(tree).get(key)
        if tree is not None and not isinstance(tree, Mapping):
            return self.add(layer, section, f"expected a mapping, got {_short(tree)}")
        if section == (schema.ANY,) and not layer.direct:
            return
        names = schema.names(schema.SHARED if section == (schema.SHARED,) else cloud)
        nested = {s[-1] for s in schema.sections(cloud) if s[:-1] == section and s != section}
        seen: dict[str, str] = {}
        for key, value in _mapping(tree).items():
            word, path = str(key).replace("-", "_"), (*section, key)
            if word in nested:
                continue
            if word not in names:
                hint = _elsewhere(section, word, _present(layer) or [cloud]) or did_you_mean(word, names)
                self.unknown(layer, path, f"there is no option {key!r}{hint}")
            elif names[word] in seen:
                self.add(layer, path, f"{key} and {seen[names[word]]} are the same option; keep one")
            else:
                seen[names[word]] = key
                yield names[word], value, path

    def everything(self, layer: Layer) -> None:
        """Every section of every cloud of a profile, and its named profiles."""
        before = len(self.problems)
        found = {cloud: self.layer(layer, cloud) for cloud in _present(layer) or schema.clouds()[:1]}
        given = [
            (c, name, *said) for c, values in found.items() for name, said in values.items() if said[0] is not None
        ]
        for cloud, name, value, place in given if len(self.problems) == before else []:
            self.value(cloud, schema.options(cloud)[name], value, partial(fixed, place), (name,), whole=True)
        for values in found.values() if len(self.problems) == before else ():
            self.together(values)
        for name in _mapping(_mapping(layer.tree).get("profiles")):
            inner = gather.under(layer.tree, layer.where, "profiles", name)
            self.top(inner)
            self.everything(inner)

    def together(self, found: Mapping[str, tuple[Any, str]]) -> None:
        """Options that exclude each other: name -> (value, place)."""
        given = [name for name in PACKAGES if found.get(name, (None, ""))[0]]
        runtime = found.get("runtime", ("uv", ""))[0]
        for name in given[1:]:
            what = f"{given[0]} says what to install, too; keep one of {', '.join(PACKAGES)}"
            self.problems.append(Problem(found[name][1], name, what))
        if given and runtime != "uv":
            what = f"this needs 'runtime: uv', and runtime is {runtime}"
            self.problems.append(Problem(found[given[0]][1], given[0], what))
        self.encryption(*(found.get(name, (None, "")) for name in ("protocol", "security")))
        adaptive, place = found.get("adaptive", (None, ""))
        low, high = (adaptive or {}).get("minimum", 0), (adaptive or {}).get("maximum", float("inf"))
        if low > high:
            self.problems.append(Problem(place, "adaptive", f"minimum {low} is more than maximum {high}"))

    def encryption(self, protocol: tuple[Any, str], security: tuple[Any, str]) -> None:
        """A protocol without encryption would leave a cluster open that its user takes for safe."""
        (name, place), secure = protocol, security[0]
        if name and secure is not None and secure != (name in ENCRYPTED):
            others = f"use {' or '.join(ENCRYPTED)}" if secure else "leave it out"
            what = f"{name} {'is not encrypted' if secure else 'needs certificates'}; {others}, or set security: "
            self.problems.append(Problem(place, "protocol", what + str(not secure).lower()))

    def value(
        self, cloud: str, option: Option, value: Any, origin: Callable[[Path], str], path: Path, whole: bool = False
    ) -> bool:
        """Whether a value is right; adds a problem for each thing that is not."""
        if whole and value == option.default:
            return True
        errors = list(schema.validator(cloud, option.name, whole).iter_errors(value))
        listed = [error.absolute_path for error in errors if error.validator == "enum"]
        for error in errors:
            if error.validator == "type" and error.absolute_path in listed:
                continue  # the list of what is allowed says it better
            inner = (*path, *map(str, error.absolute_path))
            secret = option.secret or any(_is_secret(option, key) for key in inner[len(path) :])
            for key, what in _messages(error, HIDDEN if secret else _short(hide(option, error.instance))):
                place = (*inner, key) if key else inner
                self.problems.append(Problem(origin(place), ".".join(_visible(place)), what))
        return not errors


def fixed(place: str, path: Path) -> str:
    """The origin of everything, as ``partial(fixed, place)``."""
    return place


def _visible(path: Path) -> Path:
    return path[1:] if path[:1] == (schema.ANY,) else path


def _present(layer: Layer) -> list[str]:
    """The clouds that have a section in a layer."""
    return [cloud for cloud in schema.clouds() if cloud in _mapping(layer.tree)]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _null(option: Option, value: Any) -> Any:
    """Empty text is the same as null where null is the default, as in dask-cloudprovider's own YAML."""
    return None if value == "" and option.default is None else value


def _short(value: Any) -> str:
    text = show(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _home(word: str, preferred: Sequence[str]) -> str:
    """The section or sections that an option belongs to; empty where it is none."""
    if word in schema.names(schema.SHARED):
        return schema.SHARED
    homes = [cloud for cloud in schema.clouds() if word in schema.names(cloud)]
    return " or ".join([home for home in homes if home in preferred] or homes)


def _elsewhere(section: Path, word: str, preferred: Sequence[str]) -> str:
    """Where a key belongs that stands in the wrong section; empty where it is unknown everywhere."""
    if word in schema.sections_of_profile() and section != (schema.ANY,):
        return f"; it is a section, to be written beside {section[0]}"
    home = _home(word, preferred)
    return home and f"; {'write it under' if section == (schema.SHARED,) else 'it is an option of'} {home}"


_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
}
_LIMITS = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "more than",
    "exclusiveMaximum": "less than",
}


def _messages(error: Any, got: str) -> Iterator[tuple[str | None, str]]:
    """One jsonschema error in words: (key it is about, or None; message). ``got`` is the wrong value as shown."""
    rule, limit, value = error.validator, error.validator_value, error.instance
    if rule == "type":
        allowed = [limit] if isinstance(limit, str) else [kind for kind in limit if kind != "null"]
        hint = "; put it in quotes" if "string" in allowed and isinstance(value, (bool, int, float)) else ""
        *others, last = [_KINDS[kind] for kind in allowed]
        yield None, f"expected {', '.join(others)}{' or ' if others else ''}{last}, got {got}{hint}"
    elif rule == "enum":
        allowed = [x for x in limit if x is not None]
        near = did_you_mean(str(value), map(str, allowed))
        yield None, f"expected one of {', '.join(map(show, allowed))}, got {got}{near}"
    elif rule in _LIMITS:
        yield None, f"must be {_LIMITS[rule]} {limit}, got {got}"
    elif rule in ("pattern", "format"):
        key = str(value) if "propertyNames" in error.absolute_schema_path else None
        yield key, f"{got} is not right; {_help(error)}"
    elif rule == "additionalProperties" and isinstance(value, Mapping):
        known = error.schema.get("properties", {})
        for key in (k for k in value if k not in known):
            yield key, f"there is no key {key!r}{did_you_mean(key, known)}"
    elif rule == "required":
        yield None, f"needs {', '.join(k for k in limit if k not in value)}"
    elif rule == "minItems":
        yield None, "must not be empty"
    else:
        yield None, f"{got} is not right ({rule} {limit})"


def _help(error: Any) -> str:
    if "x-help" in error.schema:
        return str(error.schema["x-help"])
    return (
        "use a network such as 203.0.113.0/24, or me"
        if error.validator == "format"
        else f"it must match {error.validator_value}"
    )
