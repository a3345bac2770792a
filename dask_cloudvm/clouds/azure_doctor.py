"""Looks at everything a cluster on Azure needs, one line a thing: ok, or what to do. Makes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dask_cloudvm.clouds import azure_errors, azure_identity, azure_network, azure_options, azure_policy
from dask_cloudvm.clouds.azure_facts import Reader, Type, offered
from dask_cloudvm.clouds.azure_network import Place
from dask_cloudvm.clouds.base import Check, Step, checks
from dask_cloudvm.errors import CloudError
from dask_cloudvm.schema import ROLES

if TYPE_CHECKING:
    from dask_cloudvm.clouds.azure import Azure

DOING = "check the subscription"
PROVIDERS = ("Microsoft.Compute", "Microsoft.Network")
IDENTITIES = "Microsoft.ManagedIdentity"  # where machines share one
# Every quota that an address of ours counts against; a subscription has some of them.
ADDRESSES = (
    "IPv4StandardSkuPublicIpAddresses",
    "PublicIPAddresses",
    "StandardSkuPublicIpAddresses",
    "StaticPublicIPAddresses",
)


class Doctor:
    """The checks for one Azure cloud."""

    def __init__(self, cloud: Azure) -> None:
        self.cloud, self.session, self.values = cloud, cloud.session, cloud.values
        self.reader = Reader(self.values, self.session)
        self.place_: Place | None = None
        self.types: Mapping[str, Type] = {}
        self.makes = True  # parts that clusters share, as far as is known

    async def run(self) -> list[Check]:
        """Every check in turn; what needs an earlier one that failed is left out."""
        steps: list[Step] = [
            ("options", self.options),
            ("credentials", self.credentials),
            ("subscription", self.subscription),
            ("providers", self.providers),
            ("place", self.place),
            ("machine types", self.machine_types),
            ("image", self.image),
            ("network", self.network),
            ("permissions", self.permissions),
            ("quota", self.quota),
            ("removal", self.removal),
        ]
        return await checks(steps, ("options", "credentials", "subscription", "place"))

    @property
    def _place(self) -> Place:
        assert self.place_ is not None
        return self.place_

    async def options(self) -> str:
        azure_options.check(self.values)
        return f"machines in {self.values['region'] or 'the region of the resource group'}"

    async def credentials(self) -> str:
        return await self.session.account() or "there are some"

    async def subscription(self) -> str:
        return await self.session.subscription()

    async def providers(self) -> str:
        """https://learn.microsoft.com/en-us/rest/api/resources/providers/get"""
        needed = [*PROVIDERS, *([IDENTITIES] if azure_identity.chosen(self.values) is None else [])]
        for name in needed:
            found = await self.session.get(f"{await self.session.root()}/providers/{name}", DOING)
            if (state := found.get("registrationState")) not in ("Registered", "Registering"):
                hint = f"register it by: az provider register --namespace {name}"
                raise CloudError(doing=DOING, what=f"{name} is {state}", hint=hint)
        return f"{', '.join(needed)} are registered"

    async def place(self) -> str:
        self.place_ = await self.reader.place(None)
        made = "" if self._place.exists else ", to be made"
        return f"{self._place.region}, resource group {self._place.group}{made}"

    async def machine_types(self) -> str:
        self.types = await self.reader.types(self._place)
        return "; ".join([", ".join(f"{t.name} ({_describe(t)})" for t in self.types.values()), *self.reader.notes])

    async def image(self) -> str:
        if not self.types:
            return "not looked for"
        images = await self.reader.images(self.types, self._place)
        return ", ".join(sorted({str(image) for image in images.values()}))

    async def network(self) -> str:
        network = await azure_network.read(self.values, self.session, self._place, None)
        shared = [path.split("/")[-1] for path, _ in network.setup]
        self.makes = bool(shared)
        made = f"to be made: {', '.join(shared)}" if shared else "all is there"
        way = azure_options.outbound(self.values)
        return f"{network.subnet}; {made}; workers reach the internet by {way}"

    async def permissions(self) -> str:
        """https://learn.microsoft.com/en-us/rest/api/authorization/permissions/list-for-resource-group"""
        scope = self._place.path if self._place.exists else self._place.root
        granted = await self.session.pages(f"{scope}/providers/Microsoft.Authorization/permissions", DOING)
        parts = azure_policy.policies(None)
        needed = ("setup", "ongoing") if self.makes or not self._place.exists else ("ongoing",)
        gateway = azure_options.outbound(self.values) == "nat_gateway"
        actions = {action for part in needed for action in parts[part]["Actions"]}
        wanted = sorted(action for action in actions if gateway or "/natGateways/" not in action)
        if missing := [action for action in wanted if not azure_identity.allows(granted, action)]:
            what = f"{len(missing)} of {len(wanted)} are missing: {', '.join(missing)}"
            raise CloudError(doing=DOING, what=what, hint="'dask-cloudvm policy azure' prints roles that have them")
        return f"all {len(wanted)} are granted"

    async def quota(self) -> str:
        """vCPUs of the profile's first choices against what the region has left, and public addresses.

        https://learn.microsoft.com/en-us/rest/api/compute/usage/list
        """
        if not self.types:
            return "not looked at"
        where = f"locations/{self._place.region}/usages"
        listed = await self.session.pages(f"{self._place.root}/providers/Microsoft.Compute/{where}", DOING)
        listed += await self.session.pages(f"{self._place.root}/{azure_network.NETWORK}/{where}", DOING)
        left = {each["name"]["value"].lower(): int(each["limit"] - each["currentValue"]) for each in listed}
        wanted = {name: n for name, n in self.wanted().items() if name not in ADDRESSES or name.lower() in left}
        for name, number in wanted.items():
            if number > left.get(name.lower(), number):
                what = f"{number} of {name} are wanted in {self._place.region}, {left[name.lower()]} are left"
                raise CloudError(doing=DOING, what=what, hint=azure_errors.hint_of_quota(name))
        return ", ".join(f"{number} of {left.get(name.lower(), '?')} left ({name})" for name, number in wanted.items())

    def wanted(self) -> dict[str, int]:
        """What the profile's first choices use up, by the quota's name."""
        found: dict[str, int] = {}
        for role, n in (("scheduler", 1), ("worker", self._workers())):
            type = offered(self.cloud.roles[role], self.types)[0]
            spot = bool(self.values["spot"]) and role == "worker"
            for name in ["lowPriorityCores"] if spot else ["cores", type.family]:
                found[name] = found.get(name, 0) + n * type.vcpus
            for name in ADDRESSES if azure_options.public_ip(self.values, role) else ():
                found[name] = found.get(name, 0) + n
        return found

    def _workers(self) -> int:
        return max(int(self.values["n_workers"]), int((self.values["adaptive"] or {}).get("maximum", 0)))

    async def removal(self) -> str:
        """Whether a machine deletes itself, as far as the role assignments of its identity tell."""
        shared = await azure_identity.read(self.values, self.session, self._place, None)
        if shared.id or not self.values["auto_shutdown"]:
            return shared.note
        ids = {id for role in ROLES for id in azure_options.acting(self.cloud.roles[role])}
        if not ids:
            raise CloudError(doing=DOING, what=shared.note, hint=_GRANT)
        if "" in ids and len(ids) == 1:
            what = "machines have an identity of their own each, which nobody can grant anything before they exist"
            raise CloudError(doing=DOING, what=what, hint=f"use a user-assigned one; {_GRANT}")
        found = {await self._ends(id) for id in sorted(ids - {""})}
        return next(text for text in reversed(_ENDS.values()) if text in found)

    async def _ends(self, id: str) -> str:
        """What an identity lets a machine do to itself."""
        granted = await self._granted(id)
        for action, text in _ENDS.items():
            if azure_identity.allows(granted, action):
                return text
        what = f"identity {id.split('/')[-1]} may not delete machines in {self._place.group}: they would be billed on"
        raise CloudError(doing=DOING, what=what, hint=_GRANT)

    async def _granted(self, id: str) -> list[Mapping[str, Any]]:
        """The permissions of an identity where machines are.

        https://learn.microsoft.com/en-us/rest/api/authorization/role-assignments/list-for-scope
        """
        found = await self.session.find(id, DOING)
        if found is None:
            raise CloudError(doing=DOING, what=f"there is no identity {id}", hint="change identity")
        roles = f"{self._place.root}/providers/Microsoft.Authorization"
        query = {"$filter": f"assignedTo('{found['properties']['principalId']}')"}
        permissions: list[Mapping[str, Any]] = []
        for each in await self.session.pages(f"{roles}/roleAssignments", DOING, query):
            inside = each["properties"]
            if azure_identity.covers(inside["scope"], self._place.path):
                name = inside["roleDefinitionId"].split("/")[-1]
                role = await self.session.get(f"{roles}/roleDefinitions/{name}", DOING)
                permissions += role["properties"]["permissions"]
        return permissions


# What a machine may do to itself, the best first.
_ENDS = {azure_policy.DELETE: azure_identity.DELETE, azure_policy.DEALLOCATE: azure_identity.DEALLOCATE}
_GRANT = (
    "give machines a user-assigned identity by the option identity, with the role that "
    "'dask-cloudvm policy azure --part machines' prints; or pay for machines until you take them down"
)


def _describe(type: Type) -> str:
    gpus = f", {type.gpus} GPU" if type.gpus else ""
    return f"{type.vcpus} CPUs, {type.memory:g} GiB{gpus}, {type.architecture}"
