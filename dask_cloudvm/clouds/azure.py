"""Azure virtual machines: each is made by one call of its own, all are awaited together and found by their tags."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from dask_cloudvm import bootstrap, userdata
from dask_cloudvm.clouds import (
    azure_errors,
    azure_facts,
    azure_identity,
    azure_leftovers,
    azure_options,
    azure_policy,
    common,
)
from dask_cloudvm.clouds import azure_requests as wire
from dask_cloudvm.clouds.azure_facts import AzureFacts
from dask_cloudvm.clouds.azure_list import Lister
from dask_cloudvm.clouds.azure_maker import Maker
from dask_cloudvm.clouds.azure_session import LOOK, Session, looks_configured
from dask_cloudvm.clouds.base import ENDED, VM, Checks, Part, Parts, Requests, VMs
from dask_cloudvm.errors import CloudError
from dask_cloudvm.plan import Machine, Request

LIMIT = 900.0  # seconds for one thing that is shared
NEWS = 180.0  # seconds until all of Azure knows of a role or an identity that was just made
ENDING = 300.0  # seconds for which a machine whose deletion was accepted may still be listed as running
SHARE, DELETE = "make what clusters share", "remove machines"


class Azure:
    """Azure virtual machines for one set of options; see :class:`dask_cloudvm.clouds.base.Cloud` for each method."""

    name: ClassVar[str] = "azure"
    user_data_limit: ClassVar[int] = wire.LIMIT
    place: ClassVar[str] = "subscription_id"

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.roles = common.per_role("azure", values)
        self.session = Session(values["subscription_id"])
        self.shortfall = ""
        self.unseen: dict[str, CloudError] = {}
        self._lister = Lister(self.session, values["resource_group"])
        self._facts: dict[str | None, AzureFacts] = {}
        self._known: dict[str, str] = {}  # what stands in bodies for what is known later -> what it is
        self._may_grant = True  # roles, as far as nobody has refused it
        self._ending: dict[tuple[str, float], float] = {}  # machines whose deletion Azure has accepted, and when

    @staticmethod
    def usable() -> bool:
        return looks_configured()

    # What a plan needs

    def check(self) -> None:
        azure_options.check(self.values)

    async def facts(self, scheduler: VM | None) -> AzureFacts:
        self.check()
        key = scheduler.id if scheduler else None
        if key not in self._facts:
            facts = await azure_facts.Reader(self.values, self.session).read(scheduler)
            wire.check(self.roles, facts)
            self._facts[key] = facts
        return self._facts[key]

    def offline(self) -> AzureFacts:
        self.check()
        return azure_facts.offline(self.values)

    def launch(self, facts: AzureFacts, certificates: Mapping[str, str], address: str, role: str) -> bootstrap.Launch:
        options = self.roles[role]
        if role == "scheduler":
            port = {} if "port" in options["scheduler_options"] else {"port": facts.port}
            return bootstrap.scheduler(options, certificates, python=userdata.PYTHON, extra=port)
        gpus = azure_facts.offered(options, facts.types)[0].gpus
        options = {**options, "worker_class": common.worker_class(options, gpus)}
        return bootstrap.worker(options, certificates, address, python=userdata.PYTHON)

    def requests(self, machines: Sequence[Machine], facts: AzureFacts) -> Requests:
        return wire.requests(machines, facts)

    # Making

    async def create(self, request: Request) -> VMs:
        if request.operation != wire.MACHINE:
            return await self._share(request.body)
        maker = Maker(self.session, self._lister, request)
        try:
            return await maker.make()
        finally:
            self.shortfall = maker.shortfall

    async def _share(self, body: Mapping[str, Any]) -> VMs:
        """Idempotent: where another launcher makes the same at this moment, it is made once more after that."""
        begun, body = time.monotonic(), wire.filled(body, self._known)
        grants = f"/{azure_identity.AUTHORIZATION}/" in body["url"]
        if grants and not self._may_grant:
            return []
        while error := await self._put(body):
            if azure_errors.code(error) == "RoleAssignmentExists":
                break
            if grants and error.facts.get("status") == 403:
                self._may_grant = False
                warnings.warn(f"{azure_identity.BILLED}: {error}", stacklevel=2)
                break
            if time.monotonic() - begun > _patience(error):
                raise error
            await asyncio.sleep(LOOK[0])
            if azure_errors.code(error) == azure_errors.SUPERSEDED and await self._is_made(body["url"], begun + LIMIT):
                break
        return []

    async def _is_made(self, url: str, deadline: float) -> bool:
        """Whether another launcher has made it: to make it once more would cancel that, and so on in turns."""
        while time.monotonic() < deadline:
            found = await self.session.find(url, SHARE)
            if found is None or (state := found["properties"].get("provisioningState")) != "Updating":
                return bool(found) and state == "Succeeded"
            await asyncio.sleep(LOOK[0])
        return False

    async def _put(self, body: Mapping[str, Any]) -> CloudError | None:
        try:
            answer = await self.session.call("PUT", body["url"], SHARE, body=body["resource"])
            self._learn(answer.body)
            return await self.session.finished(answer, SHARE, LIMIT)
        except CloudError as refused:
            return refused

    def _learn(self, made: Any) -> None:
        """Notes the principal of an identity."""
        if principal := ((made or {}).get("properties") or {}).get("principalId"):
            self._known |= {
                azure_identity.PRINCIPAL: principal,
                azure_identity.ASSIGNMENT: azure_identity.assignment(principal),
            }

    # What exists

    async def home(self) -> str:
        return await self.session.subscription()

    async def list(self, cluster: str | None = None) -> VMs:
        found = await self._lister.list(cluster)
        self._ending = {key: at for key, at in self._ending.items() if time.monotonic() - at < ENDING}
        return [replace(vm, state=ENDED) if (vm.id, vm.created) in self._ending else vm for vm in found]

    async def locate(self, vm: VM) -> VM:
        found = next((each for each in await self.list(vm.cluster) if each.id == vm.id), vm)
        if self._lister.hidden and not found.private_ip:
            raise self._lister.hidden
        return found

    async def delete(self, vms: Sequence[VM]) -> None:
        """Returns when Azure has accepted it; network card, address and disk go with each machine."""
        failures = await self.session.each(vms, self._delete)
        if failures:
            raise failures[0]

    async def _delete(self, vm: VM) -> None:
        """https://learn.microsoft.com/en-us/rest/api/compute/virtual-machines/delete"""
        try:
            await self.session.call("DELETE", vm.id, DELETE, query={"forceDeletion": "true"})
        except CloudError as error:
            if not azure_errors.gone(error):
                raise
        self._ending[vm.id, vm.created] = time.monotonic()

    async def widen(self) -> None:
        """A list has all regions of the subscription as it is."""

    async def parts(self) -> Parts:
        return await azure_leftovers.parts(self.session)

    async def remove(self, part: Part) -> bool:
        return await azure_leftovers.remove(part, self.session, LIMIT)

    async def console(self, vm: VM) -> str:
        """https://learn.microsoft.com/en-us/rest/api/compute/virtual-machines/retrieve-boot-diagnostics-data"""
        try:
            answer = await self.session.call("POST", f"{vm.id}/retrieveBootDiagnosticsData", "read the log")
            url = (answer.body or {}).get("serialConsoleLogBlobUri")
            return await self.session.text(url, "read the log") if url else ""
        except CloudError as error:
            return "" if azure_errors.gone(error) else f"({error})"

    # What it needs

    async def doctor(self) -> Checks:
        from dask_cloudvm.clouds.azure_doctor import Doctor

        return await Doctor(self).run()

    def policies(self, role: str | None) -> Mapping[str, Mapping[str, Any]]:
        return azure_policy.policies(self.values["subscription_id"])


def _patience(error: CloudError) -> float:
    """Seconds for which what failed so is tried again."""
    limits = {**dict.fromkeys(azure_errors.BUSY, LIMIT), **dict.fromkeys(azure_errors.NEW, NEWS)}
    return limits.get(azure_errors.code(error), 0.0)
