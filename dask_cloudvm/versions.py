"""Compares this program's Python and Dask with those of a cluster, before any work is sent there.

Measured with distributed 2026.8.0: between Python 3.11 and 3.13 some tasks kill each worker that reads them and others
never end, without an error. Between releases of Dask tasks work or fail by themselves, but a scheduler of 2024 does not
understand what this launcher asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from distributed.security import Security

from dask_cloudvm.clouds.base import VM
from dask_cloudvm.environment import python
from dask_cloudvm.errors import VersionMismatch
from dask_cloudvm.machines import ANSWER, ask
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
        raise VersionMismatch(name=vm.cluster, what=what, hint=hint(options, there, "scheduler"))
    ours = {name: version(name) for name in ("dask", "distributed")}
    differ = [f"{name} {packages[name]} instead of {own}" for name, own in ours.items() if packages[name] != own]
    if differ:
        try:
            await ask(vm, secured, lambda remote: remote.identity(n_workers=0))
        except TypeError:
            what = f"has {' and '.join(differ)}, which is too old for this program"
            raise VersionMismatch(name=vm.cluster, what=what, hint=hint(options, there, "scheduler")) from None
        log(f"Cluster {vm.cluster} has {' and '.join(differ)}; if tasks fail, {hint(options, there, 'scheduler')}")


async def check_worker(address: str, scheduler: Any, cluster: str, options: Options) -> None:
    """Raises :class:`VersionMismatch` where the worker at ``address`` has another Python than this program."""
    told: dict[str, Any] = {}
    with suppress(OSError, asyncio.TimeoutError):
        message = {"op": "versions"}
        told = await asyncio.wait_for(scheduler.broadcast(msg=message, workers=[address], on_error="ignore"), ANSWER)
    if address not in told:  # it is gone again
        return
    there = ".".join(told[address]["packages"]["python"].split(".")[:2])
    if there != python():
        what = f"has workers with Python {there}, this program Python {python()}"
        raise VersionMismatch(name=cluster, what=what, hint=hint(options, there, "worker"))


def hint(options: Options, there: str, role: str) -> str:
    """What to change so that both sides are the same."""
    here = f"run this with Python {there}" if there != python() else "install the cluster's versions here"
    return f"{_change(options, role)}, or {here}" if options.cloud != "local" else here


def _change(options: Options, role: str) -> str:
    if options["runtime"] == "image":
        return "set image, or environment, to one with this program's versions"
    if options["runtime"] == "uv":
        return "set python, packages or requirements to this program's versions"
    own = f"{role}_docker_image"
    option = own if options[own] else "docker_image"
    image = str(options[option]).partition(":")[0]
    tag = f", such as {image}:{version('dask')}-py{python()}" if image in IMAGES else ""
    return f"set {option} to one with this program's versions{tag}"
