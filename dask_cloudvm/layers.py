"""Gathers where options may come from, lowest first, each as one :class:`Layer`.

Dask YAML files < profiles, left to right < ``DASK_CLOUDPROVIDER__*`` < ``dask.config.set`` < keywords and ``--set``.
Nothing is checked here beyond being readable; see options.py.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask_cloudvm import profile, schema
from dask_cloudvm.errors import Problem, ProfileError, did_you_mean
from dask_cloudvm.text import NotPlain, Text, plain, read

PREFIX = "DASK_CLOUDPROVIDER__"
ENDINGS = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Layer:
    """One source of options: a tree shaped like ``cloudprovider``, and where each path of it was written."""

    tree: Mapping[str, Any]
    where: Mapping[tuple[str, ...], str]
    ambient: bool = False  # Dask's own configuration, which other software may share: unknown keys only warn
    chosen: bool = True  # named by the user for this cluster: its cloud section counts before an ambient one
    direct: bool = False  # keywords and --set, which need not say of what section an option is

    def origin(self, path: tuple[str, ...]) -> str:
        """Position of a path, or of its nearest parent that has one, or of what stands below it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.where:
                return self.where[path[:end]]
        return ", ".join(position for place, position in self.where.items() if place[: len(path)] == path)


def under(tree: Any, where: Mapping[tuple[str, ...], str], *path: str, **kind: bool) -> Layer:
    """The part of a file below ``path`` as a layer; a missing part is an empty layer."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    n = len(path)
    inside = {place[n:]: position for place, position in where.items() if place[:n] == path}
    return Layer({} if tree is None else tree, inside, **kind)


def from_files(paths: Iterable[Path]) -> list[Layer]:
    """Dask's YAML files that say something about ``cloudprovider``, lowest first."""
    found = []
    for path in paths:
        try:
            raw = profile.load(path)
        except OSError:
            continue  # Dask skips what it may not read, too
        if b"cloudprovider" in raw:
            tree, where, duplicates = profile.value(profile.decode(raw, str(path)), str(path))
            if ours := [problem for place, problem in duplicates if place[0] == "cloudprovider"]:
                raise ProfileError(ours)
            found.append(under(tree, where, "cloudprovider", ambient=True, chosen=False))
    return found


def malformed(error: Exception) -> ProfileError | None:
    """What is wrong with a file of Dask's configuration that Dask refused with ``error`` when it was imported."""
    if not (found := re.match(r"A dask config file at '(.*)' is malformed", str(error))):
        return None
    try:
        profile.value(profile.decode(profile.load(found[1]), found[1]), found[1])
    except ProfileError as problem:
        return problem
    return ProfileError([Problem(found[1], "", str(error).partition("\n\n")[2])])


def dask_files() -> list[Path]:
    """The files Dask reads, in its order."""
    import dask.config

    found: list[Path] = []
    for place in map(Path, dask.config.paths):
        if os.path.isdir(place):
            with suppress(OSError):  # Dask skips what it may not list, too
                found += sorted(p for p in place.iterdir() if p.suffix.lower() in ENDINGS)
        else:
            found.append(place)
    return found


def from_profiles(wanted: Sequence[str | os.PathLike[str]], ambient: Sequence[Layer]) -> list[Layer]:
    """Profiles by path, or by a name under ``cloudprovider.profiles`` of a Dask file or of a profile to the left."""
    found: list[Layer] = []
    problems: list[Problem] = []
    for one in wanted:
        try:
            found.append(_profile(os.fspath(one), [*ambient, *found]))
        except ProfileError as error:
            problems += error.problems
    if problems:
        raise ProfileError(problems)
    return found


def _profile(wanted: str, named_in: Sequence[Layer]) -> Layer:
    known: set[str] = set()
    for layer in reversed(named_in):
        profiles = layer.tree.get("profiles") if isinstance(layer.tree, Mapping) else None
        if isinstance(profiles, Mapping):
            known |= set(profiles)
            if wanted in profiles:
                return under(layer.tree, layer.where, "profiles", wanted)
    looks_like_a_path = os.sep in wanted or wanted.lower().endswith(ENDINGS) or os.path.exists(wanted)
    if not looks_like_a_path:
        have = f"; there is {', '.join(sorted(known))}" if known else ""
        what = f"no file and no entry under cloudprovider.profiles has this name{have}{did_you_mean(wanted, known)}"
        raise ProfileError([Problem(wanted or "''", "", what)])
    tree, where = profile.read(wanted)
    if "cloudprovider" not in tree:
        raise ProfileError([_no_section(tree, where, wanted)])
    return under(tree, where, "cloudprovider")


def _no_section(tree: Mapping[str, Any], where: Mapping[tuple[str, ...], str], file: str) -> Problem:
    for key in tree:
        if near := did_you_mean(key, ["cloudprovider"]):
            return Problem(where[(key,)], key, f"there is no section {key!r}{near}")
    for key in tree:
        if key in schema.sections_of_profile():
            return Problem(where[(key,)], key, "indent this, and all that belongs to it, under 'cloudprovider:'")
    return Problem(f"{file}:1:1", "", "it has no cloudprovider section")


def from_environment(environ: Mapping[str, str]) -> Layer:
    """``DASK_CLOUDPROVIDER__EC2__INSTANCE_TAGS__createdBy`` -> ``{ec2: {instance_tags: {createdBy: ...}}}``."""
    tree: dict[str, Any] = {}
    where: dict[tuple[str, ...], str] = {}
    problems = []
    sections = {section for cloud in schema.clouds() for section in schema.sections(cloud)}
    for variable in sorted(v for v in environ if v.upper().startswith(PREFIX)):
        path, text = _env_path(variable[len(PREFIX) :].split("__")), Text(environ[variable])
        if _put(tree, path, read({"type": "object"}, text) if path in sections else text):
            where[path] = f"${variable}"
        else:
            what = f"another variable sets all of {'.'.join(path[:-1])}, and not to a mapping; remove one of the two"
            problems.append(Problem(f"${variable}", ".".join(path), what))
    if problems:
        raise ProfileError(problems)
    return Layer(tree, where, chosen=False)


def _env_path(parts: list[str]) -> tuple[str, ...]:
    """Lower case down to the option's name and for keys that the schema knows; other keys (tags) keep their case."""
    lower = [part.lower().replace("-", "_") for part in parts]
    depth = max((len(s) for c in schema.clouds() for s in schema.sections(c) if tuple(lower[: len(s)]) == s), default=0)
    path = lower[: depth + 1]
    known = {key.lower(): key for key in schema.inside(path[0], path[-1])}
    below = parts[depth + 1 :]
    return (*path, *(known.get(part.lower(), part) for part in below[:1]), *below[1:])


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> bool:
    """Whether it could be put there; a text on the way is read as the mapping that it should be."""
    for key in path[:-1]:
        inner = tree.setdefault(key, {})
        if isinstance(inner, Text):
            inner = tree[key] = read({"type": "object"}, inner)
        if not isinstance(inner, dict):
            return False
        tree = inner
    tree[path[-1]] = value
    return True


def from_dask_config(files: Sequence[Layer], environ: Mapping[str, str]) -> Layer:
    """What was set by ``dask.config.set``: whatever no registered default, Dask file or variable explains.

    dask-cloudprovider registers its own defaults on import; they are not the user's choice, unless they stand in one
    mapping with what is, as the publisher does in an image of which only the version differs.
    """
    import dask.config

    registered = [d["cloudprovider"] for d in dask.config.defaults if isinstance(d.get("cloudprovider"), Mapping)]
    written = [*(layer.tree for layer in files), _as_dask_reads(environ)]
    tree: dict[str, Any] = {}
    where: dict[tuple[str, ...], str] = {(): "dask.config.set"}
    default: list[tuple[tuple[str, ...], Any]] = []
    mappings = set()
    for path, value in _leaves(dask.config.config.get("cloudprovider") or {}):
        if any(_same(value, _get(source, path)) for source in written):
            continue
        if any(_same(value, _get(source, path)) for source in registered):
            default.append((path, value))
            continue
        if not path:
            return Layer(value, where, ambient=True, chosen=False)
        _put(tree, path, value)
        mappings.add(path[:-1])
    mappings -= {section for cloud in schema.clouds() for section in schema.sections(cloud)}
    for path, value in default:
        if path[:-1] in mappings:
            _put(tree, path, value)
    return Layer(tree, where, ambient=True, chosen=False)


def _as_dask_reads(environ: Mapping[str, str]) -> dict[str, Any]:
    """Like ``dask.config.collect_env``, which fails where one variable names a part of another."""
    import dask.config

    tree: dict[str, Any] = {}
    for variable in (v for v in environ if v.startswith(PREFIX)):
        # No variable that Dask itself has read causes these errors, and it has given its warnings then.
        with warnings.catch_warnings(), suppress(TypeError, MemoryError, RecursionError):
            warnings.simplefilter("ignore")
            value = _plain_if_possible(dask.config.interpret_value(environ[variable]))
            _put(tree, variable[len(PREFIX) :].lower().split("__"), value)
    return tree


_MISSING = object()


def _get(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        if not isinstance(tree, Mapping):
            return _MISSING
        tree = {_underscored(k): v for k, v in tree.items()}.get(_underscored(key), _MISSING)
    return tree


def _underscored(key: Any) -> str:
    return str(key).replace("-", "_")


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, (*path, str(key)))
    else:
        yield path, _plain_if_possible(tree)


def _plain_if_possible(value: Any) -> Any:
    """What files and variables hold is compared as plain data; anything else is found fault with later."""
    try:
        return plain(value)
    except NotPlain:
        return value


def from_keywords(keywords: Mapping[str, Any]) -> Layer:
    """Keyword arguments; ``None`` means not given, as everywhere in Dask."""
    given = {str(key): value for key, value in keywords.items() if value is not None}
    return Layer({schema.ANY: given}, {(): "keyword"}, direct=True)


def from_sets(assignments: Sequence[str]) -> list[Layer]:
    """``--set region=us-east-1`` or ``--set ec2.region=us-east-1``, each over those to its left."""
    found: list[Layer] = []
    problems = []
    top = schema.sections_of_profile()
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            problems.append(Problem("--set", assignment, "write it as option=value"))
            continue
        path = key.strip().removeprefix("cloudprovider.").split(".")
        tree: dict[str, Any] = {}
        _put(tree, path if path[0] in top else [schema.ANY, *path], Text(text))
        found.append(Layer(tree, {(): "--set"}, direct=True))
    if problems:
        raise ProfileError(problems)
    return found
