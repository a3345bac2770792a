"""Google Compute Engine: machines are instances, made in bulk by bulkInsert and found again by their labels."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from dask_cloudvm import bootstrap, userdata
from dask_cloudvm.clouds import common, gcp_errors, gcp_facts, gcp_network, gcp_options, gcp_policy
from dask_cloudvm.clouds import gcp_requests as wire
from dask_cloudvm.clouds.base import ENDED, VM, Checks, Part, Parts, Requests, VMs
from dask_cloudvm.clouds.gcp_facts import GCPFacts
from dask_cloudvm.clouds.gcp_session import Session, looks_configured
from dask_cloudvm.errors import CloudError, NameTaken
from dask_cloudvm.plan import Machine, Request

LIMIT = 600.0  # seconds for one operation
LOOK = 2.0  # seconds between two looks
ENDING = 180.0  # seconds for which a machine whose deletion was accepted may still be listed as running
CREATE, DELETE, FIREWALL = "make machines", "remove machines", "make the firewall rules"
FIELDS = (
    "items/*/instances(id,name,zone,status,labels,creationTimestamp,networkInterfaces(networkIP,accessConfigs/natIP),"
    "scheduling/provisioningModel),nextPageToken"
)


class GCP:
    """Google Compute Engine for one set of options; see :class:`dask_cloudvm.clouds.base.Cloud` for each method."""

    name: ClassVar[str] = "gcp"
    user_data_limit: ClassVar[int] = wire.LIMIT
    place: ClassVar[str] = "projectid"

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.roles = common.per_role("gcp", values)
        self.session = Session(values["projectid"], values["service_account_credentials"])
        self.shortfall = ""
        self.unseen: dict[str, CloudError] = {}
        self._facts: dict[str | None, GCPFacts] = {}
        self._rules: list[tuple[Mapping[str, Any], str]] = []  # operations that make firewall rules, and the owner
        self._sent: dict[str, int] = {}  # request id -> how many times
        self._own: set[str] = set()  # ids of machines made by this object
        self._ending: dict[str, float] = {}  # ids of machines whose deletion Google has accepted, and when

    @staticmethod
    def usable() -> bool:
        return looks_configured()

    # What a plan needs

    def check(self) -> None:
        gcp_options.check(self.values)

    async def facts(self, scheduler: VM | None) -> GCPFacts:
        self.check()
        key = scheduler.id if scheduler else None
        if key not in self._facts:
            facts = await gcp_facts.Reader(self.values, self.session).read(scheduler)
            wire.check(self.roles, facts)
            self._facts[key] = facts
        return self._facts[key]

    def offline(self) -> GCPFacts:
        self.check()
        return gcp_facts.offline(self.values)

    def launch(self, facts: GCPFacts, certificates: Mapping[str, str], address: str, role: str) -> bootstrap.Launch:
        options = self.roles[role]
        if role == "scheduler":
            port = {} if "port" in options["scheduler_options"] else {"port": facts.port}
            return bootstrap.scheduler(options, certificates, python=userdata.PYTHON, extra=port)
        gpus = gcp_options.gpus(options, facts.types[common.listed(options["machine_type"])[0]])
        options = {**options, "worker_class": common.worker_class(options, 1 if gpus is None else gpus)}
        return bootstrap.worker(options, certificates, address, python=userdata.PYTHON)

    def requests(self, machines: Sequence[Machine], facts: GCPFacts) -> Requests:
        return wire.requests(machines, facts)

    # Making

    async def create(self, request: Request) -> VMs:
        return await (self._rule(request.body) if request.operation == wire.RULE else self._insert(request))

    async def _insert(self, request: Request) -> VMs:
        """Asks one place after the other until every name has its machine."""
        made: dict[str, VM] = {}
        reasons: dict[str, CloudError | None] = {}
        for body in wire.bodies(request):
            left = [name for name in request.names if name not in made]
            new, error = await self._bulk(request.operation, body, left)
            made |= new
            if len(new) == len(left):
                break
            reasons[wire.place(body)] = error
            if error and not gcp_errors.of_place(error):
                if not made:
                    raise error
                break  # what was made must not be lost for what went wrong afterwards
        await self._rules_made()
        self.shortfall = "" if len(made) == len(request.names) else _why(reasons)
        return [made[name] for name in request.names if name in made]

    async def _bulk(
        self, method: str, body: Mapping[str, Any], names: Sequence[str]
    ) -> tuple[dict[str, VM], CloudError | None]:
        """One call for ``names``, awaited: the machines that there are then, and why there are not more."""
        attempt = self._sent.get(body["requestId"], 0)
        self._sent[body["requestId"]] = attempt + 1
        same = attempt == 0 and list(body["resource"]["perInstanceProperties"]) == list(names)
        chosen = body if same else wire.for_names(body, names, f"{body['requestId']} {attempt}")
        cluster = body["resource"]["instanceProperties"]["labels"][f"{wire.LABEL}cluster"]
        error = await self._ask(method, chosen)
        if error and 400 <= error.facts.get("status", 0) < 409:
            return {}, error  # nothing was begun
        found = {vm.name: vm for vm in await self.list(cluster) if vm.name in names}
        strangers = [vm for vm in found.values() if vm.id not in self._own]
        if gcp_errors.code(error) in gcp_errors.TAKEN and await self._settled(cluster, strangers):
            return await self._bulk(method, body, names)
        self._own |= {vm.id for vm in found.values()}
        return {name: vm for name, vm in found.items() if vm.alive}, error

    async def _ask(self, method: str, body: Mapping[str, Any]) -> CloudError | None:
        try:
            operation = await self.session.call(method, CREATE, **wire.sent(body))
            done = await self.session.finished(operation, CREATE, LIMIT)
        except CloudError as error:
            return error
        if done["status"] != "DONE":
            what = f"operation {done['name']} is not done after {LIMIT:g} seconds"
            return CloudError(doing=CREATE, what=what, hint="see the console's page of operations", code="STOCKOUT")
        return gcp_errors.of_operation(done, CREATE)

    async def _settled(self, cluster: str, strangers: VMs) -> bool:
        """Whether there were machines of an earlier cluster of this name, which are gone now. Raises NameTaken."""
        if any(vm.alive and vm.role == "scheduler" for vm in strangers):
            raise NameTaken(name=cluster)
        ended = [vm for vm in strangers if not vm.alive]
        await self.delete(ended)
        deadline = time.monotonic() + LIMIT
        while left := {vm.id for vm in ended} & {vm.id for vm in await self.list(cluster)}:
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(LOOK)
        return bool(ended) and not left

    async def _rule(self, body: Mapping[str, Any]) -> VMs:
        """Idempotent: where another launcher was faster, its rule is the same. Its end is awaited with the machines."""
        try:
            operation = await self.session.call(wire.RULE, FIREWALL, **body)
            self._rules.append((operation, body["project"]))
        except CloudError as error:
            if gcp_errors.code(error) not in gcp_errors.TAKEN:
                raise gcp_network.of_owner(error, body["project"], await self.session.project()) from None
        return []

    async def _rules_made(self) -> None:
        waiting, self._rules = self._rules, []
        done = await asyncio.gather(*(self.session.finished(each, FIREWALL, LIMIT) for each, _ in waiting))
        for operation, (_, owner) in zip(done, waiting, strict=True):
            error = gcp_errors.of_operation(operation, FIREWALL)
            if error and gcp_errors.code(error) not in gcp_errors.TAKEN:
                raise gcp_network.of_owner(error, owner, await self.session.project())

    # What exists

    async def home(self) -> str:
        return await self.session.project()

    async def list(self, cluster: str | None = None) -> VMs:
        which = wire.cluster_filter(cluster)
        found = await self.session.pages(
            "instances.aggregatedList", "instances", "list machines", filter=which, fields=FIELDS
        )
        vms = [vm for instance in found if (vm := wire.machine_of(instance)) and cluster in (None, vm.cluster)]
        self._ending = {id: at for id, at in self._ending.items() if time.monotonic() - at < ENDING}
        return [replace(vm, state=ENDED) if vm.id in self._ending else vm for vm in vms]

    async def locate(self, vm: VM) -> VM:
        return next((each for each in await self.list(vm.cluster) if each.id == vm.id), vm)

    async def delete(self, vms: Sequence[VM]) -> None:
        """Returns when Google has accepted it; what is gone already, or going, is well."""
        calls = [{"zone": vm.zone, "instance": vm.id} for vm in vms]
        if len(calls) == 1:
            answers = [await self._delete_one(calls[0])]
        else:
            answers = await self.session.every("instances.delete", DELETE, calls)
        failures = []
        for vm, answer in zip(vms, answers, strict=True):
            error = answer if isinstance(answer, CloudError) else gcp_errors.of_operation(answer, DELETE)
            if error is None or gcp_errors.code(error) in gcp_errors.GONE | {"resourceNotReady"}:
                self._ending[vm.id] = time.monotonic()
            else:
                failures.append(error)
        if failures:
            raise failures[0]

    async def _delete_one(self, call: Mapping[str, Any]) -> Any:
        try:
            return await self.session.call("instances.delete", DELETE, **call)
        except CloudError as error:
            return error

    async def widen(self) -> None:
        """A list has all zones of the project as it is."""

    async def parts(self) -> Parts:
        return await gcp_network.parts(self.session)

    async def remove(self, part: Part) -> bool:
        return await gcp_network.remove(part, self.session, LIMIT)

    async def console(self, vm: VM) -> str:
        """https://cloud.google.com/compute/docs/troubleshooting/viewing-serial-port-output"""
        which = {"zone": vm.zone, "instance": vm.id, "port": 1}
        try:
            answer = await self.session.call("instances.getSerialPortOutput", "read the log", **which)
        except CloudError as error:
            return "" if gcp_errors.code(error) in gcp_errors.GONE | {"resourceNotReady"} else f"({error})"
        return str(answer.get("contents", ""))

    # What it needs

    async def doctor(self) -> Checks:
        from dask_cloudvm.clouds.gcp_doctor import Doctor

        return await Doctor(self).run()

    def policies(self, role: str | None) -> Mapping[str, Mapping[str, Any]]:
        return gcp_policy.policies()


def _why(reasons: Mapping[str, CloudError | None]) -> str:
    """``e2-standard-4 in us-east1-c: ... (ZONE_RESOURCE_POOL_EXHAUSTED); give more entries in zone ...``"""
    failed = [error for error in reasons.values() if error]
    said = [f"{place}: {error.facts['what'] if error else 'only some'}" for place, error in reasons.items()]
    hint = failed[-1].facts["hint"] if failed else "give more entries in zone or machine_type"
    return f"{'; '.join(said)}; {hint}"
