"""Looks at everything a cluster on EC2 needs, one line a thing: ok, or what to do. Makes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from dask_cloudvm import plan as planning
from dask_cloudvm.clouds import ec2_errors, ec2_requests
from dask_cloudvm.clouds.base import Check, Cloud, Step, checks
from dask_cloudvm.clouds.common import listed
from dask_cloudvm.clouds.ec2_facts import EC2Facts, Type
from dask_cloudvm.clouds.ec2_reader import Reader
from dask_cloudvm.errors import CloudError, CloudVMError
from dask_cloudvm.options import Options

if TYPE_CHECKING:
    from dask_cloudvm.clouds.ec2 import EC2

NAME = "doctor"
DOING = "check permissions"
# https://docs.aws.amazon.com/ec2/latest/instancetypes/ec2-instance-quotas.html: first letters -> on-demand, spot
QUOTAS = {
    **dict.fromkeys("acdhimrtz", ("L-1216C47A", "L-34B43A08")),
    **dict.fromkeys(("g", "gr", "vt"), ("L-DB2E81BA", "L-3819A6DF")),
    "p": ("L-417A185B", "L-7212CCBC"),
    "f": ("L-74FC7D96", "L-88CF9481"),
    "x": ("L-7295265B", "L-E3A00192"),
    "inf": ("L-1945791B", "L-B5D1601B"),
    "trn": ("L-2C3B7624", "L-6B0D517C"),
    "dl": ("L-6E869C2A", "L-85EED4F7"),
}


class Doctor:
    """The checks for one EC2 cloud."""

    def __init__(self, cloud: EC2) -> None:
        self.cloud, self.session, self.values = cloud, cloud.session, cloud.values
        self.reader = Reader(cloud.values, cloud.session)
        self.types: Mapping[str, Type] = {}
        self.facts: EC2Facts | None = None

    async def run(self) -> list[Check]:
        """Every check in turn; what needs an earlier one that failed is left out."""
        steps: list[Step] = [
            ("region", self.session.region),
            ("credentials", self.identity),
            ("machine types", self.machine_types),
            ("image", self.image),
            ("network", self.network),
            ("firewall", self.firewall),
        ]
        found = await checks(steps, ("region", "credentials"))
        if all(check.ok for check in found):
            self.facts = await self.cloud.facts(None)
            found += await checks([("zones", self.zones), ("permissions", self.permissions), ("quota", self.quota)])
        return found

    async def identity(self) -> str:
        answer = await self.session.call("sts", "get_caller_identity", "find out who you are")
        return str(answer["Arn"])

    async def machine_types(self) -> str:
        self.types = await self.reader.types()
        return ", ".join(f"{t.name} ({_describe(t)})" for t in self.types.values())

    async def image(self) -> str:
        images = await self.reader.images(self.types, await self.reader.newest()) if self.types else {}
        return ", ".join(sorted({image.id for image in images.values()})) or "not looked for"

    async def network(self) -> str:
        vpc, subnets, groups = await self.reader.network(None)
        zones = sorted({subnet.zone for of_role in subnets.values() for subnet in of_role})
        own = f", security group {', '.join(groups)}" if groups else ""
        return f"{vpc} with subnets in {', '.join(zones)}{own}"

    async def firewall(self) -> str:
        if self.values["security_group"]:
            return "as the security groups say"
        ports = ", ".join(map(str, self.values["firewall"].get("ports", [])))
        return f"ports {ports} from {', '.join(await self.reader.networks())}"

    async def zones(self) -> str:
        """Whether each role has a place; RunInstances' own checks come with the permissions."""
        bodies = [body for request in self.requests() for body in ec2_requests.bodies(request)]
        return f"{len({ec2_requests.place(b) for b in bodies if 'InstanceType' in b})} places to try"

    async def permissions(self) -> str:
        """https://docs.aws.amazon.com/AWSEC2/latest/APIReference/CommonParameters.html: DryRun"""
        asked = []
        for request in self.requests():
            if request.operation == ec2_requests.RULES:
                continue  # there is no group yet to ask about
            operation = {ec2_requests.RUN: "run_instances"}.get(request.operation, "create_security_group")
            await self.dry_run(operation, self.sendable(request.body))
            asked.append(request.operation)
        return f"{', '.join(dict.fromkeys(asked))} allowed"

    def requests(self) -> list[planning.Request]:
        """What ``up`` would send."""
        facts = self.facts
        assert facts is not None
        options = Options("ec2", self.values, {})
        found: list[planning.Request] = []
        for role, names in (("scheduler", [f"{NAME}-scheduler"]), ("worker", [f"{NAME}-worker-aaaaaa-0"])):
            cloud = cast("Cloud", self.cloud)
            machines = planning.machines(options, cloud, facts, NAME, role, names, certificates={})
            found += ec2_requests.requests(machines, facts)
        return found

    def sendable(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A body that refers to nothing which is still to be made."""
        if "NetworkInterfaces" not in body:
            return dict(body)
        first = {k: v for k, v in body["NetworkInterfaces"][0].items() if k != "Groups" or "<" not in v[0]}
        return {**body, "NetworkInterfaces": [first, *body["NetworkInterfaces"][1:]]}

    async def dry_run(self, operation: str, body: Mapping[str, Any]) -> None:
        try:
            await self.session.call("ec2", operation, DOING, **{**body, "DryRun": True})
        except CloudVMError as error:
            if ec2_errors.code(error) not in ("DryRunOperation", "InvalidGroup.Duplicate"):
                raise

    async def quota(self) -> str:
        """vCPUs of the profile's first choices, and of what runs, against the limit of each family."""
        wanted: dict[str, int] = {}
        for role, n in (("scheduler", 1), ("worker", self.workers())):
            type = self.types[listed(self.reader.roles[role]["machine_type"])[0]]
            code = quota_code(type.name, bool(self.values["spot"]) and role == "worker")
            wanted[code] = wanted.get(code, 0) + n * type.vcpus
        lines = []
        for code, vcpus in wanted.items():
            answer = await self.session.call(
                "service-quotas", "get_service_quota", "read the quota", ServiceCode="ec2", QuotaCode=code
            )
            limit = int(answer["Quota"]["Value"])
            if vcpus > limit:
                what = f"{vcpus} vCPUs are wanted, the quota {code} is {limit}"
                hint = ec2_errors.HINTS["VcpuLimitExceeded"]
                raise CloudError(doing="start the cluster", what=what, hint=hint)
            lines.append(f"{vcpus} of {limit} vCPUs ({code})")
        return ", ".join(lines)

    def workers(self) -> int:
        return max(int(self.values["n_workers"]), int((self.values["adaptive"] or {}).get("maximum", 0)))


def quota_code(type: str, spot: bool) -> str:
    """The code of the quota that counts the vCPUs of a machine type."""
    family = type[: next((i for i, c in enumerate(type) if not c.isalpha()), len(type))]
    known = QUOTAS.get(family) or QUOTAS.get(family[:1]) or QUOTAS["m"]
    return known[spot]


def _describe(type: Type) -> str:
    gpus = f", {type.gpus} GPU" if type.gpus else ""
    return f"{type.vcpus} vCPU, {type.memory / 1024:g} GiB{gpus}, {type.architecture}"
