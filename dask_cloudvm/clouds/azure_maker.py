"""Makes the machines of a request: one call each, some at once, and looks at all of them together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dask_cloudvm.clouds import azure_errors
from dask_cloudvm.clouds import azure_requests as wire
from dask_cloudvm.clouds.azure_list import Lister
from dask_cloudvm.clouds.azure_options import TAG
from dask_cloudvm.clouds.azure_session import LOOK, Session, operation_of
from dask_cloudvm.clouds.base import VMs
from dask_cloudvm.errors import CloudError, NameTaken
from dask_cloudvm.plan import Request

LIMIT = 900.0  # seconds for machines to be there, or to be gone
CREATE = "make machines"
ONCE = {"If-None-Match": "*"}  # makes a machine, and never changes one
Errors = dict[str, CloudError]


class Maker:
    """Makes the machines of one request."""

    def __init__(self, session: Session, lister: Lister, request: Request) -> None:
        self.session, self.lister, self.request = session, lister, request
        self.url = request.body["url"]
        self.group = self.url.partition(f"/{wire.COMPUTE}/")[0]  # path of the resource group
        self.shortfall = ""

    async def make(self) -> VMs:
        """Asks one place after the other until every name has its machine."""
        made: dict[str, Any] = {}
        reasons: dict[str, CloudError] = {}
        for body in wire.bodies(self.request):
            left = [name for name in self.request.names if name not in made]
            if not left:
                break
            if reasons:
                await self._gone(left)
            new, errors = await self._ask_twice(body, left)
            made |= new
            if not errors:
                continue
            worst = [error for error in errors.values() if not azure_errors.of_place(error)]
            reasons[wire.place(body)] = next(iter(worst or errors.values()))
            if worst and not made:
                raise worst[0]
            if worst:
                break  # what was made must not be lost for what went wrong afterwards
        self.shortfall = "" if len(made) == len(self.request.names) else _why(reasons)
        machines = [made[name] for name in self.request.names if name in made]
        return await self.lister.described(machines, self.group)

    async def _ask_twice(self, body: Mapping[str, Any], names: Sequence[str]) -> tuple[dict[str, Any], Errors]:
        """Where single machines had bad luck, they are asked for once more."""
        made, errors = await self._ask(body, names)
        if again := [name for name, error in errors.items() if azure_errors.unlucky(error, bool(made))]:
            await self._gone(again)
            more, others = await self._ask(body, again)
            made, errors = {**made, **more}, {k: v for k, v in {**errors, **others}.items() if k not in more}
        return made, errors

    async def _ask(self, body: Mapping[str, Any], names: Sequence[str]) -> tuple[dict[str, Any], Errors]:
        """The machines that there are in the end, and why there are not more; of those nothing is left over."""
        packed = wire.sent(body)["resource"]
        begun: dict[str, str | None] = {}
        errors: Errors = {}
        doubtful: list[str] = []

        async def one(name: str) -> None:
            if stop := next((error for error in errors.values() if _for_all(error)), None):
                errors[name] = stop
                return
            try:
                begun[name] = await self._begin(wire.for_name(packed, name), name)
            except CloudError as error:
                errors[name] = error
                if azure_errors.doubtful(error):
                    doubtful.append(name)

        failures = await self.session.each(names, one)
        made, failed = await self._settled(begun)
        await self.session.each(list(failed), self._remove)
        await self.session.each(doubtful, lambda name: self._undo(packed, name))
        if failures:
            raise failures[0]
        return made, {**errors, **failed}

    # One machine

    def _path(self, name: str) -> str:
        return f"{self.group}/{wire.COMPUTE}/virtualMachines/{name}"

    async def _begin(self, resource: Mapping[str, Any], name: str) -> str | None:
        """Where to ask how it went. Raises NameTaken where there is another's machine of this name."""
        url, deadline, pause = wire.for_name(self.url, name), time.monotonic() + LIMIT, LOOK[0]
        while True:
            try:
                return operation_of(await self.session.call("PUT", url, CREATE, body=resource, headers=ONCE))
            except CloudError as error:
                if not (azure_errors.taken(error) or azure_errors.busy(error)):
                    raise
                if time.monotonic() > deadline:
                    raise
            if await self._is_ours(resource, name):
                return None
            await asyncio.sleep(pause)
            pause = min(1.3 * pause, LOOK[1])

    async def _is_ours(self, resource: Mapping[str, Any], name: str) -> bool:
        """Whether this launcher has made it, as where an answer was lost. What has ended is removed on the way."""
        found = await self.session.find(self._path(name), CREATE, **{"$expand": "instanceView"})
        vm = wire.machine_of(found, _power(found)) if found else None
        if found is None:
            return False
        if _same_launcher(found, resource):
            return True
        if vm is None or vm.alive:
            raise NameTaken(name=resource["tags"][f"{TAG}cluster"])
        if found["properties"].get("provisioningState") != "Deleting":
            await self._remove(name)
        return False

    async def _undo(self, resource: Mapping[str, Any], name: str) -> None:
        """Removes what was made in spite of an error, but no machine of another launcher."""
        found = await self.session.find(self._path(name), CREATE)
        if found and _same_launcher(found, resource):
            await self._remove(name)

    async def _remove(self, name: str) -> None:
        try:
            await self.session.call("DELETE", self._path(name), CREATE, query={"forceDeletion": "true"})
        except CloudError as error:
            if not azure_errors.gone(error):
                raise

    # All together

    async def _settled(self, begun: Mapping[str, str | None]) -> tuple[dict[str, Any], Errors]:
        """Looks until each machine runs or has failed."""
        made: dict[str, Any] = {}
        failed: Errors = {}
        deadline, pause = time.monotonic() + LIMIT, LOOK[0]
        while waiting := [name for name in begun if name not in made and name not in failed]:
            listed = {each["name"]: each for each in await self.lister.machines(self.group)}
            states = {name: _provisioning(listed.get(name)) for name in waiting}
            made |= {name: listed[name] for name, state in states.items() if state == "Succeeded"}
            doubtful = [name for name in waiting if states[name] not in ("Succeeded", "Creating", "Updating")]
            reasons = await asyncio.gather(*(self._reason(name, begun[name], listed.get(name)) for name in doubtful))
            failed |= {name: reason for name, reason in zip(doubtful, reasons, strict=True) if reason}
            if time.monotonic() > deadline:
                what = f"it is not ready after {LIMIT:g} seconds"
                late = CloudError(doing=CREATE, what=what, hint="change zone or machine_type (vm_size)", code="Late")
                failed |= {name: late for name in waiting if name not in made and name not in failed}
            elif len(made) + len(failed) < len(begun):
                await asyncio.sleep(pause)
                pause = min(1.3 * pause, LOOK[1])
        return made, failed

    async def _reason(self, name: str, link: str | None, machine: Any) -> CloudError | None:
        """Why a machine failed, which only its operation or itself can tell; None where it may still come."""
        error = await self.session.outcome(link, CREATE) if link else None
        if error or (link and machine is None):
            return error
        found = await self.session.find(self._path(name), CREATE, **{"$expand": "instanceView"})
        return azure_errors.of_statuses(_statuses(found) if found else [], CREATE)

    async def _gone(self, names: Sequence[str]) -> None:
        """Waits until what failed is gone, since its name is to be used again."""
        deadline, pause = time.monotonic() + LIMIT, LOOK[0]
        while {each["name"] for each in await self.lister.machines(self.group)} & set(names):
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(pause)
            pause = min(1.3 * pause, LOOK[1])


def _for_all(error: CloudError) -> bool:
    """Whether what is wrong for one machine is wrong for all."""
    return not (azure_errors.of_place(error) or azure_errors.unlucky(error, others=True))


def _same_launcher(machine: Mapping[str, Any], resource: Mapping[str, Any]) -> bool:
    launcher = f"{TAG}launcher"
    return bool((machine.get("tags") or {}).get(launcher) == resource["tags"][launcher])


def _provisioning(machine: Any) -> str:
    return str(machine["properties"].get("provisioningState", "")) if machine else "missing"


def _statuses(machine: Mapping[str, Any]) -> list[Any]:
    return list((machine["properties"].get("instanceView") or {}).get("statuses") or ())


def _power(machine: Mapping[str, Any]) -> str:
    codes = [str(each.get("code", "")) for each in _statuses(machine)]
    return next((code.partition("/")[2].lower() for code in codes if code.startswith("PowerState/")), "")


def _why(reasons: Mapping[str, CloudError]) -> str:
    """``Standard_D4s_v5 in eastus: ... (AllocationFailed); give more entries in zone ...``"""
    said = [f"{place}: {error.facts['what']}" for place, error in reasons.items()]
    hint = list(reasons.values())[-1].facts["hint"] if reasons else "try again"
    return f"{'; '.join(said)}; {hint}"
