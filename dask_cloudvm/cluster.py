"""A Dask cluster whose processes are virtual machines, on any cloud.

SpecCluster decides which workers should exist; this module makes that true by the cloud's few methods, in bulk. The
SpecCluster key, the Dask worker's name, the machine's name and its tag are one and the same text.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar

import dask.config
from dask.utils import parse_timedelta
from dask_cloudprovider.generic.vmcluster import VMCluster
from distributed.core import Status
from distributed.deploy.cluster import Cluster
from distributed.deploy.spec import SpecCluster
from distributed.objects import SchedulerInfo
from distributed.security import Security
from distributed.utils import Log, Logs
from tornado.ioloop import PeriodicCallback

from dask_cloudvm import api, arguments, clouds, environment, losses, schema, tls, versions, wheels, widget
from dask_cloudvm import plan as planning
from dask_cloudvm._version import __version__
from dask_cloudvm.batch import Batch
from dask_cloudvm.bootstrap import protocol
from dask_cloudvm.clouds.base import VM, Cloud, scheduler_of
from dask_cloudvm.errors import (
    CloudError,
    CloudVMError,
    ClusterClosed,
    ClusterExists,
    NameTaken,
    NoEventLoop,
    SchedulerLost,
    StartError,
)
from dask_cloudvm.fleet import Fleet
from dask_cloudvm.layers import from_keywords
from dask_cloudvm.losses import LONGEST_RETRY, NEVER, RETRY, Losses
from dask_cloudvm.machines import (
    ANSWER,
    WATCH,
    Machine,
    Scheduler,
    Worker,
    describe,
    is_alive,
    pause_after,
    reach,
    security,
    tail,
)
from dask_cloudvm.options import Options, combine, resolve
from dask_cloudvm.threads import in_thread

REFRESH = 5.0  # seconds between two looks at the scheduler's workers
RETIRE = 60.0  # seconds for workers to hand over their data before their machines are removed
CLEAN_UP = 60.0  # seconds for an interrupted start to remove what it made


def _check_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise NoEventLoop() from None


def _random_name() -> str:
    return f"dask-{secrets.token_hex(4)}"


class CloudCluster(VMCluster):
    """The common part of EC2Cluster, GCPCluster, AzureVMCluster and LocalVMCluster."""

    cloud_name: ClassVar[str] = ""
    scheduler_class = Scheduler
    worker_class = Worker

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
        self._end: Batch[Machine, None] = Batch(self._end_batch)
        self._losses = Losses(options["replacements"])
        self._lost: Batch[str, None] = Batch(self._lost_batch)
        self._why: Batch[Machine, str] = Batch(self._why_batch)
        self._joined = asyncio.Event()
        self._failure: CloudVMError | None = None
        self._start_task: asyncio.Task[Any] | None = None
        self._filling: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
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
            await asyncio.shield(self.undo())
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
            await self._adopt(scheduler, [vm for vm in existing if vm.role == "worker" and vm.alive])
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
        self.periodic_callbacks["refresh"] = PeriodicCallback(self._refresh, REFRESH * 1000)
        try:
            await SpecCluster._start(self)
        except RuntimeError as error:  # in which it wraps whatever went wrong, such as a scheduler that is gone again
            raise error.__cause__ or error from None
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

    @property
    def _cloud(self) -> Cloud:
        return self._fleet.cloud

    def _seconds(self, option: str) -> float:
        return float(parse_timedelta(self._options[option] or "365 days"))

    async def _create(self, name: str) -> VM | None:
        pause = self._losses.pause(name)
        try:
            vm = None if pause else await self._fleet.create(name)
        except CloudVMError as error:
            if self.status != Status.running:
                raise
            if error is not self._failure:  # one for all that were asked for at once
                self._log(f"No machine for worker {name}: {error}")
            self._failure = error  # for ready(); nobody waits for what scale() starts
            self.worker_spec.pop(name, None)
            self.loop.add_callback(self._correct_state)
            return None
        waits = vm is None and name in self.worker_spec and pause != NEVER
        if waits and (self._filling is None or self._filling.done()):
            self._filling = asyncio.ensure_future(self._fill(pause or RETRY))
        return vm

    async def _first_workers(self) -> None:
        self.workers = {name: Worker(self._fleet.address, self, name) for name in self.worker_spec}
        self._created.update(self.workers.values())
        await asyncio.gather(*self.workers.values())

    def _want(self, n: int) -> None:
        self.new_spec = {"cls": self.worker_class, "options": {"cluster": self, **self._sizes()}}
        while len(self.worker_spec) < n:
            self.worker_spec.update(self.new_worker_spec())

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
        self._log(f"Found cluster {self.name} on {self.cloud_name} with {len(workers)} workers")
        self._fleet.scheduler, self._fleet.address = scheduler, scheduler.address
        self.scheduler = Scheduler(self, scheduler.name, scheduler)
        self.workers = {vm.name: Worker(scheduler.address, self, vm.name, vm) for vm in workers}
        self._created.update(self.workers.values())
        self._want(0)
        wanted = len(workers) if self._adopting else planning.count(self._options)
        self.worker_spec = {name: {**self.new_spec} for name in list(self.workers)[:wanted]}
        self._want(wanted)

    # What SpecCluster asks for

    def sync(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        if self.status == Status.closed and not self.asynchronous and not self._loop_runner.is_started():
            raise ClusterClosed(name=self.name)
        return super().sync(func, *args, **kwargs)

    async def _correct_state_internal(self) -> None:
        try:
            await super()._correct_state_internal()
        except CloudVMError as error:  # nobody waits for what scale() begins, but ready()
            if error is not self._failure:
                self._log(f"Cannot change the number of workers: {error}")
            self._failure = error

    def scale(self, *args: Any, **kwargs: Any) -> Any:
        if self.status == Status.running and self._watch_worker_status_comm.closed():
            raise SchedulerLost(name=self.name, what="has ended, or was cut off")  # workers would wait for it in vain
        return super().scale(*args, **kwargs)

    def _sizes(self) -> dict[str, Any]:
        """What ``scale(cores=)`` and ``scale(memory=)`` divide by, where it is known."""
        known = {**self._options.values, **self._options["worker_options"]}
        return {key: known[key] for key in ("nthreads", "memory_limit") if known.get(key) not in (None, "auto")}

    def new_worker_spec(self) -> dict[str, Any]:
        return {self._fleet.next_worker(): self.new_spec}

    def _update_worker_status(self, op: str, msg: Any) -> None:
        if op == "remove" and msg not in self.scheduler_info["workers"]:
            return  # known already, see _refresh
        lost = self._machine(self.scheduler_info["workers"][msg]["name"]) if op == "remove" else None
        Cluster._update_worker_status(self, op, msg)  # SpecCluster's would bring a lost worker back under its old name
        self._joined.set()
        if lost:
            self._lose(lost)

    async def _refresh(self) -> None:
        """Asks the scheduler for its workers: it tells of changes only to who connected last."""
        if self.status != Status.running:
            return
        with suppress(OSError, asyncio.TimeoutError):
            info = SchedulerInfo(await asyncio.wait_for(self.scheduler_comm.identity(n_workers=-1), ANSWER))
            before, self.scheduler_info = self.observed, info
            for lost in before - self.observed:
                self._lose(lost)
        await self._replace([w.name for w in self._missing() if w.age > self._seconds("start_timeout")], joined=False)

    def _lose(self, name: str) -> None:
        delay = parse_timedelta(dask.config.get("distributed.deploy.lost-worker-timeout"))
        asyncio.get_running_loop().call_later(delay, lambda: self._futures.add(asyncio.ensure_future(self._lost(name))))

    async def _lost_batch(self, names: Sequence[str]) -> list[None]:
        await self._replace(names)
        return [None] * len(names)

    @property
    def observed(self) -> set[str]:
        """Names of the machines of which a worker has joined."""
        return {self._machine(worker["name"]) for worker in self.scheduler_info["workers"].values()}

    def _machine(self, worker: Any) -> str:
        """The machine of a Dask worker: a machine that runs several of them adds -0, -1 ... to its name."""
        name = str(worker)
        parent = name.rpartition("-")[0]
        return parent if parent in self.workers else name

    async def scale_down(self, workers: Any) -> None:
        await super().scale_down({self._machine(worker) for worker in workers})

    def _missing(self) -> list[Machine]:
        """Workers with a machine that have not joined, or are lost."""
        joined = self.observed
        return [w for name, w in self.workers.items() if w.vm and name in self.worker_spec and name not in joined]

    async def _replace(self, names: Sequence[str], joined: bool = True) -> None:
        """Lets others take the places of workers that are lost for good, where no other launcher has done so first."""
        if not (lost := [name for name in names if self._is_lost(name)]):
            return
        await self._tell_removed(lost)
        others = losses.removed(await self._events(), self._fleet.launcher)
        for name in filter(self._is_lost, lost):
            machine, new, pause = self.workers.pop(name), "", 0.0
            wanted = self.worker_spec.pop(name, None)
            if name in others:
                continue
            if wanted:
                new = self._fleet.next_worker()
                pause = self._losses.replace(name, new, machine.age, joined)
                self.worker_spec[new] = self.new_spec
                self._correct_state()
            self._futures.add(asyncio.ensure_future(self._remove(machine, joined, losses.then(new, pause))))

    def _is_lost(self, name: str) -> bool:
        return name in self.workers and name not in self.observed and self.status == Status.running

    async def _tell_removed(self, names: Sequence[str]) -> None:
        """Lets other launchers know that this one removes workers: the scheduler keeps who said so first."""
        with suppress(OSError, asyncio.TimeoutError):
            msg = {"removed": list(names), "by": self._fleet.launcher}
            await self.scheduler_comm.log_event(topic=losses.TOPIC, msg=msg)

    async def _remove(self, lost: Machine, joined: bool, then: str) -> None:
        """Removes the machine of a lost worker, and leaves the reason where ``status`` finds it."""
        why = "" if joined else f"it did not join within {self._options['start_timeout']}"
        try:
            why = await self._why(lost) or why or "its worker does not answer"
            await lost.close()
        except (CloudError, OSError, asyncio.TimeoutError) as error:
            self._log(f"The machine of {lost.name} may still be there: {error}")
        self._log(f"Worker {lost.name} is lost: {why}; {then}")
        with suppress(OSError, asyncio.TimeoutError):
            msg = {"worker": lost.name, "why": why, "then": then}
            await self.scheduler_comm.log_event(topic=losses.TOPIC, msg=msg)

    async def _why_batch(self, lost: Sequence[Machine]) -> list[str]:
        """What became of each: nothing where its machine runs on and told nobody why its worker left."""
        told = losses.notices(await self._events())
        alive = {vm.name for vm in await self._cloud.list(self.name) if vm.alive}
        return [told.get(m.name) or ("" if m.name in alive else "its machine has ended") for m in lost]

    async def _events(self) -> Sequence[Any]:
        """What launchers and machines have told the scheduler; nothing where it does not answer."""
        with suppress(OSError, asyncio.TimeoutError):
            return await self.scheduler_comm.events(topic=losses.TOPIC)  # type: ignore[no-any-return]
        return ()

    def _short(self) -> list[Machine]:
        """Workers without a machine, since there was no capacity, or others were lost in their place."""
        return [w for w in self.workers.values() if w.vm is None and w.status == Status.running]

    async def _fill(self, pause: float) -> None:
        """Asks again for the machines that could not be had, less and less often."""
        while True:
            await asyncio.sleep(pause)
            if not (short := [worker for worker in self._short() if self._losses.pause(worker.name) != NEVER]):
                return
            with suppress(CloudError):
                found = await asyncio.gather(*(self._fleet.create(worker.name) for worker in short))
                for worker, vm in zip(short, found, strict=True):
                    if vm is not None and worker.status == Status.running:
                        worker.place(vm)
                    elif vm is not None:  # it was scaled away meanwhile
                        await self._cloud.delete([vm])
            pause = min(2 * pause, LONGEST_RETRY)

    def _workers_on(self, machines: set[str]) -> list[str]:
        """Names that Dask workers on these machines have, or may have."""
        names = {str(worker["name"]) for worker in self.scheduler_info["workers"].values()}
        return [*machines, *(name for name in names if name.rpartition("-")[0] in machines)]

    async def _end_batch(self, machines: Sequence[Machine]) -> list[None]:
        """One hand-over of data and one delete call for all the workers of a tick."""
        if self.status == Status.running and self.scheduler_comm:
            await self._tell_removed([machine.name for machine in machines])
            with suppress(OSError, asyncio.TimeoutError):
                names = self._workers_on({machine.name for machine in machines})
                await asyncio.wait_for(
                    self.scheduler_comm.retire_workers(names=names, remove=True, close_workers=True), RETIRE
                )
        await self._cloud.delete([machine.vm for machine in machines if machine.vm])
        return [None] * len(machines)

    # Waiting

    def ready(self, n: int | None = None) -> Any:
        """Waits until ``n`` workers, by default all for which there are machines, have joined the scheduler.

        Raises :class:`StartError` when a machine ends before any worker has joined, and where none or, with ``n``,
        fewer have joined after ``start_timeout``. Without ``n`` it goes on with those that have: others are replaced.
        """
        return self.sync(self._ready, n)

    async def _ready(self, n: int | None) -> None:
        loop = asyncio.get_running_loop()
        deadline, look = loop.time() + self._seconds("start_timeout"), 0.0
        while True:
            if self._failure:
                error, self._failure = self._failure, None
                raise error
            if self._have_joined(wanted := len(self.worker_spec) - len(self._short()) if n is None else n):
                return
            self._joined.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._joined.wait(), WATCH)
            if loop.time() >= look and not self._have_joined(wanted):
                began = loop.time()
                await self._check_machines()
                await self._refresh()
                look = loop.time() + pause_after(loop.time() - began)
            if loop.time() > deadline and not self._have_joined(wanted):  # a computer may have slept meanwhile
                within = f"{len(self.observed)} of {wanted} workers joined within {self._options['start_timeout']}"
                if n is None and self.observed:  # go on with those that there are
                    self._log(within)
                    await self._replace([worker.name for worker in self._missing()], joined=False)
                    return
                what = f"{within}; raise start_timeout, or see 'dask-cloudvm logs {self.name}'"
                raise StartError(name=self.name, what=what)

    def _have_joined(self, n: int) -> bool:
        return len(self.scheduler_info["workers"]) >= n and len(self.observed) >= n

    async def _check_machines(self) -> None:
        found = {vm.name: vm for vm in await self._cloud.list(self.name)}
        own = self.scheduler.vm if self.scheduler else None
        if not (there := found.get(planning.scheduler_name(self.name))) or not there.alive:
            raise SchedulerLost(name=self.name, what=f"has ended{await tail(own, self._cloud) if own else ''}")
        ended: list[str] = []
        for worker in self._missing():
            name, vm = worker.name, worker.vm
            if name in found and found[name].alive:
                continue
            if not self.observed and vm:  # nothing shows that any worker can join
                what = f"the machine of worker {name} ended before it joined"
                raise StartError(name=self.name, what=what + await tail(vm, self._cloud))
            ended.append(name)
        await self._replace(ended, joined=False)

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
        if self._filling:
            self._filling.cancel()
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
