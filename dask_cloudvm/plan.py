"""What is to be created, kept and deleted. No I/O, no clock, no randomness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask_cloudvm import schema, tls
from dask_cloudvm.bootstrap import Launch, protocol
from dask_cloudvm.clouds.base import VM, Cloud, Facts, scheduler_of
from dask_cloudvm.errors import ClusterExists
from dask_cloudvm.options import Options

UNKNOWN = "<known when the scheduler's machine exists>"
HIDDEN = "<made by up>"


@dataclass(frozen=True)
class Machine:
    """One machine that is wanted; its tags are everything by which it is found again."""

    name: str
    cluster: str
    role: str
    digest: str
    options: Mapping[str, Any]
    launch: Launch

    @property
    def tags(self) -> dict[str, str]:
        return {"cluster": self.cluster, "role": self.role, "name": self.name, "options": self.digest}


@dataclass(frozen=True)
class Request:
    """One write call to the cloud, for one machine or many.

    ``alternatives`` are tried in order for the machines that the call leaves over: what each changes in ``body``, None
    taking a key away.
    """

    operation: str
    names: tuple[str, ...]
    body: Mapping[str, Any]
    alternatives: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Plan:
    """What is to be made, what is kept, and what is to go."""

    create: tuple[Machine, ...] = ()
    keep: tuple[VM, ...] = ()
    delete: tuple[VM, ...] = ()


def scheduler_name(cluster: str) -> str:
    """The name of a cluster's only scheduler."""
    return f"{cluster}-scheduler"


def worker_name(cluster: str, token: str, number: int) -> str:
    """A name that is never used twice: ``token`` is new with each launcher, ``number`` with each machine."""
    return f"{cluster}-worker-{token}-{number}"


def machines(
    options: Options,
    cloud: Cloud,
    facts: Facts,
    cluster: str,
    role: str,
    names: Sequence[str],
    *,
    certificates: Mapping[str, str],
    address: str = UNKNOWN,
) -> tuple[Machine, ...]:
    """The machines of one role; all of them run the same launch."""
    launch = cloud.launch(facts, certificates, address, role)
    values, digest = options.for_role(role), options.digest()
    return tuple(Machine(name, cluster, role, digest, values, launch) for name in names)


def plan(
    options: Options,
    cloud: Cloud,
    facts: Facts,
    cluster: str,
    existing: Sequence[VM],
    token: str,
    certificates: Mapping[str, str],
) -> Plan:
    """What ``up`` would do about ``cluster`` when ``existing`` is what there is of it.

    Without a live scheduler everything is made anew. With one, workers are added or removed to reach the number wanted.
    Raises ClusterExists where it runs with other options.
    """
    alive = [vm for vm in existing if vm.alive]
    scheduler = scheduler_of(alive)
    workers = [vm for vm in alive if vm.role == "worker"] if scheduler else []
    if scheduler is not None and scheduler.options_digest != options.digest():
        raise ClusterExists(name=cluster, differ="'dask-cloudvm up' names them")
    wanted = count(options)
    names = [worker_name(cluster, token, i) for i in range(max(0, wanted - len(workers)))]
    if scheduler is not None:
        address = scheduler.address
        first: tuple[Machine, ...] = ()
    else:
        address = f"{protocol(options.values)}://{facts.host}:{facts.port}" if facts.host else UNKNOWN
        first = machines(
            options, cloud, facts, cluster, "scheduler", [scheduler_name(cluster)], certificates=certificates
        )
    more = (
        machines(options, cloud, facts, cluster, "worker", names, certificates=certificates, address=address)
        if names
        else ()
    )
    keep = (*([scheduler] if scheduler else []), *workers[:wanted])
    return Plan((*first, *more), keep, tuple(vm for vm in existing if vm not in keep))


def count(options: Options) -> int:
    """How many workers to start with: ``n_workers``, or the minimum where the cluster is adaptive."""
    if options["adaptive"] is None:
        return int(options["n_workers"])
    return max(int(options["n_workers"]), int(options["adaptive"].get("minimum", 0)))


def requests(made: Plan, cloud: Cloud, facts: Facts) -> list[Request]:
    """The write calls of a plan: the scheduler's, then the workers'."""
    by_role = [[m for m in made.create if m.role == role] for role in schema.ROLES]
    return [request for group in by_role if group for request in cloud.requests(group, facts)]


def placeholders() -> dict[str, str]:
    """Stands for the certificates, which are made when a cluster is."""
    return {name: HIDDEN for role in tls.ROLES for name in ("ca.pem", f"{role}.pem", f"{role}.key")}


def render(made: Plan, calls: Sequence[Request], secrets: Sequence[str] = ()) -> dict[str, Any]:
    """A plan as plain data for ``-o json`` and ``-o yaml``: the bodies as they are sent, but for secrets."""
    return {
        "create": [_hide(_call(request), secrets) for request in calls],
        "keep": [vm.name for vm in made.keep],
        "delete": [vm.name for vm in made.delete],
    }


def _call(request: Request) -> dict[str, Any]:
    call = {"operation": request.operation, "names": list(request.names), "body": request.body}
    return {**call, "alternatives": list(request.alternatives)} if request.alternatives else call


def _hide(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _hide(each, secrets) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hide(each, secrets) for each in value]
    if isinstance(value, str):
        for secret in filter(None, secrets):
            value = value.replace(secret, "***")
    return value
