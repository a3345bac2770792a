"""Gathers where options may come from, lowest first, each as one :class:`Layer`.

Dask YAML files < profiles, left to right < ``DASK_CLOUDPROVIDER__*`` < ``dask.config.set`` < keywords and ``--set``.
Nothing is checked here beyond being readable; see options.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask_cloudvm import profile, schema
from dask_cloudvm.errors import Problem, ProfileError, did_you_mean
from dask_cloudvm.text import Text

PREFIX = "DASK_CLOUDPROVIDER__"
ENDINGS = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Layer:
    """One source of options: a tree shaped like ``cloudprovider``, and where each path of it was written."""

    tree: Mapping[str, Any]
    where: Mapping[tuple[str, ...], str]
    ambient: bool = False  # Dask's own configuration, which other software may share: unknown keys only warn
    chosen: bool = True  # named by the user for this cluster: its cloud section counts before an ambient one

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
            if b"cloudprovider" in path.read_bytes():
                tree, where = profile.read(path)
                found.append(under(tree, where, "cloudprovider", ambient=True, chosen=False))
        except OSError:
            continue  # Dask skips what it may not read, too
        except ProfileError as error:
            if not _only_comments(path):
                raise error
    return found


def _only_comments(path: Path) -> bool:
    return all(
        not line.strip() or line.lstrip().startswith("#") for line in path.read_text("utf-8", "replace").splitlines()
    )


def dask_files() -> list[Path]:
    """The files Dask reads, in its order."""
    import dask.config

    found: list[Path] = []
    for place in map(Path, dask.config.paths):
        if place.is_dir():
            found += sorted(p for p in place.iterdir() if p.suffix.lower() in ENDINGS)
        elif place.is_file():
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
        raise ProfileError([Problem(wanted, "", what)])
    tree, where = profile.read(wanted)
    if "cloudprovider" not in tree:
        what = f"it has no cloudprovider section{did_you_mean('cloudprovider', tree)}"
        raise ProfileError([Problem(f"{wanted}:1:1", "", what)])
    return under(tree, where, "cloudprovider")


def from_environment(environ: Mapping[str, str]) -> Layer:
    """``DASK_CLOUDPROVIDER__EC2__INSTANCE_TAGS__createdBy`` -> ``{ec2: {instance_tags: {createdBy: ...}}}``."""
    tree: dict[str, Any] = {}
    where: dict[tuple[str, ...], str] = {}
    for variable in sorted(v for v in environ if v.upper().startswith(PREFIX)):
        path = _env_path(variable[len(PREFIX) :].split("__"))
        if _put(tree, path, Text(environ[variable])):
            where[path] = f"${variable}"
    return Layer(tree, where, chosen=False)


def _env_path(parts: list[str]) -> tuple[str, ...]:
    """Lower case down to the option's name; keys below it (tags, variables) keep their case."""
    lower = [part.lower().replace("-", "_") for part in parts]
    depth = max((len(s) for c in schema.clouds() for s in schema.sections(c) if tuple(lower[: len(s)]) == s), default=0)
    return (*lower[: depth + 1], *parts[depth + 1 :])


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> bool:
    for key in path[:-1]:
        inner = tree.setdefault(key, {})
        if not isinstance(inner, dict):  # the option as a whole is set by another variable, too: that one is kept
            return False
        tree = inner
    tree[path[-1]] = value
    return True


def from_dask_config(files: Sequence[Layer], environ: Mapping[str, str]) -> Layer:
    """What was set by ``dask.config.set``: whatever no registered default, Dask file or variable explains.

    dask-cloudprovider registers its own defaults on import; they are not the user's choice.
    """
    import dask.config

    explained = [
        *(d["cloudprovider"] for d in dask.config.defaults if isinstance(d.get("cloudprovider"), Mapping)),
        *(layer.tree for layer in files),
        dask.config.collect_env(environ).get("cloudprovider") or {},
    ]
    tree: dict[str, Any] = {}
    for path, value in _leaves(dask.config.config.get("cloudprovider") or {}):
        if not any(_same(value, _get(source, path)) for source in explained):
            _put(tree, path, value)
    return Layer(tree, {(): "dask.config.set"}, ambient=True, chosen=False)


_MISSING = object()


def _get(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        if not isinstance(tree, Mapping):
            return _MISSING
        tree = {_plain(k): v for k, v in tree.items()}.get(_plain(key), _MISSING)
    return tree


def _plain(key: Any) -> str:
    return str(key).replace("-", "_")


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, (*path, str(key)))
    else:
        yield path, tree


def from_keywords(keywords: Mapping[str, Any]) -> Layer:
    """Keyword arguments; ``None`` means not given, as everywhere in Dask."""
    given = {key: value for key, value in keywords.items() if value is not None}
    return Layer({schema.ANY: given}, {(): "keyword"})


def from_sets(assignments: Sequence[str]) -> Layer:
    """``--set region=us-east-1`` or ``--set ec2.region=us-east-1``."""
    tree: dict[str, Any] = {}
    problems = []
    top = schema.sections_of_profile()
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            problems.append(Problem("--set", assignment, "write it as option=value"))
            continue
        path = key.strip().removeprefix("cloudprovider.").split(".")
        _put(tree, path if path[0] in top else [schema.ANY, *path], Text(text))
    if problems:
        raise ProfileError(problems)
    return Layer(tree, {(): "--set"})
