"""Looks at everything a cluster on Compute Engine needs, one line a thing: ok, or what to do. Makes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dask_cloudvm.clouds import common, gcp_errors, gcp_facts, gcp_network, gcp_options, gcp_policy
from dask_cloudvm.clouds.base import Check, Step, checks
from dask_cloudvm.clouds.gcp_facts import Reader, Type
from dask_cloudvm.errors import CloudError

if TYPE_CHECKING:
    from dask_cloudvm.clouds.gcp import GCP

DOING = "check the project"
MANAGER = "cloudresourcemanager.googleapis.com"


class Doctor:
    """The checks for one GCP cloud."""

    def __init__(self, cloud: GCP) -> None:
        self.cloud, self.session, self.values = cloud, cloud.session, cloud.values
        self.types: Mapping[str, Type] = {}
        self.account = ""  # e-mail address of the machines' service account

    async def run(self) -> list[Check]:
        """Every check in turn; what needs an earlier one that failed is left out."""
        steps: list[Step] = [
            ("options", self.options),
            ("credentials", self.credentials),
            ("project", self.project),
            ("machine types", self.machine_types),
            ("image", self.image),
            ("network", self.network),
            ("permissions", self.permissions),
            ("quota", self.quota),
            ("removal", self.removal),
        ]
        return await checks(steps, ("options", "credentials", "project"))

    async def options(self) -> str:
        gcp_options.check(self.values)
        region, zones = gcp_facts.places(self.values)
        return f"machines in {', '.join(zones) or f'any zone of {region}'}"

    async def credentials(self) -> str:
        return await self.session.account() or "of a user"

    async def project(self) -> str:
        """The first call: shows whether the API is enabled."""
        project = await self.session.project()
        answer = await self.session.call("projects.get", DOING, fields="defaultServiceAccount")
        self.account = answer.get("defaultServiceAccount", "")
        if self.values["service_account"] not in ("default", None):
            self.account = self.values["service_account"]
        return project

    async def machine_types(self) -> str:
        self.types = await Reader(self.values, self.session).types()
        return ", ".join(f"{t.name} ({_describe(t)})" for t in self.types.values())

    async def image(self) -> str:
        if not self.types:
            return "not looked for"
        images = await Reader(self.values, self.session).images(self.types, await self.session.project())
        return ", ".join(sorted({image.path for image in images.values()}))

    async def network(self) -> str:
        region, _ = gcp_facts.places(self.values)
        network = await gcp_network.read(self.values, self.session, region, None)
        ports = ", ".join(map(str, common.open_ports(self.values)))
        opened = "rules to be made" if network.rules else "rules are there"
        return f"{network.subnetwork or network.network}; ports {ports}: {opened}"

    async def permissions(self) -> str:
        """https://cloud.google.com/resource-manager/reference/rest/v1/projects/testIamPermissions"""
        parts = gcp_policy.policies()
        wanted = [p for part in ("setup", "ongoing") for p in parts[part]["includedPermissions"]]
        try:
            answer = await self.session.call("manager.testIamPermissions", DOING, resource={"permissions": wanted})
        except CloudError as error:
            if gcp_errors.code(error) in gcp_errors.DISABLED:
                return f"not looked at, since {MANAGER} is not enabled"
            raise
        if missing := sorted(set(wanted) - set(answer.get("permissions", ()))):
            what = f"{len(missing)} of {len(wanted)} are missing: {', '.join(missing)}"
            raise CloudError(doing=DOING, what=what, hint="'dask-cloudvm policy gcp' prints roles that have them")
        return f"all {len(wanted)} are granted"

    async def quota(self) -> str:
        """CPUs of the profile's first choices against what the region has left."""
        if not self.types:
            return "not looked at"
        region, _ = gcp_facts.places(self.values)
        answer = await self.session.call("regions.get", DOING, region=region, fields="quotas")
        left = {q["metric"]: int(q["limit"] - q.get("usage", 0)) for q in answer.get("quotas", ())}
        wanted: dict[str, int] = {}
        for role, n in (("scheduler", 1), ("worker", self._workers())):
            type = self.types[common.listed(self.cloud.roles[role]["machine_type"])[0]]
            metric = _metric(type.name, bool(self.values["spot"]) and role == "worker", left)
            wanted[metric] = wanted.get(metric, 0) + n * type.vcpus
        for metric, cpus in wanted.items():
            if cpus > left.get(metric, cpus):
                what = f"{cpus} CPUs are wanted, the quota {metric} of {region} has {left[metric]} left"
                hint = "ask for more at the console's page IAM > Quotas, or use fewer or smaller machines"
                raise CloudError(doing=DOING, what=what, hint=hint)
        return ", ".join(f"{cpus} of {left.get(metric, '?')} left ({metric})" for metric, cpus in wanted.items())

    def _workers(self) -> int:
        return max(int(self.values["n_workers"]), int((self.values["adaptive"] or {}).get("maximum", 0)))

    async def removal(self) -> str:
        """Whether a machine deletes itself or stops, as far as the project's own IAM policy tells."""
        if not gcp_options.deletes_itself(self.values):
            return gcp_options.ending(self.values)
        try:
            policy = await self.session.call("manager.getIamPolicy", DOING, resource={})
        except CloudError as error:
            return f"{gcp_options.ending(self.values)}; the project's policy cannot be read: {error.facts['what']}"
        member = f"serviceAccount:{self.account}"
        roles = {b["role"] for b in policy.get("bindings", ()) if member in b.get("members", ())}
        if found := sorted(roles & gcp_policy.WITH_DELETE):
            return f"machines delete themselves when Dask ends on them: {self.account} has {found[0]}"
        if custom := sorted(role for role in roles if not role.startswith("roles/")):
            return f"machines delete themselves if {', '.join(custom)} has {gcp_policy.DELETE}; else they stop"
        what = f"machines stop when Dask ends on them, since {self.account} has no role with {gcp_policy.DELETE}"
        hint = (
            "grant it one ('dask-cloudvm policy gcp --part machines'), or pay for their disks until you take them down"
        )
        raise CloudError(doing=DOING, what=what, hint=hint)


def _metric(type: str, spot: bool, known: Mapping[str, Any]) -> str:
    """The regional quota that counts a machine type's CPUs: https://cloud.google.com/compute/resource-usage"""
    if spot and "PREEMPTIBLE_CPUS" in known and known["PREEMPTIBLE_CPUS"] > 0:
        return "PREEMPTIBLE_CPUS"
    own = f"{type.partition('-')[0].upper()}_CPUS"
    return own if own in known else "CPUS"


def _describe(type: Type) -> str:
    gpus = f", {type.gpus} GPU" if type.gpus else ""
    return f"{type.vcpus} CPUs, {type.memory / 1024:g} GiB{gpus}, {type.architecture}"
