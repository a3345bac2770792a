"""The machines of one cluster on its cloud: named once, made and removed in bulk, remembered until they are undone."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence

from dask_cloudvm import plan as planning
from dask_cloudvm import schema, tls
from dask_cloudvm.batch import Batch
from dask_cloudvm.clouds.base import VM, Cloud, Facts
from dask_cloudvm.errors import NameTaken
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
        self.create: Batch[str, VM | None] = Batch(self._create)
        self._token, self._serial = secrets.token_hex(3), -1  # names are never used twice, by any launcher

    def next_worker(self) -> str:
        """A name for one more worker."""
        self._serial += 1
        return planning.worker_name(self.name, self._token, self._serial)

    async def _create(self, names: Sequence[str]) -> list[VM | None]:
        if self.facts is None:
            self.facts = await self.cloud.facts(self.scheduler)
        made: dict[str, VM] = {}
        first = planning.scheduler_name(self.name)
        for role in schema.ROLES:
            of_role = [name for name in names if (name == first) == (role == "scheduler")]
            if of_role:
                made |= await self._make(role, of_role, self.facts)
            if first in made and role == "scheduler":  # not before the name is known to be ours
                await in_thread(tls.save, self.name, self.certificates)
        if missing := len(names) - len(made):
            why = f" ({self.cloud.shortfall})" if self.cloud.shortfall else ""
            self.log(f"{missing} of {len(names)} machines could not be had now; going on without them{why}")
        return [made.get(name) for name in names]

    async def _make(self, role: str, names: Sequence[str], facts: Facts) -> dict[str, VM]:
        certificates, address = self.certificates, self.address
        wanted = planning.machines(
            self.options, self.cloud, facts, self.name, role, names, certificates=certificates, address=address
        )
        calls = self.cloud.requests(wanted, facts)
        if self.options["debug"]:
            self.log(self._shown(calls))
        self.new.update(names)
        try:
            return {vm.name: vm for call in calls for vm in await self.cloud.create(call)}
        except NameTaken:  # they are another launcher's
            self.new.difference_update(names)
            raise

    def _shown(self, calls: Sequence[planning.Request]) -> str:
        """The calls to come, as ``plan -o json`` shows them."""
        hidden = [*self.options.secrets(), *self.certificates.values()]
        return json.dumps(planning.render(planning.Plan(), calls, hidden)["create"], indent=2, default=str)

    async def sweep(self, names: set[str] | None = None) -> None:
        """Deletes every machine of this cluster, also those that other launchers added, or the given ones."""
        await self.create.settled()
        vms = [vm for vm in await self.cloud.list(self.name) if names is None or vm.name in names]
        await self.cloud.delete(vms)
        self.removed += [vm.name for vm in vms]
