"""Arguments of the cluster classes that are no options: they have a meaning in one Python program only."""

from __future__ import annotations

import inspect
from typing import Any


def _parameter(name: str, default: Any, kind: Any = inspect.Parameter.KEYWORD_ONLY) -> inspect.Parameter:
    return inspect.Parameter(name, kind, default=default)


PYTHON_ONLY = (
    _parameter("name", None, inspect.Parameter.POSITIONAL_OR_KEYWORD),
    _parameter("profile", ()),
    _parameter("security", None),
    _parameter("asynchronous", False),
    _parameter("loop", None),
    _parameter("silence_logs", False),
    _parameter("scheduler_sync_interval", 1),
    _parameter("shutdown_scheduler", True),
    _parameter("report", None),
)
DOCS = """
profile : path or name, or several
    Profiles to take options from, merged left to right; keywords win over them.
security : bool or distributed.Security
    As the option above, or certificates of your own.
asynchronous : bool, default False
    Whether the cluster is used with ``await`` and ``async with``.
report : callable, optional
    Gets each line about progress; by default they are printed.

Raises
------
dask_cloudvm.errors.ProfileError
    For every wrong option at once, before anything is made.
dask_cloudvm.errors.ClusterExists
    Where a cluster of this name runs with other options.
dask_cloudvm.errors.StartError
    Where the cluster does not come up; what was made is removed.
"""
