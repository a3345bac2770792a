"""The registry of clouds. Each stands in a file of its own, imported when it is first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from dask_cloudvm import schema
from dask_cloudvm.clouds.base import Cloud

REGISTRY = {
    "local": "dask_cloudvm.clouds.local:Local",
    "ec2": "dask_cloudvm.clouds.ec2:EC2",
    "gcp": "dask_cloudvm.clouds.gcp:GCP",
    "azure": "dask_cloudvm.clouds.azure:Azure",
}


def make(name: str, values: Mapping[str, Any]) -> Cloud:
    """The cloud ``name`` for these resolved options."""
    return of(name)(values)


def of(name: str) -> type[Cloud]:
    """The class of the cloud ``name``."""
    module, _, cls = REGISTRY[name].partition(":")
    found: type[Cloud] = getattr(importlib.import_module(module), cls)
    return found


def default(name: str, **chosen: Any) -> Cloud:
    """The cloud ``name`` with its default options but for ``chosen``, as suffices to find and remove machines."""
    return make(name, {**{option: it.default for option, it in schema.options(name).items()}, **chosen})
