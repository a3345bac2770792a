"""Sends wheels to a cluster over its own connections, since a machine's user-data has no room for them.

Registered once with the scheduler, by the launcher that makes the cluster: the scheduler installs them, every nanny
before it starts its worker, and workers without a nanny before they take tasks, also those that come later.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import cloudpickle
from distributed.core import rpc
from distributed.diagnostics.plugin import NannyPlugin, SchedulerPlugin, WorkerPlugin
from distributed.security import Security

from dask_cloudvm.clouds.base import VM
from dask_cloudvm.errors import StartError

NAME = "dask-cloudvm-wheels"
PATIENCE = 300.0  # seconds for the machines that are there to install them


class Wheels:
    """Installs wheels, file name -> content. Travels by value: this package is not on the machines."""

    name = NAME

    def __init__(self, wheels: Mapping[str, bytes]) -> None:
        self.wheels = dict(wheels)

    def install(self) -> None:
        """Installs what this environment does not have yet. Raises RuntimeError with what the installer said."""
        folder = os.path.join(sys.prefix, self.name)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with open(os.path.join(folder, "lock"), "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the processes of a machine start at once
            new = [name for name in self.wheels if not os.path.exists(os.path.join(folder, name))]
            paths = [os.path.join(folder, "new", name) for name in new]
            os.makedirs(os.path.join(folder, "new"), exist_ok=True)
            for path, name in zip(paths, new, strict=True):
                with open(path, "wb") as file:
                    file.write(self.wheels[name])
            if new:
                uv = shutil.which("uv")
                installer = [uv, "pip", "install", "--python", sys.executable] if uv else None
                command = installer or [sys.executable, "-m", "pip", "install"]
                done = subprocess.run([*command, "--no-deps", *paths], capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(done.stderr)
            for path, name in zip(paths, new, strict=True):
                os.replace(path, os.path.join(folder, name))
        importlib.invalidate_caches()


class OnScheduler(Wheels, SchedulerPlugin):
    """For the scheduler, which reads task graphs."""

    async def start(self, scheduler: Any) -> None:
        self.install()


class OnNanny(Wheels, NannyPlugin):
    """For nannies, which do this before they start a worker."""

    def setup(self, nanny: Any) -> None:
        self.install()


class OnWorker(Wheels, WorkerPlugin):
    """For workers, which do this before they take tasks; where there is a nanny, it has done it."""

    def setup(self, worker: Any) -> None:
        self.install()


PLUGINS: dict[str, type[Wheels]] = {"scheduler": OnScheduler, "nanny": OnNanny, "worker": OnWorker}


async def send(vm: VM, secured: Security, wheels: Mapping[str, bytes]) -> None:
    """Has ``wheels`` installed on every machine of the cluster whose scheduler is ``vm``. Raises StartError."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        plugins = {kind: cloudpickle.dumps(plugin(wheels)) for kind, plugin in PLUGINS.items()}
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    said: list[Any] = []
    remote = rpc(vm.external_address, connection_args=secured.get_connection_args("client"), timeout=PATIENCE)
    try:
        for kind, plugin in plugins.items():
            register = getattr(remote, f"register_{kind}_plugin")
            answers = await asyncio.wait_for(register(plugin=plugin, name=NAME, idempotent=True), PATIENCE)
            said += [answer for answer in (answers or {}).values() if answer["status"] != "OK"]
    except RuntimeError as error:
        raise StartError(name=vm.cluster, what=f"local packages could not be installed there: {error}") from None
    finally:
        await remote.close_rpc()
    if said:
        what = f"local packages could not be installed on {len(said)} workers: {said[0].get('exception-text', said[0])}"
        raise StartError(name=vm.cluster, what=what)
