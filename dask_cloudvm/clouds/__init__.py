"""The registry of clouds. Each stands in a file of its own, imported when it is first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from dask_cloudvm import schema
from dask_cloudvm.clouds.base import Cloud
from dask_cloudvm.errors import NotBuiltYet

REGISTRY = {"local": "dask_cloudvm.clouds.local:Local"}


def make(name: str, values: Mapping[str, Any], doing: str = "work") -> Cloud:
    """The cloud ``name`` for these resolved options. Raises NotBuiltYet."""
    if name not in REGISTRY:
        raise NotBuiltYet(doing=doing, cloud=name)
    module, _, cls = REGISTRY[name].partition(":")
    cloud: Cloud = getattr(importlib.import_module(module), cls)(values)
    return cloud


def existing() -> list[Cloud]:
    """Every cloud on which clusters may exist, with its default options, the local one first."""
    return [make(name, {k: o.default for k, o in schema.options(name).items()}) for name in REGISTRY]
