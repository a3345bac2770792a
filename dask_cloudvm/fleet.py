"""The machines of one cluster on its cloud: named once, made and removed in bulk, remembered until they are undone."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from dask_cloudvm import places, tls
from dask_cloudvm import plan as planning
from dask_cloudvm.batch import Batch
from dask_cloudvm.clouds.base import VM, Cloud, Facts
from dask_cloudvm.errors import CloudError, NameTaken
from dask_cloudvm.options import Options
from dask_cloudvm.threads import in_thread


class Fleet:
    """``await fleet.create(name)`` from many tasks in one tick is one write call for workers, one for the scheduler.

    What comes back is the machine, or None where there was no capacity for it.
    """

    def __init__(self, name: str, options: Options, cloud: Cloud, log: Callable[[str], None]) -> None:
        self.name, self.options, self.cloud, self.log = name, options, cloud, log
        self.certificates: dict[str, str] = {}
        self.facts: Facts | None = None
        self.scheduler: VM | None = None
        self.address = ""  # where workers will reach the scheduler
        self.new: set[str] = set()  # names that may exist because of this launcher
        self.removed: list[str] = []
        self._made: dict[str, VM] = {}  # by id; of a scheduler the name is no proof of whose it is, see scheduler_of
        self._kept: Path | None = None  # its certificates, until the cluster is known to be its own
        self.create: Batch[str, VM | None] = Batch(self._create)
        self.launcher, self._serial = secrets.token_hex(3), -1  # names are never used twice, by any launcher

    def next_worker(self) -> str:
        """A name for one more worker."""
        self._serial += 1
        return planning.worker_name(self.name, self.launcher, self._serial)

    async def _create(self, names: Sequence[str]) -> list[VM | None]:
        if self.facts is None:
            self.facts = await self.cloud.facts(self.scheduler)
        made: dict[str, VM] = {}
        first = planning.scheduler_name(self.name)
        if first in names:
            made |= await self._make_scheduler(first, self.facts)
        if workers := [name for name in names if name != first]:
            made |= await self._make("worker", workers, self.facts)
        if missing := len(names) - len(made):
            why = f" ({self.cloud.shortfall})" if self.cloud.shortfall else ""
            self.log(f"{missing} of {len(names)} machines could not be had now; going on without them{why}")
        return [made.get(name) for name in names]

    async def _make_scheduler(self, name: str, facts: Facts) -> dict[str, VM]:
        """Its certificates are kept before it exists: nobody could reach it or add workers without them."""
        self._kept = await in_thread(tls.keep, self.name, self.certificates)
        made: dict[str, VM] = {}
        try:
            made = await self._make("scheduler", [name], facts)
        finally:
            if not made:
                await self._drop()
        return made

    async def settle(self) -> None:
        """The cluster is this launcher's."""
        if self._kept:
            await in_thread(tls.settle, self._kept)

    async def _drop(self) -> None:
        if self._kept:
            await in_thread(tls.drop, self._kept)
            self._kept = None

    async def _make(self, role: str, names: Sequence[str], facts: Facts) -> dict[str, VM]:
        certificates, address = self.certificates, self.address
        wanted = planning.machines(
            self.options, self.cloud, facts, self.name, role, names, certificates=certificates, address=address
        )
        calls = self.cloud.requests(wanted, facts)
        if self.options["debug"]:
            self.log(self._shown(calls))
        if place := await self.cloud.home():
            await in_thread(places.remember, self.cloud.name, place)
        self.new.update(names)
        made: dict[str, VM] = {}
        try:
            for call in calls:
                vms = await self.cloud.create(call)
                self._made |= {vm.id: vm for vm in vms}
                made |= {vm.name: vm for vm in vms}
            return made
        except NameTaken:  # they are another launcher's
            self.new.difference_update(names)
            raise

    def _shown(self, calls: Sequence[planning.Request]) -> str:
        """The calls to come, as ``plan -o json`` shows them."""
        hidden = [*self.options.secrets(), *self.certificates.values()]
        return json.dumps(planning.render(planning.Plan(), calls, hidden)["create"], indent=2, default=str)

    async def sweep(self, names: set[str] | None = None) -> None:
        """Deletes every machine of this cluster, also those that other launchers added, or its own of these names."""
        await self.create.settled()
        found = await self._found()
        vms = [vm for vm in found if names is None or (vm.name in names and self._is_own(vm))]
        await self.cloud.delete(vms)
        await self._drop()
        self.removed += [vm.name for vm in vms]

    async def _found(self) -> list[VM]:
        """The cluster's machines; where they may be made but not be listed, those that this launcher made."""
        try:
            return await self.cloud.list(self.name)
        except CloudError:
            if not self._made:
                raise
            return list(self._made.values())

    def _is_own(self, vm: VM) -> bool:
        return vm.role != "scheduler" or vm.id in self._made
