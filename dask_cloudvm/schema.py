"""Reads ``schemas/``, the only place where an option is written.

Everything else about options is derived here: names, aliases, defaults, environment names, validators, signatures,
docstrings and tables. Imports nothing of ours, and jsonschema only when a validator is asked for.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

ROLES = ("scheduler", "worker")
SHARED = "cluster"
ANY = "*"  # the section of keywords, which belong to whatever cloud is chosen


def folder(name: str) -> Path:
    """The data folder ``schemas`` or ``config``: in the wheel inside the package, in a checkout beside it."""
    here = Path(__file__).resolve().parent
    return here / name if (here / name).is_dir() else here.parent / name


@cache
def load(name: str) -> dict[str, Any]:
    """The schema file ``schemas/<name>.json`` as it stands. Do not change what comes back."""
    document: dict[str, Any] = json.loads((folder("schemas") / f"{name}.json").read_text("utf-8"))
    return document


def clouds() -> tuple[str, ...]:
    """Names of the clouds that have a schema, the embedded one first."""
    return tuple(name for name in sections_of_profile()["cloud"]["enum"] if name)


def sections_of_profile() -> dict[str, Any]:
    """What may stand directly under ``cloudprovider``."""
    properties: dict[str, Any] = load("profile")["$defs"]["cloudprovider"]["properties"]
    return properties


@dataclass(frozen=True)
class Option:
    """One option of one cloud, with its schema inlined (no ``$ref`` left)."""

    name: str
    schema: Mapping[str, Any] = field(repr=False)
    aliases: tuple[str, ...] = ()
    overrides: str | None = None  # worker_x and scheduler_x override x
    role: str | None = None
    shared: bool = False

    @property
    def description(self) -> str:
        return str(self.schema["description"])

    @property
    def default(self) -> Any:
        return self.schema["default"]

    @property
    def live(self) -> bool:
        """May differ on a running cluster: not part of what its machines are made from."""
        return bool(self.schema.get("x-live"))

    @property
    def secret(self) -> bool:
        return bool(self.schema.get("x-secret"))

    @property
    def types(self) -> tuple[str, ...]:
        return types(self.schema)

    def env(self, cloud: str) -> str:
        return f"DASK_CLOUDPROVIDER__{cloud}__{self.name}".upper()


def types(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """The JSON types a schema allows; empty where it does not say."""
    kind = schema.get("type", ())
    return (kind,) if isinstance(kind, str) else tuple(kind)


@cache
def options(cloud: str) -> Mapping[str, Option]:
    """Every option of a cloud by canonical name, shared ones included; ``options("cluster")`` has the shared ones."""
    found = {name: (schema, cloud == SHARED) for name, schema in _properties(cloud)}
    shared = {} if cloud == SHARED else dict(_properties(SHARED))
    everything = {**{name: (schema, True) for name, schema in shared.items()}, **found}
    aliases = _aliases(everything)
    return {
        name: Option(
            name, schema, tuple(a for a, to in aliases.items() if to == name), *_override(name, everything), is_shared
        )
        for name, (schema, is_shared) in everything.items()
        if name not in aliases
    }


def _aliases(everything: Mapping[str, tuple[Mapping[str, Any], bool]]) -> dict[str, str]:
    return {name: schema["x-alias"] for name, (schema, _) in everything.items() if "x-alias" in schema}


def _override(name: str, everything: Mapping[str, Any]) -> tuple[str | None, str | None]:
    role, _, base = name.partition("_")
    return (base, role) if role in ROLES and base in everything else (None, None)


@cache
def names(cloud: str) -> Mapping[str, str]:
    """Every accepted spelling of every option of a cloud -> its canonical name."""
    return {spelling: name for name, o in options(cloud).items() for spelling in (name, *o.aliases)}


def inside(section: str, spelling: str) -> Mapping[str, Any]:
    """The keys that the schema knows below an option; ``section`` is ``cluster`` or a cloud."""
    if section not in (SHARED, *clouds()) or spelling not in names(section):
        return {}
    known: Mapping[str, Any] = options(section)[names(section)[spelling]].schema.get("properties", {})
    return known


@cache
def sections(cloud: str) -> tuple[tuple[str, ...], ...]:
    """Paths under ``cloudprovider`` that hold options of a cloud, the more specific later."""
    nested = [(cloud, n) for n, schema in load(cloud).get("properties", {}).items() if schema.get("x-section")]
    return ((SHARED,), (cloud,), *nested, (ANY,))


def _properties(name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, schema in load(name)["properties"].items():
        if not schema.get("x-section"):
            yield key, _nullable(_inline(schema, name))


def _nullable(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Null is allowed wherever it is the default, as for ``worker_x``, which takes its type from ``x``."""
    if schema.get("default", ...) is not None or "null" in types(schema):
        return schema
    enum = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return {**schema, "type": [*types(schema), "null"], **enum}


def _inline(schema: Any, home: str) -> Any:
    """``schema`` with each ``$ref`` replaced by its target; what stands beside the ``$ref`` wins."""
    if not isinstance(schema, dict):
        return schema
    if "anyOf" in schema:  # of a $ref and null, as the default is
        schema = {**schema, **schema["anyOf"][0]}
    beside = {key: _inline(value, home) for key, value in schema.items() if key not in ("$ref", "anyOf", "default")}
    if "default" in schema:
        beside["default"] = schema["default"]
    if "$ref" not in schema:
        return beside
    file, _, pointer = schema["$ref"].partition("#")
    target_home = file.removesuffix(".json") or home
    target: Any = load(target_home)
    for part in filter(None, pointer.split("/")):
        target = target[part]
    return {**_inline(target, target_home), **beside}


@cache
def validator(cloud: str, name: str, whole: bool = False) -> Any:
    """A jsonschema validator of one option's value; ``whole=False`` lets required keys come from another layer."""
    schema = options(cloud)[name].schema
    return _validator_class()(schema if whole else _without_required(schema), format_checker=formats())


@cache
def _validator_class() -> Any:
    jsonschema = _jsonschema()

    def pattern(_: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:
        # Python's $ also matches before a final line feed; that of JSON Schema does not.
        if isinstance(value, str) and not re.search(pattern.replace("$", r"\Z"), value):
            yield jsonschema.ValidationError(f"{value!r} does not match {pattern!r}")

    return jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": pattern})


@cache
def formats() -> Any:
    """A jsonschema format checker that knows ``cidr``."""
    checker = _jsonschema().FormatChecker(formats=())
    checker.checks("cidr")(_is_cidr)
    return checker


def _jsonschema() -> Any:
    """jsonschema without two formats that nothing here uses; with JupyterLab installed, they take 1.5 s to import."""
    unused = {name for name in ("isoduration", "rfc3987_syntax") if name not in sys.modules}
    sys.modules.update(dict.fromkeys(unused))  # type: ignore[arg-type]
    try:
        import jsonschema
    finally:
        for name in unused:
            sys.modules.pop(name, None)
    return jsonschema


def _without_required(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {key: _without_required(value) for key, value in schema.items() if key != "required"}
    return schema


def _is_cidr(value: object) -> bool:
    import ipaddress

    if not isinstance(value, str) or value == "me":
        return True
    try:
        return bool(ipaddress.ip_network(value, strict=False)) or True
    except ValueError:
        return False


def is_name(name: object) -> bool:
    """Whether a cluster may have this name."""
    return isinstance(name, str) and bool(re.fullmatch(options(SHARED)["name"].schema["pattern"], name))


def show(value: Any) -> str:
    """A value as a profile would write it, on one line."""
    return json.dumps(value, ensure_ascii=False, default=str)


_PYTHON = {
    "integer": "int",
    "number": "float",
    "string": "str",
    "boolean": "bool",
    "array": "list",
    "object": "dict",
    "null": "None",
}


def signature(cloud: str, leading: tuple[inspect.Parameter, ...] = ()) -> inspect.Signature:
    """The constructor signature of a cloud's cluster class: ``leading``, then every option as a keyword."""
    own = {parameter.name for parameter in leading}
    keywords = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=python_type(option))
        for name, option in options(cloud).items()
        if name not in own
    ]
    return inspect.Signature([*leading, *keywords])


def python_type(option: Option) -> str:
    """The annotation of the option as a keyword, such as ``int | None``."""
    kinds = [_PYTHON[t] for t in option.types if t != "null"]
    return " | ".join([*kinds, "None"])


def parameters(cloud: str) -> str:
    """The options of a cloud as a numpydoc ``Parameters`` section."""
    lines = ["Parameters", "----------"]
    for option in options(cloud).values():
        kind = " or ".join(_PYTHON[t] for t in option.types if t != "null")
        lines += [f"{option.name} : {kind}, default {show(option.default)}", f"    {option.description}"]
        if option.aliases:
            lines.append(f"    Also spelled {', '.join(option.aliases)}.")
    return "\n".join(lines)


def table(cloud: str) -> list[dict[str, Any]]:
    """One row an option: name, type, default, environment name, aliases, description."""
    return [
        {
            "option": o.name,
            "type": " or ".join(t for t in o.types if t != "null"),
            "default": o.default,
            "environment": o.env(SHARED if o.shared else cloud),
            "aliases": list(o.aliases),
            "description": o.description,
        }
        for o in options(cloud).values()
    ]


def markdown(cloud: str) -> str:
    """The option table of a cloud, without the shared options, as the README shows it."""
    rows = ["| option | default | what |", "|---|---|---|"]
    for option in options(cloud).values():
        if cloud == SHARED or not option.shared:
            also = f" Also `{'`, `'.join(option.aliases)}`." if option.aliases else ""
            rows.append(f"| `{option.name}` | `{show(option.default)}` | {option.description}{also} |")
    return "\n".join(rows)


def bundle(cloud: str | None = None) -> dict[str, Any]:
    """The JSON Schema of a profile, or of one cloud's section, in one document without outside references."""
    if cloud is None:
        root, files = load("profile"), (SHARED, *clouds())
    else:
        root, files = load(cloud), (SHARED,)
    definitions = {name: {"$id": f"{name}.json", **load(name)} for name in files}
    return {
        "$id": "profile.json" if cloud is None else f"{cloud}.json",
        **root,
        "$defs": {**root.get("$defs", {}), **definitions},
    }
