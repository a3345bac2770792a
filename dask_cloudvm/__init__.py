"""Dask clusters on cloud virtual machines: quickly, cheaply, safely, and gone when they should be gone."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dask_cloudvm._version import __version__

if TYPE_CHECKING:
    from dask_cloudvm.api import down, from_name, from_profile, ls
    from dask_cloudvm.cluster import AzureVMCluster, CloudCluster, EC2Cluster, GCPCluster, LocalVMCluster

_HOMES = {
    **dict.fromkeys(("AzureVMCluster", "CloudCluster", "EC2Cluster", "GCPCluster", "LocalVMCluster"), "cluster"),
    **dict.fromkeys(("down", "from_name", "from_profile", "ls"), "api"),
}

__all__ = [
    "AzureVMCluster",
    "CloudCluster",
    "EC2Cluster",
    "GCPCluster",
    "LocalVMCluster",
    "__version__",
    "down",
    "from_name",
    "from_profile",
    "ls",
]


def __getattr__(name: str) -> Any:
    """Imports Dask only when a cluster is asked for, so that ``dask-cloudvm --help`` does not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"dask_cloudvm.{_HOMES[name]}"), name)
