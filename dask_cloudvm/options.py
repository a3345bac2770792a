"""Resolves the options of one cluster: layers in, checked values with their origins out. Pure but for the gathering.

Each layer is checked by itself and then merged, so the place of every value and of every mistake is known. The highest
layer wins, then the more specific section; a list replaces, a mapping merges.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dask_cloudvm import layers as gather
from dask_cloudvm import schema
from dask_cloudvm.checks import Checks, fixed, hidden, hide, merge
from dask_cloudvm.errors import Problem, ProfileError
from dask_cloudvm.layers import Layer

Path = tuple[str, ...]
DEFAULT = "default"


@dataclass(frozen=True)
class Options:
    """The resolved options of one cluster: every option of ``cloud`` by canonical name, and where each came from."""

    cloud: str
    values: Mapping[str, Any]
    origins: Mapping[str, str]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def given(self, name: str) -> bool:
        """Whether anyone chose this value; false for a default."""
        return self.origins[name] != DEFAULT

    def for_role(self, role: str) -> dict[str, Any]:
        """The values for ``scheduler`` or ``worker``: ``worker_x`` in place of ``x`` where it is not null."""
        values = copy.deepcopy(dict(self.values))
        for name, option in schema.options(self.cloud).items():
            if option.overrides:
                own = values.pop(name)
                if option.role == role and own is not None:
                    values[option.overrides] = merge(values[option.overrides], own)
        return values

    def identity(self) -> dict[str, Any]:
        """The values that a running cluster's machines were made from."""
        known = schema.options(self.cloud)
        return {name: value for name, value in self.values.items() if not known[name].live and not known[name].secret}

    def digest(self) -> str:
        """Twelve hexadecimal digits that differ when :meth:`identity` does."""
        return hashlib.sha256(_text([self.cloud, self.identity()]).encode()).hexdigest()[:12]

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Names of the options in :meth:`identity` whose value in ``other`` is another."""
        return [name for name, value in self.identity().items() if name in other and _text(other[name]) != _text(value)]

    def explain(self) -> list[dict[str, Any]]:
        """One row an option: option, value (secrets hidden), origin."""
        return [
            {"option": name, "value": hide(option, self.values[name]), "origin": self.origins[name]}
            for name, option in schema.options(self.cloud).items()
        ]

    def secrets(self) -> list[str]:
        """The values that :meth:`explain` hides, as texts."""
        known = schema.options(self.cloud)
        return [text for name, value in self.values.items() for text in hidden(value, hide(known[name], value))]

    def with_values(self, origin: str, **values: Any) -> Options:
        """A copy with some values replaced."""
        return replace(
            self, values={**self.values, **values}, origins={**self.origins, **dict.fromkeys(values, origin)}
        )


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def resolve(
    *profiles: str | os.PathLike[str],
    cloud: str | None = None,
    keywords: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Options:
    """The options of one cluster from every layer.

    Parameters
    ----------
    profiles : paths, or names under ``cloudprovider.profiles``, merged left to right
    cloud : str, the cloud; by default what the layers name, else ``local``
    keywords : option -> value, the highest layer; ``None`` is not given
    sets : ``option=value`` texts of the same rank, read by the option's type
    environ : the environment, by default this process's

    Raises :class:`ProfileError` with every problem found. Unknown keys in Dask's own files warn only.
    """
    stack = _gather(profiles, keywords or {}, sets, os.environ if environ is None else environ)
    options, warned = combine(stack, cloud)
    for problem in warned:
        warnings.warn(str(problem), UserWarning, stacklevel=2)
    return options


def _gather(
    profiles: Sequence[str | os.PathLike[str]],
    keywords: Mapping[str, Any],
    sets: Sequence[str],
    environ: Mapping[str, str],
) -> list[Layer]:
    """Every layer, lowest first. Raises :class:`ProfileError` for all that cannot be read."""
    problems: list[Problem] = []

    def gathered(make: Callable[..., list[Layer] | Layer], *given: Any) -> list[Layer]:
        try:
            made = make(*given)
        except ProfileError as error:
            problems.extend(error.problems)
            return []
        return [made] if isinstance(made, Layer) else made

    files = gathered(gather.from_files, gather.dask_files())
    stack = [
        *files,
        *gathered(gather.from_profiles, profiles, files),
        *gathered(gather.from_environment, environ),
        *gathered(gather.from_dask_config, files, environ),
        *gathered(gather.from_keywords, keywords),
        *gathered(gather.from_sets, sets),
    ]
    if problems:
        raise ProfileError(problems)
    return stack


def combine(stack: Sequence[Layer], cloud: str | None = None) -> tuple[Options, list[Problem]]:
    """The pure part of :func:`resolve`: layers, lowest first -> options, and warnings about ambient layers."""
    checks = Checks()
    for layer in stack:
        checks.top(layer)
    cloud = checks.cloud(stack) if cloud is None else checks.known_cloud(Layer({}, {(): "keyword"}), cloud)
    if cloud is None:
        raise checks.error()
    known = schema.options(cloud)
    values = {name: copy.deepcopy(option.default) for name, option in known.items()}
    origins = dict.fromkeys(known, DEFAULT)
    for layer in stack:
        for name, (value, place) in checks.layer(layer, cloud).items():
            if value is None:  # means nothing where the option allows it, else back to the default
                values[name] = None if "null" in known[name].types else copy.deepcopy(known[name].default)
                origins[name] = place
            else:
                both = isinstance(value, Mapping) and isinstance(values[name], Mapping) and origins[name] != DEFAULT
                values[name] = merge(values[name], value)
                origins[name] = f"{place}, {origins[name]}" if both else place
    checks.stop()
    for name, option in known.items():
        checks.value(cloud, option, values[name], partial(fixed, origins[name]), (name,), whole=True)
    checks.together({name: (value, origins[name]) for name, value in values.items()})
    checks.stop()
    return Options(cloud, values, origins), checks.warned


def validate(*profiles: str | os.PathLike[str]) -> None:
    """Checks profile files alone, every section of each: no Dask configuration, no environment, no Dask import.

    Raises :class:`ProfileError` with every problem found.
    """
    problems: dict[Problem, None] = {}
    for one in profiles:
        try:
            [layer] = gather.from_profiles([one], [])
            checks = Checks()
            checks.top(layer)
            checks.everything(layer)
            checks.stop()
        except ProfileError as error:
            problems.update(dict.fromkeys(error.problems))
    if problems:
        raise ProfileError(problems)
