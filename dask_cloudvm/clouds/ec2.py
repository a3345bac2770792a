"""Amazon EC2: machines are instances, made in bulk by RunInstances and found again by their tags."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from dask_cloudvm import bootstrap, userdata
from dask_cloudvm.clouds import ec2_errors, ec2_facts, ec2_leftovers, ec2_options, ec2_policy
from dask_cloudvm.clouds import ec2_requests as wire
from dask_cloudvm.clouds.base import PENDING, VM, Checks, Part, Parts, Requests, VMs
from dask_cloudvm.clouds.common import listed, per_role, worker_class
from dask_cloudvm.clouds.ec2_facts import EC2Facts
from dask_cloudvm.clouds.ec2_firewall import missing_rules
from dask_cloudvm.clouds.ec2_reader import Reader
from dask_cloudvm.clouds.ec2_session import Session, Sessions, looks_configured
from dask_cloudvm.errors import CloudError
from dask_cloudvm.plan import Machine, Request

LAG = 120.0  # seconds for which a new instance may be missing from what DescribeInstances shows
PATIENCE = 30.0  # seconds for something just made to be known everywhere
LOOK = 1.0  # seconds between two looks
REFILL = 2.0  # instances a second by which the rate limit of RunInstances recovers
DELETE = "remove machines"
CREATE = "make machines"
NO_GROUP = "InvalidGroup.NotFound"


class EC2:
    """Amazon EC2 for one set of options; see :class:`dask_cloudvm.clouds.base.Cloud` for each method."""

    name: ClassVar[str] = "ec2"
    user_data_limit: ClassVar[int] = wire.LIMIT
    place: ClassVar[str] = ""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.roles = per_role("ec2", values)
        self.sessions = Sessions(values["region"])
        self.session = self.sessions.main
        self.shortfall = ""
        self._facts: dict[str | None, EC2Facts] = {}
        self._groups: dict[str, str] = {}  # what stands for the id of a group made by this object -> its id
        self._fresh: dict[str, tuple[float, VM]] = {}  # made by this object a moment ago
        self._seen: set[str] = set()  # those of them that AWS has shown since
        self._clusters: set[str] = set()  # names of which this object has made or found machines
        self.unseen: dict[str, CloudError] = {}  # regions that could not be looked at the last time, and why
        self._room, self._room_at = float(wire.MOST), time.monotonic()  # of AWS's limit of instances at once

    @staticmethod
    def usable() -> bool:
        return looks_configured()

    # What a plan needs

    def check(self) -> None:
        ec2_options.check(self.values)

    async def facts(self, scheduler: VM | None) -> EC2Facts:
        self.check()
        key = scheduler.id if scheduler else None
        if scheduler is not None:  # its workers come to where it is
            self.session = await self.sessions.of(scheduler.zone)
        if key not in self._facts:
            self._facts[key] = await Reader(self.values, self.session).read(scheduler)
        return self._facts[key]

    def offline(self) -> EC2Facts:
        self.check()
        return ec2_facts.offline(self.values)

    def launch(self, facts: EC2Facts, certificates: Mapping[str, str], address: str, role: str) -> bootstrap.Launch:
        options = self.roles[role]
        if role == "scheduler":
            port = {} if "port" in options["scheduler_options"] else {"port": facts.port}
            return bootstrap.scheduler(options, certificates, python=userdata.PYTHON, extra=port)
        gpus = facts.types[listed(options["machine_type"])[0]].gpus
        options = {**options, "worker_class": worker_class(options, gpus)}
        return bootstrap.worker(options, certificates, address, python=userdata.PYTHON)

    def requests(self, machines: Sequence[Machine], facts: EC2Facts) -> Requests:
        return wire.requests(machines, facts)

    # Making

    async def create(self, request: Request) -> VMs:
        if request.operation == wire.GROUP:
            return await self._make_group(request.body)
        if request.operation == wire.RULES:
            return await self._open_group(request.body)
        return await self._run(request)

    async def _run(self, request: Request) -> VMs:
        """Asks one place after the other until every name has its machine."""
        made: dict[str, VM] = {}
        reasons: dict[str, CloudError | None] = {}
        for body in wire.bodies(request):
            left = [name for name in request.names if name not in made]
            if not left:
                break
            same = body == request.body and not made
            try:
                new = await self._run_instances(body if same else wire.for_names(body, left, body["ClientToken"]))
            except CloudError as error:
                reasons[wire.place(body)] = error
                if ec2_errors.code(error) in ec2_errors.CAPACITY | ec2_errors.QUOTA:
                    continue
                if not made:
                    raise
                break  # what was made must not be lost for what went wrong afterwards
            made |= {vm.name: vm for vm in new}
            if len(new) < len(left):
                reasons[wire.place(body)] = None
        self.shortfall = "" if len(made) == len(request.names) else _why(reasons)
        return [made[name] for name in request.names if name in made]

    async def _run_instances(self, body: Mapping[str, Any]) -> VMs:
        await self._pace(body["MaxCount"])
        try:
            answer = await self._once_known("run_instances", CREATE, NO_GROUP, self._sent(body))
        except CloudError as error:
            if ec2_errors.code(error) != NO_GROUP or not await self._remake_group(body):
                raise
            token = wire.client_token(body, body["ClientToken"])  # it is another call, to another group
            answer = await self._once_known("run_instances", CREATE, NO_GROUP, self._sent(body, ClientToken=token))
        self._room_at = time.monotonic()  # AWS counted somewhere between the call and its answer
        vms = [replace(vm, state=PENDING) for i in answer["Instances"] if (vm := wire.machine_of(i))]
        self._fresh |= {vm.id: (time.monotonic(), vm) for vm in vms}
        self._clusters |= {vm.cluster for vm in vms}
        return vms

    def _sent(self, body: Mapping[str, Any], **changes: Any) -> Mapping[str, Any]:
        first, *others = body["NetworkInterfaces"]
        first = {**first, "Groups": [self._groups.get(group, group) for group in first.get("Groups", ())]}
        packed = userdata.pack(body["UserData"])
        return {**body, "NetworkInterfaces": [first, *others], "UserData": packed, **changes}

    async def _remake_group(self, body: Mapping[str, Any]) -> bool:
        """Makes the shared group again that somebody's gc removed since it was looked up; False for other groups."""
        wanted = body["NetworkInterfaces"][0].get("Groups", ())
        lost = next((f.shared for f in self._facts.values() if f.shared and f.shared.reference in wanted), None)
        if lost is None:
            return False
        new = await Reader(self.values, self.session).shared(lost.vpc)
        for request in wire.group_requests(new):
            await self.create(request)
        self._groups[lost.reference] = self._groups.get(new.reference, new.reference)
        return True

    async def _pace(self, count: int) -> None:
        """Waits until AWS's limit of instances at once has room for ``count``, rather than being refused."""
        now = time.monotonic()
        self._room = min(float(wire.MOST), self._room + (now - self._room_at) * REFILL) - count
        self._room_at = now
        if self._room < 0:
            await asyncio.sleep(-self._room / REFILL)

    async def _once_known(self, operation: str, doing: str, unknown: str, parameters: Mapping[str, Any]) -> Any:
        """A call about something just made, which AWS may not know everywhere yet."""
        deadline = time.monotonic() + (PATIENCE if self._groups or self._fresh else 0)
        while True:
            try:
                return await self.session.call("ec2", operation, doing, **parameters)
            except CloudError as error:
                if ec2_errors.code(error) != unknown or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(LOOK)

    async def _make_group(self, body: Mapping[str, Any]) -> VMs:
        """Idempotent: where another launcher was faster, its group is taken."""
        reference, sent = f"<id of {body['GroupName']}>", ec2_leftovers.dated(body)
        try:
            answer = await self.session.call("ec2", "create_security_group", "make the security group", **sent)
            self._groups[reference] = answer["GroupId"]
        except CloudError as error:
            if ec2_errors.code(error) != "InvalidGroup.Duplicate":
                raise
            self._groups[reference] = (await self._group(VpcId=body["VpcId"], GroupName=body["GroupName"]))["GroupId"]
        return []

    async def _open_group(self, body: Mapping[str, Any]) -> VMs:
        id = self._groups.get(body["GroupId"], body["GroupId"])
        rules = [wire.to_itself(rule, id) for rule in body["IpPermissions"]]
        if await self._allow(id, rules):
            return []
        group = await self._group(GroupId=id)  # another launcher adds the same rules: only what is missing
        for rule in missing_rules(rules, group):
            await self._allow(id, [wire.to_itself(rule, id)])
        return []

    async def _allow(self, id: str, rules: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the rules are new."""
        body = {"GroupId": id, "IpPermissions": rules}
        try:
            await self._once_known("authorize_security_group_ingress", "open the security group", NO_GROUP, body)
        except CloudError as error:
            if ec2_errors.code(error) != "InvalidPermission.Duplicate":
                raise
            return False
        return True

    async def _group(self, **which: str) -> Mapping[str, Any]:
        names = {"VpcId": "vpc-id", "GroupName": "group-name", "GroupId": "group-id"}
        filters = [{"Name": names[key], "Values": [value]} for key, value in which.items()]
        deadline = time.monotonic() + PATIENCE
        while True:
            doing = "find the security group"
            found = await self.session.call("ec2", "describe_security_groups", doing, Filters=filters)
            if found["SecurityGroups"] or time.monotonic() > deadline:
                group: Mapping[str, Any] = found["SecurityGroups"][0]
                return group
            await asyncio.sleep(LOOK)

    # What exists

    async def home(self) -> str:
        return await self.session.region()

    async def list(self, cluster: str | None = None) -> VMs:
        filters = [wire.cluster_filter(cluster)]
        found, failures = await self.sessions.ask(lambda session: self._instances(session, filters))
        instances = [instance for of_region in found for instance in of_region]
        self._seen |= {instance["InstanceId"] for instance in instances} & set(self._fresh)
        self._fresh = {id: (at, vm) for id, (at, vm) in self._fresh.items() if time.monotonic() - at < LAG}
        new = [vm for id, (_, vm) in self._fresh.items() if id not in self._seen and cluster in (None, vm.cluster)]
        alive = [i for i in instances if i["State"]["Name"] not in ("shutting-down", "terminated")]
        vms = [vm for i in alive if (vm := wire.machine_of(i)) and cluster in (None, vm.cluster)] + new
        await self._tell(failures, cluster, bool(vms))
        self._clusters |= {vm.cluster for vm in vms}
        return vms

    async def _tell(self, failures: Mapping[str, CloudError], cluster: str | None, found: bool) -> None:
        """A cluster may be in a region that did not answer, unless that is closed to this user, who then has none."""
        closed = () if self.sessions.wide else ec2_errors.CLOSED
        main = await self.sessions.main.region() if failures else ""
        self.unseen = {r: e for r, e in failures.items() if r == main or ec2_errors.code(e) not in closed}
        if cluster in self._clusters:
            return
        for error in self.unseen.values():
            if cluster is not None and not found:
                raise error
            warnings.warn(str(error), stacklevel=2)

    async def _instances(self, session: Session, filters: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
        found = await session.pages(
            "describe_instances", "Reservations", "list machines", Filters=filters, MaxResults=1000
        )
        return [i for reservation in found for i in reservation["Instances"]]

    async def locate(self, vm: VM) -> VM:
        """A public address comes a moment after its machine."""
        deadline = time.monotonic() + PATIENCE
        which = [{"Name": "instance-id", "Values": [vm.id]}]
        while not vm.public_ip and not self.roles[vm.role]["use_private_ip"] and time.monotonic() < deadline:
            for instance in await self._instances(await self.sessions.of(vm.zone), which):
                vm = wire.machine_of(instance) or vm
            if not vm.public_ip:
                await asyncio.sleep(LOOK)
        return vm

    async def delete(self, vms: Sequence[VM]) -> None:
        by_session = defaultdict[Session, Any](list)
        for vm in vms:
            by_session[await self.sessions.of(vm.zone)].append(vm.id)
        for session, ids in by_session.items():
            for start in range(0, len(ids), wire.MOST):
                await self._terminate(session, ids[start : start + wire.MOST])

    async def _terminate(self, session: Session, ids: Sequence[str]) -> None:
        """What AWS does not know is gone, unless it is so new that it is not known yet."""
        deadline = time.monotonic() + PATIENCE
        while ids:
            try:
                await session.call("ec2", "terminate_instances", DELETE, InstanceIds=ids)
                break
            except CloudError as error:
                unknown = ec2_errors.unknown_instances(error)
                if not unknown:
                    raise
                new = [id for id in ids if id in unknown and id in self._fresh]
                if new and time.monotonic() < deadline:
                    await asyncio.sleep(LOOK)
                else:
                    ids = [id for id in ids if id not in unknown]
        for id in ids:
            self._fresh.pop(id, None)

    async def widen(self) -> None:
        await self.sessions.widen()

    async def parts(self) -> Parts:
        found, failures = await self.sessions.ask(ec2_leftovers.parts)
        for region in failures.keys() - self.unseen:
            warnings.warn(str(failures[region]), stacklevel=2)
        self.unseen |= failures
        return [part for of_region in found for part in of_region]

    async def remove(self, part: Part) -> bool:
        return await ec2_leftovers.remove(part, await self.sessions.of(part.place))

    async def console(self, vm: VM) -> str:
        """https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_GetConsoleOutput.html"""
        for latest in ({"Latest": True}, {}):  # older machine types have no latest output
            try:
                which = {"InstanceId": vm.id, **latest}
                answer = await (await self.sessions.of(vm.zone)).call(
                    "ec2", "get_console_output", "read the log", **which
                )
                return str(answer.get("Output", ""))
            except CloudError as error:
                failure = error
        return "" if ec2_errors.unknown_instances(failure) else f"({failure})"

    # Who may, and whether all is well

    async def doctor(self) -> Checks:
        from dask_cloudvm.clouds.ec2_doctor import Doctor

        return await Doctor(self).run()

    def policies(self, role: str | None) -> Mapping[str, Mapping[str, Any]]:
        return ec2_policy.policies(role)


def _why(reasons: Mapping[str, CloudError | None]) -> str:
    """``m7i.large in us-east-1a: ... (InsufficientInstanceCapacity); give more entries in zone ...``"""
    failed = [error for error in reasons.values() if error]
    said = [f"{place}: {error.facts['what'] if error else 'only some'}" for place, error in reasons.items()]
    hint = failed[-1].facts["hint"] if failed else "give more entries in zone or machine_type"
    return f"{'; '.join(said)}; {hint}"
