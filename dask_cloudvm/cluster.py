"""A Dask cluster whose processes are virtual machines, on any cloud.

SpecCluster decides which workers should exist; this module makes that true by the cloud's few methods, in bulk. The
SpecCluster key, the Dask worker's name, the machine's name and its tag are one and the same text.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from html import escape
from typing import Any, ClassVar

import dask.config
from dask.utils import parse_timedelta
from dask_cloudprovider.generic.vmcluster import VMCluster
from distributed.core import Status
from distributed.deploy.cluster import Cluster
from distributed.deploy.spec import SpecCluster
from distributed.security import Security
from distributed.utils import Log, Logs

from dask_cloudvm import clouds, schema, tls
from dask_cloudvm import plan as planning
from dask_cloudvm._version import __version__
from dask_cloudvm.batch import Batch
from dask_cloudvm.clouds.base import VM, Cloud, Facts
from dask_cloudvm.errors import ClusterExists, ClusterNotFound, SchedulerLost, StartError
from dask_cloudvm.machines import WATCH, Machine, Scheduler, Worker, describe, reach, security, tail
from dask_cloudvm.options import Options, combine, resolve

RETIRE = 60.0  # seconds for workers to hand over their data before their machines are removed
CLEAN_UP = 60.0  # seconds for an interrupted start to remove what it made


def _random_name() -> str:
    return f"dask-{secrets.token_hex(4)}"


def _parameter(name: str, default: Any, kind: Any = inspect.Parameter.KEYWORD_ONLY) -> inspect.Parameter:
    return inspect.Parameter(name, kind, default=default)


_LEADING = (
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
_PYTHON_ONLY = """
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


class CloudCluster(VMCluster):
    """The common part of EC2Cluster, GCPCluster, AzureVMCluster and LocalVMCluster."""

    cloud_name: ClassVar[str] = ""
    scheduler_class = Scheduler
    worker_class = Worker

    def __init_subclass__(cls, cloud: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cloud:
            cls.cloud_name = cloud
            cls.__signature__ = schema.signature(cloud, _LEADING)
            cls.__doc__ = "\n\n".join([str(cls.__doc__), schema.load(cloud)["description"], schema.parameters(cloud)])
            cls.__doc__ += _PYTHON_ONLY

    def __init__(
        self,
        name: str | None = None,
        *,
        profile: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        security: Security | bool | None = None,
        report: Callable[[str], None] | None = None,
        **keywords: Any,
    ) -> None:
        python_only = {p.name: keywords.pop(p.name) for p in _LEADING if p.name in keywords}
        given = security if isinstance(security, Security) else None
        keywords |= {"name": name, "security": bool(given.require_encryption) if given else security}
        profiles = [profile] if isinstance(profile, (str, os.PathLike)) else profile
        options = resolve(*profiles, cloud=self.cloud_name, keywords=keywords)
        self._begin(options, options["name"] or _random_name(), given, report, **python_only)

    def _begin(
        self,
        options: Options,
        name: str,
        given: Security | None = None,
        report: Callable[[str], None] | None = None,
        adopting: bool = False,
        adaptive: bool = True,
        **python_only: Any,
    ) -> None:
        self._options, self._given, self._report, self._adopting = options, given, report, adopting
        self._cloud: Cloud = clouds.make(self.cloud_name, options.values, "start a cluster")
        self._may_adapt = adaptive and not adopting
        self._owned = False  # whether closing removes the machines
        self._facts: Facts | None = None
        self._certificates: dict[str, str] = {}
        self._token, self._serial = secrets.token_hex(3), 0  # names are never used twice, by any launcher
        self._new: set[str] = set()  # names made by this launcher since it started
        self._removed: list[str] = []  # names that undo() removed
        self._create: Batch[str, VM | None] = Batch(self._create_batch)
        self._end: Batch[Machine, None] = Batch(self._end_batch)
        self._joined = asyncio.Event()
        self._start_task: asyncio.Task[Any] | None = None
        for shared_by_class in ("options", "scheduler_options", "worker_options"):
            setattr(self, shared_by_class, {})
        try:
            # With security=False VMCluster leaves the global Dask configuration alone; _start sets self.security.
            super().__init__(
                security=False,
                debug=options["debug"],
                name=name,
                shutdown_on_close=options["shutdown_on_close"] and not adopting,
                **python_only,
            )
        except BaseException:
            self._interrupted()
            raise

    def _interrupted(self) -> None:
        """Ends what a synchronous start left under way: after an error, or Ctrl-C in the user's thread."""
        if not hasattr(self, "_loop_runner") or self.asynchronous or not self._loop_runner.is_started():
            return
        if self._start_task and not self._start_task.done():
            self.loop.add_callback(self._start_task.cancel)
        with suppress(Exception):
            self.sync(self.undo, callback_timeout=CLEAN_UP)
        self._loop_runner.stop()

    # Starting

    async def _start(self) -> None:
        if self.status == Status.closed:
            raise ValueError("Cluster is closed")
        if self.status == Status.running:
            return
        self._start_task = asyncio.current_task()
        try:
            await self._start_or_adopt()
        except BaseException as error:
            await asyncio.shield(self.undo())
            if isinstance(error, (OSError, asyncio.TimeoutError)):
                raise StartError(name=self.name, what=f"{type(error).__name__}: {error}") from error
            raise

    async def _start_or_adopt(self) -> None:
        self.scheduler_spec: dict[str, Any] = {"cls": self.scheduler_class}
        self.worker_spec: dict[str, Any] = {}
        existing = await self._cloud.list(self.name)
        scheduler = next((vm for vm in existing if vm.role == "scheduler" and vm.alive), None)
        if scheduler is not None:
            await self._adopt(scheduler, [vm for vm in existing if vm.role == "worker" and vm.alive])
        elif self._adopting:
            raise ClusterNotFound(self.name, {vm.cluster for vm in await self._cloud.list()})
        else:
            await self._cloud.delete(existing)  # what is left of an earlier cluster of this name
            await self._make()
        values = {k: v for k, v in self._options.values.items() if not schema.options(self.cloud_name)[k].secret}
        self._cluster_info |= {"cloud": self.cloud_name, "options": values, "version": __version__}
        await SpecCluster._start(self)
        if self._options["adaptive"] and self._may_adapt:
            self.adapt(**self._options["adaptive"])

    async def _make(self) -> None:
        """The scheduler's machine, and without waiting for it the first workers', which try until it listens."""
        self._log(f"Making cluster {self.name} on {self.cloud_name}")
        self._owned = True
        if self._options["security"]:
            await self._certify()
        self._facts = await self._cloud.facts(None)
        self._want(planning.count(self._options))
        self.scheduler = Scheduler(self, planning.scheduler_name(self.name))
        if self._facts.host:
            self.scheduler.address = f"{self._protocol}://{self._facts.host}:{self._facts.port}"
            await asyncio.gather(self.scheduler, self._first_workers())
        else:
            await self.scheduler
            await self._first_workers()
        assert self.scheduler.vm is not None
        await reach(self.scheduler.vm, self._cloud, self.security, self._seconds("start_timeout"))
        self._log(f"Scheduler at {self.scheduler.vm.external_address}")

    @property
    def _protocol(self) -> str:
        from dask_cloudvm.bootstrap import protocol

        return protocol(self._options.values)

    def _seconds(self, option: str) -> float:
        return float(parse_timedelta(self._options[option] or "365 days"))

    async def _certify(self) -> None:
        if self._given is None:
            self._certificates = await asyncio.to_thread(tls.make, self.name)
        else:
            self._certificates = tls.of(self._given)
        await asyncio.to_thread(tls.save, self.name, self._certificates)
        self.security = self._given or security(self._certificates)

    async def _first_workers(self) -> None:
        assert self.scheduler is not None
        self.workers = {name: Worker(self.scheduler.address or "", self, name) for name in self.worker_spec}
        self._created.update(self.workers.values())
        await asyncio.gather(*self.workers.values())

    def _want(self, n: int) -> None:
        self.new_spec = {"cls": self.worker_class, "options": {"cluster": self, **self._sizes()}}
        while len(self.worker_spec) < n:
            self.worker_spec.update(self.new_worker_spec())

    async def _adopt(self, scheduler: VM, workers: list[VM]) -> None:
        if scheduler.protocol != "tcp":
            found = tls.load(self.name)
            if found is None:
                what = f"at {scheduler.external_address} asks for certificates that are not in {tls.state_folder()}"
                raise SchedulerLost(name=self.name, what=what)
            self._certificates = found
        self.security = security(self._certificates)
        info = await describe(scheduler, self._cloud, self.security, self._seconds("start_timeout"))
        theirs = info.get("options", {})
        if self._adopting:
            self._options = self._options.with_values(f"cluster {self.name}", **theirs)
            self._cloud = clouds.make(self.cloud_name, self._options.values)
        elif scheduler.options_digest != self._options.digest():
            differ = ", ".join(self._options.differences(theirs)) or "made by another release"
            raise ClusterExists(name=self.name, differ=differ)
        self._owned = (
            not self._adopting and self._options["shutdown_on_close"] and self._options.given("shutdown_on_close")
        )
        self._log(f"Found cluster {self.name} on {self.cloud_name} with {len(workers)} workers")
        self.scheduler = Scheduler(self, scheduler.name, scheduler)
        self.workers = {vm.name: Worker(scheduler.address, self, vm.name, vm) for vm in workers}
        self._created.update(self.workers.values())
        self._want(0)
        wanted = len(workers) if self._adopting else planning.count(self._options)
        self.worker_spec = {name: {**self.new_spec} for name in list(self.workers)[:wanted]}
        self._want(wanted)

    # What SpecCluster asks for

    def _sizes(self) -> dict[str, Any]:
        """What ``scale(cores=)`` and ``scale(memory=)`` divide by, where it is known."""
        known = {**self._options.values, **self._options["worker_options"]}
        return {key: known[key] for key in ("nthreads", "memory_limit") if known.get(key) not in (None, "auto")}

    def new_worker_spec(self) -> dict[str, Any]:
        self._serial += 1
        return {planning.worker_name(self.name, self._token, self._serial - 1): self.new_spec}

    def _update_worker_status(self, op: str, msg: Any) -> None:
        lost = self.scheduler_info["workers"][msg]["name"] if op == "remove" else None
        Cluster._update_worker_status(self, op, msg)  # SpecCluster's would bring a lost worker back under its old name
        self._joined.set()
        if lost:
            delay = parse_timedelta(dask.config.get("distributed.deploy.lost-worker-timeout"))
            asyncio.get_running_loop().call_later(delay, self._replace_lost, lost)

    def _replace_lost(self, name: str) -> None:
        if name not in self.workers or name in self.observed or self.status != Status.running:
            return
        self._log(f"Worker {name} is lost; its machine is removed")
        self._futures.add(asyncio.ensure_future(self.workers.pop(name).close()))
        if self.worker_spec.pop(name, None) and not (self._adaptive and self._adaptive.periodic_callback):
            self.worker_spec.update(self.new_worker_spec())
            self._correct_state()

    async def _create_batch(self, names: Sequence[str]) -> list[VM | BaseException | None]:
        """One write call for all the workers of a tick, and one for the scheduler."""
        assert self.scheduler is not None
        if self._facts is None:
            self._facts = await self._cloud.facts(self.scheduler.vm)
        made: dict[str, VM] = {}
        first = planning.scheduler_name(self.name)
        for role in ("scheduler", "worker"):
            of_role = [name for name in names if (name == first) == (role == "scheduler")]
            if not of_role:
                continue
            address = self.scheduler.address or ""
            wanted = planning.machines(
                self._options, self._cloud, self._facts, self.name, role, of_role,
                certificates=self._certificates, address=address,
            )  # fmt: skip
            self._new.update(of_role)
            for request in self._cloud.requests(wanted, self._facts):
                made |= {vm.name: vm for vm in await self._cloud.create(request)}
        missing = [name for name in names if name not in made]
        if missing:
            self._log(f"{len(missing)} of {len(names)} machines could not be had now; going on without them")
        return [made.get(name) for name in names]

    async def _end_batch(self, machines: Sequence[Machine]) -> list[None]:
        """One hand-over of data and one delete call for all the workers of a tick."""
        if self.status == Status.running and self.scheduler_comm:
            with suppress(OSError, asyncio.TimeoutError):
                names = [machine.name for machine in machines]
                await asyncio.wait_for(
                    self.scheduler_comm.retire_workers(names=names, remove=True, close_workers=True), RETIRE
                )
        await self._cloud.delete([machine.vm for machine in machines if machine.vm])
        return [None] * len(machines)

    # Waiting

    def ready(self, n: int | None = None) -> Any:
        """Waits until ``n`` workers, by default all that are wanted, have joined the scheduler.

        Raises :class:`StartError` when a machine ends before it has joined, or after ``start_timeout``.
        """
        return self.sync(self._ready, n)

    async def _ready(self, n: int | None) -> None:
        wanted = len(self.worker_spec) if n is None else n
        deadline = asyncio.get_running_loop().time() + self._seconds("start_timeout")
        while len(self.observed) < wanted:
            self._joined.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._joined.wait(), WATCH)
            if len(self.observed) >= wanted:
                break
            await self._check_machines()
            if asyncio.get_running_loop().time() > deadline:
                what = f"{len(self.observed)} of {wanted} workers joined within {self._options['start_timeout']}"
                raise StartError(
                    name=self.name, what=f"{what}; raise start_timeout, or see 'dask-cloudvm logs {self.name}'"
                )

    async def _check_machines(self) -> None:
        found = {vm.name: vm for vm in await self._cloud.list(self.name)}
        if not (own := found.get(planning.scheduler_name(self.name))) or not own.alive:
            raise SchedulerLost(name=self.name, what=f"has ended{await tail(own, self._cloud) if own else ''}")
        for name in set(self.worker_spec) & set(self.workers) - self.observed:
            vm = found.get(name)
            if self.workers[name].vm and not (vm and vm.alive):
                what = f"the machine of worker {name} ended before it joined"
                raise StartError(name=self.name, what=what + (await tail(vm, self._cloud) if vm else ""))

    # Ending

    def detach(self) -> None:
        """From now on closing this object, or ending this process, leaves the machines running."""
        self._owned = False
        self.shutdown_on_close = False

    async def _close(self) -> None:
        if self.status in (Status.closing, Status.closed):
            await super()._close()
            return
        remove = self._owned
        self._let_go()
        await super()._close()
        if remove:
            await self._sweep()
            await asyncio.to_thread(tls.forget, self.name)

    def _let_go(self) -> None:
        """Makes SpecCluster forget its processes, whose close would remove each machine."""
        self.workers, self.worker_spec = {}, {}
        self._created.clear()
        self.shutdown_scheduler = False

    async def undo(self) -> list[str]:
        """Removes what was made since the start: all of a new cluster, only the new machines of an adopted one.

        Returns the names of the machines removed, also by an earlier call. For use with ``asynchronous=True``.
        """
        self._new, new = set(), self._new
        owned = self._owned
        await self._close()
        if not owned and new:
            await self._sweep(new)
        return self._removed

    async def _sweep(self, names: set[str] | None = None) -> None:
        """Deletes every machine of this cluster, also those that other launchers added, or the given ones."""
        await self._create.settled()
        vms = [vm for vm in await self._cloud.list(self.name) if names is None or vm.name in names]
        await self._cloud.delete(vms)
        self._removed += [vm.name for vm in vms]

    # Looking

    @property
    def idle_timeout(self) -> str | float | None:
        """The time without work after which the cluster ends; None for never."""
        timeout: str | float | None = self._options["idle_timeout"]
        return timeout or None

    def machines(self) -> Any:
        """Every machine of this cluster as the cloud lists it: a list of :class:`dask_cloudvm.clouds.base.VM`."""
        return self.sync(self._cloud.list, self.name)

    async def scheduler_ended(self) -> None:
        """Returns when the scheduler has closed its connection to this object."""
        await asyncio.shield(self._watch_worker_status_task)

    async def _get_logs(self, cluster: bool = True, scheduler: bool = True, workers: Any = True) -> Logs:
        try:
            logs: Logs = await super()._get_logs(cluster=cluster, scheduler=scheduler, workers=workers)
            return logs
        except OSError:  # the scheduler is gone: what the machines wrote themselves is still there
            vms = await self._cloud.list(self.name)
            return Logs({vm.name: Log(await self._cloud.console(vm)) for vm in vms})

    def _log(self, log: str) -> None:
        if self._report is None:
            super()._log(log)
        else:
            self._cluster_manager_logs.append((None, log))
            self._report(log)

    def _repr_html_(self, cluster_status: str | None = None) -> str:
        html = str(super()._repr_html_(cluster_status))
        vms = [m.vm for m in (self.scheduler, *self.workers.values()) if m is not None and m.vm]
        cells = [(vm.name, vm.role, vm.private_ip, vm.zone or "", "spot" if vm.spot else "") for vm in vms]
        rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in cells)
        head = "<tr><th>Machine</th><th>Role</th><th>Address</th><th>Zone</th><th></th></tr>"
        return f"{html}<details><summary>Machines ({len(vms)})</summary><table>{head}{rows}</table></details>"

    @classmethod
    def from_options(cls, options: Options, **begin: Any) -> CloudCluster:
        """A cluster of options that are resolved already.

        ``adaptive=False`` leaves its size alone, whatever the options say; see the class for the other arguments.
        """
        self = cls.__new__(cls)
        self._begin(options, options["name"] or _random_name(), **begin)
        return self

    @classmethod
    def from_name(
        cls,
        name: str,
        *,
        asynchronous: bool = False,
        report: Callable[[str], None] | None = None,
        **python_only: Any,
    ) -> CloudCluster:
        """The cluster of this name that already runs; closing the object leaves it running.

        Raises :class:`ClusterNotFound`, or :class:`SchedulerLost` where its scheduler does not answer.
        """
        self = cls.__new__(cls)
        options, _ = combine([], cls.cloud_name)
        self._begin(options, name, None, report, adopting=True, asynchronous=asynchronous, **python_only)
        return self


class LocalVMCluster(CloudCluster, cloud="local"):
    """A Dask cluster of process groups on this computer, which outlive the launcher."""


class EC2Cluster(CloudCluster, cloud="ec2"):
    """A Dask cluster on Amazon EC2 instances."""


class GCPCluster(CloudCluster, cloud="gcp"):
    """A Dask cluster on Google Compute Engine instances."""


class AzureVMCluster(CloudCluster, cloud="azure"):
    """A Dask cluster on Azure virtual machines."""


CLASSES: dict[str, type[CloudCluster]] = {
    c.cloud_name: c for c in (LocalVMCluster, EC2Cluster, GCPCluster, AzureVMCluster)
}
