"""The processes of a SpecCluster, each of which is one machine, and the ways to reach a scheduler."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from distributed.comm.core import Comm, FatalCommClosedError, connect
from distributed.core import Status, rpc
from distributed.deploy.spec import ProcessInterface
from distributed.security import Security

from dask_cloudvm.clouds.base import VM, Cloud, scheduler_of
from dask_cloudvm.errors import NameTaken, SchedulerLost, StartError

if TYPE_CHECKING:
    from dask_cloudvm.cluster import CloudCluster

INFO = "cluster-manager-info"  # where distributed keeps a cluster's description in the scheduler's metadata
ANSWER = 10.0  # seconds for a scheduler that is known to run
WATCH = 0.5  # seconds between two looks at the machines that are starting
IDLE = 9.0  # times as long as a look takes, nobody looks
TRY = 5.0  # seconds for one attempt to connect
TAIL = 15  # lines of a console in an error


class Machine(ProcessInterface):
    """One machine as a process of ``cluster``: starting it makes the machine, closing it removes the machine."""

    def __init__(self, cluster: CloudCluster, name: str, vm: VM | None = None) -> None:
        super().__init__()
        self.cluster, self.name, self.vm = cluster, name, vm
        self._placed = time.monotonic()
        if vm is not None:
            self.place(vm)

    def place(self, vm: VM) -> None:
        """Takes the addresses of a machine that exists."""
        self.vm, self.address, self.status = vm, vm.private_ip, Status.running
        self._placed = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since this object knows its machine."""
        return time.monotonic() - self._placed

    async def start(self) -> None:
        vm = await self.cluster._create(self.name)
        if vm is not None:  # else there was no capacity, and the cluster goes on without it
            self.place(vm)
        self.status = Status.running

    async def close(self) -> None:
        if self.status != Status.closed:
            self.status = Status.closing
            try:
                await self.cluster._end(self)
            except BaseException:
                self.status = Status.running  # so that the next attempt does it
                raise
            await super().close()


class Worker(Machine):
    """A worker's machine."""

    def __init__(self, scheduler: str, cluster: CloudCluster, name: str, vm: VM | None = None, **sizes: Any) -> None:
        super().__init__(cluster, name, vm)  # sizes are for SpecCluster alone: scale(cores=) and scale(memory=)


class Scheduler(Machine):
    """The scheduler's machine."""

    def place(self, vm: VM) -> None:
        super().place(vm)
        self.address, self.external_address = vm.address, vm.external_address


def security(certificates: dict[str, str]) -> Security:
    """The client's side of a cluster's certificates; without any, no encryption."""
    if not certificates:
        return Security(require_encryption=False)
    return Security(
        require_encryption=True,
        tls_ca_file=certificates["ca.pem"],
        tls_client_cert=certificates["client.pem"],
        tls_client_key=certificates["client.key"],
    )


async def reach(vm: VM, cloud: Cloud, secured: Security, seconds: float) -> None:
    """Returns when the scheduler on ``vm`` accepts a connection.

    Raises :class:`StartError`, with the end of the machine's log, when its machine ends first or time is up.
    """
    attempt = asyncio.ensure_future(_connect(vm.external_address, secured, seconds))
    watch = asyncio.ensure_future(_until_ended(vm, cloud))
    try:
        await asyncio.wait({attempt, watch}, return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            watch.result()
            raise StartError(name=vm.cluster, what=f"the scheduler's machine ended{await tail(vm, cloud)}")
        try:
            comm = attempt.result()
        except (OSError, asyncio.TimeoutError) as error:
            what = f"no answer from the scheduler at {vm.external_address} within {seconds:g} s ({error})"
            raise StartError(
                name=vm.cluster, what=f"{what}; raise start_timeout, or check the firewall{await tail(vm, cloud)}"
            ) from None
        await comm.close()
    finally:
        attempt.cancel()
        watch.cancel()


async def _connect(address: str, secured: Security, seconds: float) -> Comm:
    """distributed's own connect waits longer and longer between its attempts: after a minute, for a minute."""
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        try:
            comm: Comm = await connect(address, timeout=min(TRY, left), **secured.get_connection_args("client"))
            return comm
        except FatalCommClosedError:
            raise
        except (OSError, asyncio.TimeoutError):
            if left <= TRY:
                raise


async def _until_ended(vm: VM, cloud: Cloud) -> None:
    """Returns when the scheduler's machine has ended or is gone. Raises :class:`NameTaken`."""
    took = 0.0
    while True:
        await asyncio.sleep(pause_after(took))
        began = time.monotonic()
        if not await is_alive(vm, cloud):
            return
        took = time.monotonic() - began


def pause_after(look: float) -> float:
    """Seconds until the next look at the machines, of which the last took ``look``: a thousand are a long list."""
    return max(WATCH, IDLE * look)


async def is_alive(vm: VM, cloud: Cloud) -> bool:
    """Whether the scheduler's machine is there.

    Raises :class:`NameTaken` where another launcher made one before it: some clouds keep no two machines of one name
    from being made at the same moment, so that all who did look who was first.
    """
    found = await cloud.list(vm.cluster)
    if (first := scheduler_of(found)) and first.id != vm.id and vm.id in {each.id for each in found}:
        raise NameTaken(name=vm.cluster)
    return vm.id in {each.id for each in found if each.alive}


async def tail(vm: VM, cloud: Cloud) -> str:
    """The last lines of a machine's console for an error message; nothing where there are none."""
    lines = _telling((await cloud.console(vm)).strip().splitlines())[-TAIL:]
    return f"; the last lines of its log:\n  {chr(10).join(lines).replace(chr(10), chr(10) + '  ')}" if lines else ""


def _telling(lines: list[str]) -> list[str]:
    """Lines without the frames of tracebacks, which would hide the first error of several; a unit names its program."""
    if any("Traceback (most recent call last)" in line for line in lines):
        return [line for line in lines if not re.match(r"(\S+\[\d+\]: )?(\s|\^|Traceback|$)", line)]
    return lines


async def describe(vm: VM, cloud: Cloud, secured: Security, start_timeout: float) -> dict[str, Any]:
    """What the scheduler on ``vm`` keeps about its cluster; waits where the cluster is just starting.

    Raises :class:`SchedulerLost`.
    """
    age = max(0.0, time.time() - vm.created)  # by two clocks that need not agree
    patience = max(ANSWER, start_timeout - age) if vm.created else ANSWER
    try:
        await reach(vm, cloud, secured, patience)
        found = await ask(vm, secured, lambda remote: remote.get_metadata(keys=[INFO], default={}))
    except (StartError, OSError, asyncio.TimeoutError):
        raise SchedulerLost(name=vm.cluster, what=f"at {vm.external_address} does not answer") from None
    info: dict[str, Any] = json.loads(json.dumps(found))  # the wire made tuples of lists
    return info


async def ask(vm: VM, secured: Security, question: Callable[[Any], Awaitable[Any]]) -> Any:
    """One question to the scheduler on ``vm`` over a connection of its own."""
    remote = rpc(vm.external_address, connection_args=secured.get_connection_args("client"), timeout=ANSWER)
    try:
        return await asyncio.wait_for(question(remote), ANSWER)
    finally:
        with suppress(Exception):
            await remote.close_rpc()
