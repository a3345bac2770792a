"""The workers of a cluster: as many machines as are wanted, made in bulk, replaced when they are lost, and removed.

SpecCluster decides which workers should exist; this makes that true. The SpecCluster key, the Dask worker's name, the
machine's name and its tag are one and the same text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar

import dask.config
from dask.utils import parse_timedelta
from dask_cloudprovider.generic.vmcluster import VMCluster
from distributed.core import Status
from distributed.deploy.cluster import Cluster
from distributed.objects import SchedulerInfo
from tornado.ioloop import PeriodicCallback

from dask_cloudvm import losses, versions
from dask_cloudvm import plan as planning
from dask_cloudvm.batch import Batch
from dask_cloudvm.clouds.base import VM, Cloud
from dask_cloudvm.errors import CloudError, CloudVMError, SchedulerLost, StartError, VersionMismatch
from dask_cloudvm.fleet import Fleet
from dask_cloudvm.losses import LONGEST_RETRY, NEVER, RETRY, Losses
from dask_cloudvm.machines import ANSWER, WATCH, Machine, Worker, pause_after, tail
from dask_cloudvm.options import Options

TOGETHER = 0.5  # seconds by which a machine is asked for early, with others
REFRESH = 5.0  # seconds between two looks at the scheduler's workers
RETIRE = 60.0  # seconds for workers to hand over their data before their machines are removed


class Workers(VMCluster):
    """What a cluster does about its workers, whatever its cloud; see :class:`dask_cloudvm.cluster.CloudCluster`."""

    cloud_name: ClassVar[str]
    worker_class = Worker
    scheduler: Any  # a Scheduler, or None before there is one
    _options: Options
    _fleet: Fleet

    def _begin_workers(self) -> None:
        self._end: Batch[Machine, None] = Batch(self._end_batch)
        self._losses = Losses(self._options["replacements"])
        self._lost: Batch[str, None] = Batch(self._lost_batch)
        self._why: Batch[Machine, str] = Batch(self._why_batch)
        self._joined = asyncio.Event()
        self._failure: CloudVMError | None = None
        self._filling: asyncio.Task[None] | None = None
        self._due: dict[str, tuple[float, float]] = {}  # when a worker's machine is asked for again, and the pause
        self._more_due = asyncio.Event()
        self._comparing: asyncio.Future[None] | None = None  # the first worker's versions

    @property
    def _cloud(self) -> Cloud:
        return self._fleet.cloud

    def _seconds(self, option: str) -> float:
        return float(parse_timedelta(self._options[option] or "365 days"))

    async def _first_workers(self) -> None:
        self.workers = {name: Worker(self._fleet.address, self, name) for name in self.worker_spec}
        self._created.update(self.workers.values())
        await asyncio.gather(*self.workers.values())

    def _want(self, n: int) -> None:
        self.new_spec = {"cls": self.worker_class, "options": {"cluster": self, **self._sizes()}}
        while len(self.worker_spec) < n:
            self.worker_spec.update(self.new_worker_spec())

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
        if any(isinstance(n, (int, float)) and n < 0 for n in (*args, *kwargs.values())):
            raise ValueError("a cluster cannot be scaled to less than 0")
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
        new = [*msg["workers"]] if op == "add" else []
        Cluster._update_worker_status(self, op, msg)  # SpecCluster's would bring a lost worker back under its old name
        self._joined.set()
        if lost:
            self._lose(lost)
        self._compare(new)

    def _compare(self, joined: Sequence[str]) -> None:
        """Looks once whether workers, which may have an image of their own, can work with this program."""
        if joined and self._comparing is None:
            self._comparing = asyncio.ensure_future(self._compared(joined[0]))

    async def _compared(self, worker: str) -> None:
        try:
            await versions.check_worker(worker, self.scheduler_comm, self.name, self._options)
        except VersionMismatch as error:
            self._log(str(error))
            self._failure = error

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

    # Making and removing them, in bulk

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
        if vm is None and name in self.worker_spec and pause != NEVER:
            self._try_later(name, pause or RETRY)
        return vm

    def _try_later(self, name: str, pause: float) -> None:
        self._due[name] = asyncio.get_running_loop().time() + pause, pause
        self._more_due.set()
        if self._filling is None or self._filling.done():
            self._filling = asyncio.ensure_future(self._fill())

    def _short(self) -> list[Machine]:
        """Workers without a machine, since there was no capacity, or others were lost in their place."""
        return [w for w in self.workers.values() if w.vm is None and w.status == Status.running]

    async def _fill(self) -> None:
        """Asks again for the machines that could not be had, each less and less often, together where that is due."""
        loop = asyncio.get_running_loop()
        while self._due:
            first = min(when for when, _ in self._due.values())
            if first > loop.time():
                self._more_due.clear()
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._more_due.wait(), first - loop.time())
                continue
            pauses = {name: pause for name, (when, pause) in self._due.items() if when <= loop.time() + TOGETHER}
            for name in pauses:
                del self._due[name]
            due = [worker for worker in self._short() if worker.name in pauses]
            for worker in due:
                self._try_later(worker.name, min(2 * pauses[worker.name], LONGEST_RETRY))
            with suppress(CloudError):
                found = await asyncio.gather(*(self._fleet.create(worker.name) for worker in due))
                for worker, vm in zip(due, found, strict=True):
                    if vm is not None and worker.status == Status.running:
                        worker.place(vm)
                    elif vm is not None:  # it was scaled away meanwhile
                        await self._cloud.delete([vm])

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

    # Those that are lost

    def _watch_workers(self) -> None:
        self.periodic_callbacks["refresh"] = PeriodicCallback(self._refresh, REFRESH * 1000)

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
            if self._comparing:
                await asyncio.shield(self._comparing)
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
