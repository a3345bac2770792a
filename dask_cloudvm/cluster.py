"""A Dask cluster whose processes are virtual machines, on any cloud: how it starts, is adopted and ends."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar

from distributed.core import Status
from distributed.deploy.spec import SpecCluster
from distributed.security import Security
from distributed.utils import Log, Logs

from dask_cloudvm import api, arguments, clouds, environment, schema, tls, versions, wheels, widget
from dask_cloudvm import plan as planning
from dask_cloudvm._version import __version__
from dask_cloudvm.bootstrap import protocol
from dask_cloudvm.clouds.base import VM, scheduler_of
from dask_cloudvm.errors import (
    CloudError,
    ClusterClosed,
    ClusterExists,
    NameTaken,
    NoEventLoop,
    SchedulerLost,
    StartError,
    counted,
)
from dask_cloudvm.fleet import Fleet
from dask_cloudvm.layers import from_keywords
from dask_cloudvm.machines import (
    Scheduler,
    Worker,
    describe,
    is_alive,
    reach,
    security,
)
from dask_cloudvm.options import Options, combine, resolve
from dask_cloudvm.threads import in_thread
from dask_cloudvm.workers import Workers

CLEAN_UP = 60.0  # seconds for an interrupted start to remove what it made


def _check_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise NoEventLoop() from None


def _random_name() -> str:
    return f"dask-{secrets.token_hex(4)}"


class CloudCluster(Workers):
    """The common part of EC2Cluster, GCPCluster, AzureVMCluster and LocalVMCluster."""

    cloud_name: ClassVar[str] = ""
    scheduler_class = Scheduler

    def __init_subclass__(cls, cloud: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cloud:
            cls.cloud_name = cloud
            cls.__signature__ = schema.signature(cloud, arguments.PYTHON_ONLY)
            cls.__doc__ = "\n\n".join([str(cls.__doc__), schema.load(cloud)["description"], schema.parameters(cloud)])
            cls.__doc__ += arguments.DOCS

    def __init__(
        self,
        name: str | None = None,
        *,
        profile: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        security: Security | bool | None = None,
        report: Callable[[str], None] | None = None,
        **keywords: Any,
    ) -> None:
        python_only = {p.name: keywords.pop(p.name) for p in arguments.PYTHON_ONLY if p.name in keywords}
        given = security if isinstance(security, Security) else None
        keywords |= {"name": name, "security": bool(given.require_encryption) if given else security}
        profiles = [profile] if isinstance(profile, (str, os.PathLike)) else profile
        options = resolve(*profiles, cloud=self.cloud_name or None, keywords=keywords)
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
        if not self.cloud_name:
            raise TypeError("use the class of one cloud, such as LocalVMCluster, or from_profile() or from_name()")
        options = options if adopting else environment.captured(options)
        self._options, self._given, self._report, self._adopting = options, given, report, adopting
        if python_only.get("asynchronous") and not python_only.get("loop"):
            _check_loop()
        cloud = clouds.make(self.cloud_name, options.values)
        if not adopting:
            cloud.check()
        self._fleet = Fleet(name, options, cloud, self._log)
        self._may_adapt = adaptive and not adopting
        self._wheels: dict[str, bytes] = {}  # packages of this computer for a new cluster
        self._owned = False  # whether closing removes the machines
        self._begin_workers()
        self._start_task: asyncio.Task[Any] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._left = ""  # what was said about machines that may still be there
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
            self._owned = self._owned and not isinstance(error, NameTaken)
            await self.clean_up()
            if isinstance(error, (OSError, asyncio.TimeoutError)):
                raise StartError(name=self.name, what=f"{type(error).__name__}: {error}") from error
            raise

    async def _start_or_adopt(self) -> None:
        self.scheduler_spec: dict[str, Any] = {"cls": self.scheduler_class}
        self.worker_spec: dict[str, Any] = {}
        if self._adopting:
            self._fleet.cloud, existing = await api.find(self.name, self.cloud_name)
        else:
            existing = await self._cloud.list(self.name)
        if scheduler := scheduler_of(existing):
            try:
                await self._adopt(scheduler, [vm for vm in existing if vm.role == "worker" and vm.alive])
            except SchedulerLost:
                if self._adopting or scheduler_of(await self._cloud.list(self.name)):
                    raise
                await self._make()  # somebody has taken it down meanwhile
        elif self._adopting:
            raise SchedulerLost(name=self.name, what="has ended")
        else:
            await self._cloud.delete(existing)  # what is left of an earlier cluster of this name
            await self._make()
        if vm := self.scheduler.vm:
            await versions.check(vm, self.security, self._options, self._log)
            if self._wheels:
                self._log(f"Sending {', '.join(self._wheels)}")
                await wheels.send(vm, self.security, self._wheels)
        values = {k: v for k, v in self._options.values.items() if not schema.options(self.cloud_name)[k].secret}
        self._cluster_info |= {"cloud": self.cloud_name, "options": values, "version": __version__}
        self._watch_workers()
        try:
            await SpecCluster._start(self)
        except RuntimeError as error:  # in which it wraps whatever went wrong, such as a scheduler that is gone again
            raise error.__cause__ or error from None
        self._compare([*self.scheduler_info["workers"]])
        if self._options["adaptive"] and self._may_adapt:
            self.adapt(**self._options["adaptive"])

    async def _make(self) -> None:
        """The scheduler's machine, and without waiting for it the first workers', which try until it listens."""
        self._log(f"Making cluster {self.name} on {self.cloud_name}")
        self._wheels = await in_thread(environment.wheels, self._options)
        self._owned = True
        if self._options["security"]:
            self._fleet.certificates = tls.of(self._given) if self._given else await in_thread(tls.make, self.name)
        self.security = self._given or security(self._fleet.certificates)
        facts = self._fleet.facts = await self._cloud.facts(None)
        for note in facts.notes:
            self._log(note)
        self._want(planning.count(self._options))
        self.scheduler = Scheduler(self, planning.scheduler_name(self.name))
        if facts.host:
            self._fleet.address = f"{protocol(self._options.values)}://{facts.host}:{facts.port}"
            await asyncio.gather(self.scheduler, self._first_workers())
        else:
            await self.scheduler
        if self.scheduler.vm is None:
            raise StartError(name=self.name, what=f"there is no machine for the scheduler: {self._cloud.shortfall}")
        if not facts.host:
            self._fleet.address = self.scheduler.vm.address
            await self._first_workers()
        self.scheduler.place(await self._cloud.locate(self.scheduler.vm))
        await reach(self.scheduler.vm, self._cloud, self.security, self._seconds("start_timeout"))
        await is_alive(self.scheduler.vm, self._cloud)
        await self._fleet.settle()
        self._log(f"Scheduler at {self.scheduler.vm.external_address}")

    async def _adopt(self, scheduler: VM, workers: list[VM]) -> None:
        if scheduler.protocol != "tcp":
            if (found := await in_thread(tls.load, self.name)) is None:
                what = f"at {scheduler.external_address} asks for certificates that are not in {tls.state_folder()}"
                raise SchedulerLost(name=self.name, what=what)
            self._fleet.certificates = found
        self.security = security(self._fleet.certificates)
        info = await describe(scheduler, self._cloud, self.security, self._seconds("start_timeout"))
        theirs = info.get("options", {})
        if self._adopting:
            theirs |= {place: await self._cloud.home()} if (place := self._cloud.place) else {}
            self._options = self._fleet.options = self._options.with_values(f"cluster {self.name}", **theirs)
            self._fleet.cloud = clouds.make(self.cloud_name, self._options.values)
        elif scheduler.options_digest != self._options.digest():
            differ = ", ".join(self._options.differences(theirs)) or "made by another release"
            raise ClusterExists(name=self.name, differ=differ)
        self._owned = (
            not self._adopting and self._options["shutdown_on_close"] and self._options.given("shutdown_on_close")
        )
        self._log(f"Found cluster {self.name} on {self.cloud_name} with {counted(len(workers), 'worker')}")
        self._fleet.scheduler, self._fleet.address = scheduler, scheduler.address
        self.scheduler = Scheduler(self, scheduler.name, scheduler)
        self.workers = {vm.name: Worker(scheduler.address, self, vm.name, vm) for vm in workers}
        self._created.update(self.workers.values())
        self._want(0)
        wanted = len(workers) if self._adopting else planning.count(self._options)
        self.worker_spec = {name: {**self.new_spec} for name in list(self.workers)[:wanted]}
        self._want(wanted)

    def sync(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        if self.status == Status.closed and not self.asynchronous and not self._loop_runner.is_started():
            raise ClusterClosed(name=self.name)
        return super().sync(func, *args, **kwargs)

    # Ending

    def detach(self) -> None:
        """From now on closing this object, or ending this process, leaves the machines running."""
        self._owned = False
        self.shutdown_on_close = False

    async def _close(self) -> None:
        """Everyone who closes waits for the same end: a loop that stops before it would leave machines."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close_once())
        try:
            await asyncio.shield(self._closing)
        except Exception:
            self._closing = None  # such as a cloud that did not answer: the next call tries again
            raise

    async def _close_once(self) -> None:
        self._let_go()
        await super()._close()
        if self._owned:
            await self._fleet.sweep()
            await in_thread(tls.forget, self.name)

    def _let_go(self) -> None:
        """Makes SpecCluster forget its processes, whose close would remove each machine."""
        self.workers, self.worker_spec = {}, {}
        for task in (self._filling, self._comparing):
            if task:
                task.cancel()
        self._created.clear()
        self.shutdown_scheduler = False

    async def undo(self) -> list[str]:
        """Removes what was made since the start: all of a new cluster, only the new machines of an adopted one.

        Returns the names of the machines removed, also by an earlier call. For use with ``asynchronous=True``.
        """
        owned, new = self._owned, self._fleet.new
        await self._close()
        if not owned and new:
            await self._fleet.sweep(new)
            new.clear()
        return self._fleet.removed

    async def clean_up(self) -> list[str]:
        """Like :meth:`undo` after an error, which is what counts: where it fails, too, what may be left is said."""
        try:
            return await asyncio.shield(self.undo())
        except (CloudError, OSError, asyncio.TimeoutError) as error:
            left = f"Machines of {self.name} may still be there: {error}; later: dask-cloudvm down {self.name}"
            if left != self._left:
                self._log(left)
            self._left = left
            return self._fleet.removed

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
        if not self._watch_worker_status_comm.closed():
            with suppress(OSError):
                logs: Logs = await super()._get_logs(cluster=cluster, scheduler=scheduler, workers=workers)
                return logs
        vms = await self._cloud.list(self.name)  # the scheduler is gone: what the machines wrote is still there
        return Logs({vm.name: Log(await self._cloud.console(vm)) for vm in vms})

    def _log(self, log: str) -> None:
        if self._report is None:
            super()._log(log)
        else:
            self._cluster_manager_logs.append((None, log))
            self._report(log)

    def _repr_html_(self, cluster_status: str | None = None) -> str:
        vms = [m.vm for m in (self.scheduler, *self.workers.values()) if m is not None and m.vm]
        return str(super()._repr_html_(cluster_status)) + widget.machines(vms)

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
        options, _ = combine([from_keywords({"name": name})], cls.cloud_name or None)
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
