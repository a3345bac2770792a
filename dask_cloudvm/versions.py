"""Compares this program's Python and Dask with those of a cluster, before any work is sent there.

Measured with distributed 2026.8.0: between Python 3.11 and 3.13 some tasks kill each worker that reads them and others
never end, without an error. Between releases of Dask tasks work or fail by themselves, but a scheduler of 2024 does not
understand what this launcher asks.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from distributed.security import Security

from dask_cloudvm.clouds.base import VM
from dask_cloudvm.environment import python
from dask_cloudvm.errors import VersionMismatch
from dask_cloudvm.machines import ask
from dask_cloudvm.options import Options

IMAGES = ("ghcr.io/dask/dask", "daskdev/dask")  # they have a tag for every release and Python


async def check(vm: VM, secured: Security, options: Options, log: Callable[[str], None]) -> None:
    """Raises :class:`VersionMismatch` where the scheduler on ``vm`` cannot work with this program; logs what may not.

    https://distributed.dask.org/en/stable/api.html#distributed.Client.get_versions
    """
    packages = (await ask(vm, secured, lambda remote: remote.versions()))["packages"]
    here, there = python(), ".".join(packages["python"].split(".")[:2])
    if here != there:
        what = f"has Python {there}, this program Python {here}"
        raise VersionMismatch(name=vm.cluster, what=what, hint=hint(options, there))
    ours = {name: version(name) for name in ("dask", "distributed")}
    differ = [f"{name} {packages[name]} instead of {own}" for name, own in ours.items() if packages[name] != own]
    if differ:
        try:
            await ask(vm, secured, lambda remote: remote.identity(n_workers=0))
        except TypeError:
            what = f"has {' and '.join(differ)}, which is too old for this program"
            raise VersionMismatch(name=vm.cluster, what=what, hint=hint(options, there)) from None
        log(f"Cluster {vm.cluster} has {' and '.join(differ)}; if tasks fail, {hint(options, there)}")


def hint(options: Options, there: str) -> str:
    """What to change so that both sides are the same."""
    here = f"run this with Python {there}" if there != python() else "install the cluster's versions here"
    return f"{_change(options)}, or {here}" if options.cloud != "local" else here


def _change(options: Options) -> str:
    if options["runtime"] == "image":
        return "set image, or environment, to one with this program's versions"
    if options["runtime"] == "uv":
        return "set python, packages or requirements to this program's versions"
    image: Any = str(options["docker_image"]).partition(":")[0]
    tag = f", such as {image}:{version('dask')}-py{python()}" if image in IMAGES else ""
    return f"set docker_image to one with this program's versions{tag}"
