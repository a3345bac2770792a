"""The bodies of the calls that make a cluster's machines and its firewall rules, as they are sent. Pure.

https://cloud.google.com/compute/docs/reference/rest/v1/instances/bulkInsert. A body here is the call's parameters, with
what is sent as JSON under ``resource``. The metadata ``user-data`` is readable text; it is compressed when it is sent.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from dask_cloudvm import userdata
from dask_cloudvm._version import __version__
from dask_cloudvm.bootstrap import protocol
from dask_cloudvm.checks import merge
from dask_cloudvm.clouds import gcp_options as given
from dask_cloudvm.clouds.base import ENDED, PENDING, RUNNING, VM
from dask_cloudvm.clouds.common import PORT, changed, difference, listed
from dask_cloudvm.clouds.gcp_facts import GCPFacts, Image, Type
from dask_cloudvm.clouds.gcp_network import Network
from dask_cloudvm.errors import CloudError
from dask_cloudvm.plan import Machine, Request

ZONAL, REGIONAL, RULE = "instances.bulkInsert", "regionInstances.bulkInsert", "firewalls.insert"
LIMIT = 196_608  # bytes of user-data: as base64, they are the 256 KiB that Google allows
MOST = 1000  # machines of one call
LABEL = "dask-cloudvm-"
NAME = "{% set name = v1.local_hostname.split('.')[0] %}"  # a machine's hostname is its name
STATES = {"PROVISIONING": PENDING, "STAGING": PENDING, "PENDING": PENDING, "REPAIRING": PENDING, "RUNNING": RUNNING}
ENCODING = {"key": "user-data-encoding", "value": "base64"}
Body = dict[str, Any]


def requests(machines: Sequence[Machine], facts: GCPFacts) -> list[Request]:
    """The calls that make machines of one role; the scheduler's come after those for the firewall."""
    first = machines[0]
    found = list(_rules(facts.network)) if first.role == "scheduler" else []
    operation = ZONAL if facts.zones else REGIONAL
    for start in range(0, len(machines), MOST):
        names = tuple(m.name for m in machines[start : start + MOST])
        bodies = list(_bodies(first, names, facts))
        userdata.check_size(_user_data(bodies[0])["value"], LIMIT)
        found.append(Request(operation, names, bodies[0], tuple(difference(bodies[0], b) for b in bodies[1:])))
    return found


def bodies(request: Request) -> Iterator[Body]:
    """The body of a request, and those to try for what it leaves over."""
    for change in ({}, *request.alternatives):
        yield changed(request.body, change)


def place(body: Mapping[str, Any]) -> str:
    """What a body asks for and where, for a message."""
    properties = body["resource"]["instanceProperties"]
    spot = "spot " if properties["scheduling"].get("provisioningModel") == "SPOT" else ""
    return f"{spot}{properties['machineType']} in {body.get('zone') or body.get('region')}"


def sent(body: Mapping[str, Any]) -> Body:
    """A body as it goes over the wire: with user-data compressed."""
    properties = body["resource"]["instanceProperties"]
    items = [_packed(item) if item["key"] == "user-data" else item for item in properties["metadata"]["items"]]
    return merge(dict(body), {"resource": {"instanceProperties": {"metadata": {"items": items}}}})  # type: ignore[no-any-return]


def for_names(body: Mapping[str, Any], names: Sequence[str], attempt: str) -> Body:
    """``body`` for only these names of the request's; ``attempt`` makes it another request than any before."""
    resource = {**body["resource"], "count": str(len(names)), "perInstanceProperties": {name: {} for name in names}}
    changed = {**body, "resource": resource}
    return {**changed, "requestId": request_id(changed, attempt)}


def request_id(body: Mapping[str, Any], nonce: str) -> str:
    """The same for the same call of the same launcher, so that it may be repeated without harm."""
    plain = {key: value for key, value in body.items() if key != "requestId"}
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{nonce} {json.dumps(plain, sort_keys=True)}"))


def _packed(item: Mapping[str, str]) -> dict[str, str]:
    return {**item, "value": base64.b64encode(userdata.pack(item["value"])).decode()}


def _user_data(body: Mapping[str, Any]) -> Mapping[str, str]:
    items = body["resource"]["instanceProperties"]["metadata"]["items"]
    return next(item for item in items if item["key"] == "user-data")


# Machines


def _bodies(machine: Machine, names: Sequence[str], facts: GCPFacts) -> Iterator[Body]:
    found = places(machine.options, machine.role, facts)
    gpu = given.gpus(machine.options, found[0][0]) != 0
    spot = machine.options["spot"] if machine.role == "worker" else False
    gone = GONE if given.deletes_itself(machine.options) else ""
    setting = userdata.Setting(NAME, gpu, gone, notice="gcp" if spot else "")
    text = userdata.render(machine.launch, machine.options, setting)
    for market in {False: (False,), True: (True,), "fallback": (True, False)}[spot]:
        for type, zone in found:
            properties = _properties(machine, facts, type, market, text)
            resource = {
                "count": str(len(names)),
                "minCount": "1",
                "perInstanceProperties": {name: {} for name in names},
                "instanceProperties": properties,
                **({} if zone else {"locationPolicy": {"targetShape": "ANY"}}),
            }
            where = {"zone": zone} if zone else {"region": facts.region}
            body = {"project": facts.project, **where, "resource": _with_extra(resource, machine.options)}
            yield {**body, "requestId": request_id(body, facts.nonce)}


def _with_extra(resource: Body, options: Mapping[str, Any]) -> Body:
    """The user's own part of the body; of lists, metadata are added to and all others replaced."""
    made: Body = merge(resource, options["extra_vm_options"] or {})
    items, own = (r["instanceProperties"]["metadata"]["items"] for r in (made, resource))
    keys = {item["key"] for item in own}
    made["instanceProperties"]["metadata"]["items"] = [*own, *(item for item in items if item["key"] not in keys)]
    return made


def places(options: Mapping[str, Any], role: str, facts: GCPFacts) -> list[tuple[Type, str | None]]:
    """Machine types and zones to try: each type in each zone before the next type; None is any zone of the region.

    Raises CloudError where there is none, or where machines would differ.
    """
    types = [facts.types[name] for name in listed(options["machine_type"])]
    zones: Sequence[str | None] = facts.zones or (None,)
    found = [(t, z) for t in types for z in zones if t.zones is None or z is None or z in t.zones]
    wanted = ", ".join(t.name for t in types)
    if not found:
        offers = ", ".join(sorted({zone for t in types for zone in t.zones or ()}))
        what = f"no zone of {', '.join(facts.zones)} offers {wanted}"
        hint = f"change zone: {offers} offer it, or change machine_type"
        raise CloudError(doing=f"place the {role}", what=what, hint=hint)
    if len({given.gpus(options, t) != 0 for t, _ in found}) > 1:
        what = f"some of {wanted} have GPUs and some have not"
        hint = f"let {role}_machine_type name one kind of machines"
        raise CloudError(doing=f"set up the {role}", what=what, hint=hint)
    return found


def check(roles: Mapping[str, Mapping[str, Any]], facts: GCPFacts) -> None:
    """Refuses what would fail only after the scheduler's machine is made. Raises CloudError."""
    for role, options in roles.items():
        for type, _ in places(options, role, facts):
            _disk(options, facts.images[role, type.name], {})


def _properties(machine: Machine, facts: GCPFacts, type: Type, spot: bool, user_data: str) -> Body:
    options, image = machine.options, facts.images[machine.role, type.name]
    labels = {**given.labels(options["instance_tags"]), **_own_labels(machine, facts)}
    properties: Body = {
        "machineType": type.name,
        "description": f"{machine.role} of Dask cluster {machine.cluster}",
        "labels": labels,
        "tags": {"items": [*filter(None, [facts.network.tag]), *options["network_tags"]]},
        "metadata": {"items": [{"key": "user-data", "value": user_data}, ENCODING]},
        "disks": [_disk(options, image, labels)],
        "networkInterfaces": [_interface(options, facts.network)],
        "scheduling": _scheduling(options, spot, given.gpus(options, type)),
        "shieldedInstanceConfig": {
            "enableSecureBoot": options["secure_boot"],
            "enableVtpm": True,
            "enableIntegrityMonitoring": True,
        },
    }
    if account := options["service_account"]:
        properties["serviceAccounts"] = [{"email": account, "scopes": given.scopes(options)}]
    if attached := given.attached(options, type):
        properties["guestAccelerators"] = [{"acceleratorType": attached[0], "acceleratorCount": attached[1]}]
    return properties


def _own_labels(machine: Machine, facts: GCPFacts) -> dict[str, str]:
    """All that is known about a machine later, besides its name."""
    return {
        f"{LABEL}cluster": machine.cluster,
        f"{LABEL}role": machine.role,
        f"{LABEL}options": machine.digest,
        f"{LABEL}scheduler": f"{protocol(machine.options)}-{facts.port}",
        f"{LABEL}version": __version__.replace(".", "-").replace("+", "-").lower(),
    }


def _disk(options: Mapping[str, Any], image: Image, labels: Mapping[str, str]) -> Body:
    if options["disk_size"] < image.size:
        what = f"image {image.path} needs {image.size} GB, disk_size is {options['disk_size']}"
        raise CloudError(doing="make the boot disk", what=what, hint=f"set disk_size to {image.size} or more")
    parameters = {
        "sourceImage": image.path,
        "diskSizeGb": str(options["disk_size"]),
        "diskType": options["disk_type"],
        "labels": dict(labels),
    }
    return {"boot": True, "autoDelete": True, "initializeParams": parameters}


def _interface(options: Mapping[str, Any], network: Network) -> Body:
    public = (
        {"accessConfigs": [{"type": "ONE_TO_ONE_NAT", "name": "External NAT"}]} if options["public_ingress"] else {}
    )
    inside = {"subnetwork": network.subnetwork} if network.subnetwork else {}
    return {"network": network.network, **inside, **public}


def _scheduling(options: Mapping[str, Any], spot: bool, gpus: int | None) -> Body:
    """A machine never starts anew by itself: Dask would not start with it."""
    chosen = (options["on_host_maintenance"] or "").upper()
    found: Body = {
        "provisioningModel": "SPOT" if spot else "STANDARD",
        "onHostMaintenance": chosen or ("MIGRATE" if gpus == 0 and not spot else "TERMINATE"),
        "automaticRestart": False,
    }
    if seconds := given.run_time(options):
        found["maxRunDuration"] = {"seconds": str(seconds)}
    if spot or seconds:
        found["instanceTerminationAction"] = "DELETE"
    return found


# A stopped machine's disk is still paid for, so a machine deletes itself, by the account that it runs as.
GONE = """\
exec /usr/bin/python3 - <<'END'
import json, time, urllib.request

def get(what):
    url = "http://metadata.google.internal/computeMetadata/v1/" + what
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    return urllib.request.urlopen(request, timeout=10).read().decode()

for pause in (1, 2, 4, 8, 0):
    try:
        token = json.loads(get("instance/service-accounts/default/token"))["access_token"]
        path = get("project/project-id") + "/zones/" + get("instance/zone").split("/")[-1]
        url = "https://compute.googleapis.com/compute/v1/projects/" + path + "/instances/" + get("instance/id")
        headers = {"Authorization": "Bearer " + token}
        urllib.request.urlopen(urllib.request.Request(url, headers=headers, method="DELETE"), timeout=30)
        break
    except Exception as error:
        code = getattr(error, "code", 0)
        if code == 404:  # somebody else has deleted it
            break
        detail = error.read().decode(errors="replace") if hasattr(error, "read") else ""
        print("This machine cannot delete itself and will stop:", error, detail[:500])
        if code in (401, 403):
            break
        time.sleep(pause)
END
"""


def cluster_filter(cluster: str | None) -> str:
    """Finds the machines of one cluster, or of all: https://google.aip.dev/160"""
    label = f"labels.{LABEL}cluster"
    if cluster is None:
        return f"{label}:*"
    quoted = cluster.replace("\\", "\\\\").replace('"', '\\"')
    return f'{label} = "{quoted}"'


def machine_of(instance: Mapping[str, Any]) -> VM | None:
    """The VM that an instance is, by its labels; None where it is none of ours."""
    labels = instance.get("labels", {})
    cluster, role = labels.get(f"{LABEL}cluster"), labels.get(f"{LABEL}role")
    if not cluster or not role:
        return None
    scheme, _, number = labels.get(f"{LABEL}scheduler", "").partition("-")
    interface: Mapping[str, Any] = next(iter(instance.get("networkInterfaces", ())), {})
    outside: Mapping[str, Any] = next(iter(interface.get("accessConfigs", ())), {})
    scheduling = instance.get("scheduling", {})
    born = instance.get("creationTimestamp")
    return VM(
        id=str(instance["id"]),
        name=instance["name"],
        cluster=cluster,
        role=role,
        state=STATES.get(instance["status"], ENDED),
        cloud="gcp",
        private_ip=interface.get("networkIP", ""),
        public_ip=outside.get("natIP"),
        protocol=scheme or "tls",
        port=int(number or PORT),
        zone=instance["zone"].rpartition("/")[2],
        spot=scheduling.get("provisioningModel") == "SPOT",
        options_digest=labels.get(f"{LABEL}options", ""),
        created=datetime.fromisoformat(born.replace("Z", "+00:00")).timestamp() if born else 0.0,
    )


def _rules(network: Network) -> Iterator[Request]:
    for rule in network.rules:
        body = {"project": network.project, "resource": rule}
        yield Request(RULE, (), {**body, "requestId": request_id(body, "")})
