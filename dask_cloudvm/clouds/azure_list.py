"""What exists, in a number of calls that does not depend on how much there is.

Azure lists machines, how they run, their network cards and their addresses apart, and filters none of it by tag.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from dask_cloudvm.clouds import azure_errors
from dask_cloudvm.clouds import azure_requests as wire
from dask_cloudvm.clouds.azure_network import NETWORK
from dask_cloudvm.clouds.azure_options import TAG
from dask_cloudvm.clouds.azure_session import Session
from dask_cloudvm.clouds.base import VM, VMs
from dask_cloudvm.errors import CloudError

WHY = "list machines"


class Lister:
    """Lists a subscription; or only ``group`` where its user may not see more than that."""

    def __init__(self, session: Session, group: str | None) -> None:
        self.session, self.group = session, group
        self.hidden: CloudError | None = None  # why the last list had no addresses

    async def list(self, cluster: str | None) -> VMs:
        """The machines of one cluster or of all; without addresses where their user may not see those.

        So they can be removed all the same.
        https://learn.microsoft.com/en-us/rest/api/compute/virtual-machines/list-all
        """
        scope, self.hidden = await self.session.root(), None
        try:
            listed = await self.machines(scope)
        except CloudError as error:
            if not azure_errors.denied(error) or not self.group:
                raise
            scope = f"{scope}/resourceGroups/{self.group}"
            listed = await self.machines(scope)
        ours = [each for each in listed if _of(each, cluster)]
        try:
            return await self.described(ours, scope)
        except CloudError as error:
            if not azure_errors.denied(error):
                raise
            self.hidden = error
            return [vm for machine in ours if (vm := wire.machine_of(machine))]

    async def machines(self, scope: str) -> Sequence[Any]:
        """Every virtual machine below a path, without its addresses."""
        return await self.session.pages(f"{scope}/{wire.COMPUTE}/virtualMachines", WHY)

    async def described(self, machines: Sequence[Any], scope: str) -> VMs:
        """Virtual machines with how they run and their addresses."""
        if not machines:
            return []
        power, cards, addresses = await asyncio.gather(
            self._power(scope),
            self.session.pages(f"{scope}/{NETWORK}/networkInterfaces", WHY),
            self.session.pages(f"{scope}/{NETWORK}/publicIPAddresses", WHY),
        )
        public = {each["id"].lower(): each["properties"].get("ipAddress") for each in addresses}
        by_machine = {_machine(card): card["properties"]["ipConfigurations"][0]["properties"] for card in cards}
        found: list[VM | None] = []
        for machine in machines:
            id = machine["id"].lower()
            address = by_machine.get(id, {})
            outside = public.get((address.get("publicIPAddress") or {}).get("id", "").lower())
            found.append(
                wire.machine_of(machine, power.get(id, ""), address.get("privateIPAddress") or "", outside or None)
            )
        return [vm for vm in found if vm]

    async def _power(self, scope: str) -> dict[str, str]:
        """Whether machines run; a group alone cannot tell, there what was made counts as running."""
        if "/resourceGroups/" in scope:
            return {}
        path = f"{scope}/{wire.COMPUTE}/virtualMachines"
        listed = await self.session.pages(path, WHY, {"statusOnly": "true"})
        return {each["id"].lower(): _state(each) for each in listed}


def _of(machine: Mapping[str, Any], cluster: str | None) -> bool:
    found = (machine.get("tags") or {}).get(f"{TAG}cluster")
    return bool(found) if cluster is None else found == cluster


def _machine(card: Mapping[str, Any]) -> str:
    """The id of the machine that a network card is in, ``""`` where it is in none."""
    return str((card["properties"].get("virtualMachine") or {}).get("id", "")).lower()


def _state(machine: Mapping[str, Any]) -> str:
    """``running`` of ``PowerState/running``"""
    statuses = (machine["properties"].get("instanceView") or {}).get("statuses") or ()
    codes = [str(each.get("code", "")).partition("/") for each in statuses]
    return next((rest.lower() for kind, _, rest in codes if kind == "PowerState"), "")
