"""The bodies of the calls that make a cluster's machines and what they share, as they are sent. Pure.

https://learn.microsoft.com/en-us/rest/api/compute/virtual-machines/create-or-update. Azure makes each machine by a call
of its own, which carries its network card, its address and its disk. A request here stands for the calls of all its
names: they differ in ``<name>`` alone. A body is the call's ``url``, and what is sent as JSON under ``resource``; there
``customData`` is readable text, which is compressed when it is sent.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dask_cloudvm import userdata
from dask_cloudvm._version import __version__
from dask_cloudvm.bootstrap import protocol
from dask_cloudvm.checks import merge
from dask_cloudvm.clouds import azure_options as given
from dask_cloudvm.clouds.azure_facts import AzureFacts, Image, Type, offered
from dask_cloudvm.clouds.azure_gone import gone
from dask_cloudvm.clouds.azure_network import STANDARD
from dask_cloudvm.clouds.azure_options import TAG, seconds
from dask_cloudvm.clouds.azure_versions import version
from dask_cloudvm.clouds.base import ENDED, PENDING, RUNNING, VM
from dask_cloudvm.clouds.common import PORT, changed, difference
from dask_cloudvm.errors import CloudError
from dask_cloudvm.plan import Machine, Request

COMPUTE = "providers/Microsoft.Compute"
MACHINE = "virtualMachines.createOrUpdate"
LIMIT = 65_535  # bytes of custom data, before it is made base64
NAME = "<name>"
NAMING = "{% set name = v1.local_hostname.split('.')[0] %}"  # a machine's hostname is its name
NETWORK_VERSION = "2022-11-01"  # by which Compute makes the network card; Azure knows it and an older one
POWER = {
    "running": RUNNING, "starting": PENDING, "creating": PENDING, "stopping": ENDED, "stopped": ENDED,
    "deallocating": ENDED, "deallocated": ENDED,
}  # fmt: skip
PROVISIONING = {"Creating": PENDING, "Updating": PENDING, "Succeeded": RUNNING, "Migrating": RUNNING}
Body = dict[str, Any]


def requests(machines: Sequence[Machine], facts: AzureFacts) -> list[Request]:
    """The calls that make machines of one role; the scheduler's come after those for what clusters share."""
    first = machines[0]
    found = [_shared(path, body) for path, body in facts.setup] if first.role == "scheduler" else []
    bodies = list(_bodies(first, facts))
    userdata.check_size(_custom_data(bodies[0]), LIMIT)
    names = tuple(machine.name for machine in machines)
    return [*found, Request(MACHINE, names, bodies[0], tuple(difference(bodies[0], b) for b in bodies[1:]))]


def _shared(path: str, body: Mapping[str, Any]) -> Request:
    kind = path.split("/")[-2]
    verb = "create" if kind == "roleAssignments" else "createOrUpdate"
    return Request(f"{kind}.{verb}", (), {"url": _url(path), "resource": body})


def _url(path: str) -> str:
    return f"{path}?api-version={version(path)}"


def bodies(request: Request) -> Iterator[Body]:
    """The body of a request, and those to try for what it leaves over."""
    for change in ({}, *request.alternatives):
        yield changed(request.body, change)


def place(body: Mapping[str, Any]) -> str:
    """What a body asks for and where, for a message."""
    inside = body["resource"]["properties"]
    spot = "spot " if inside.get("priority") == "Spot" else ""
    zone = f" zone {body['resource']['zones'][0]}" if body["resource"].get("zones") else ""
    return f"{spot}{inside['hardwareProfile']['vmSize']} in {body['resource']['location']}{zone}"


def sent(body: Mapping[str, Any]) -> Body:
    """A body as it goes over the wire: with custom data compressed; ``for_name`` makes it one machine's."""
    packed = base64.b64encode(userdata.pack(_custom_data(body))).decode()
    return merge(dict(body), {"resource": {"properties": {"osProfile": {"customData": packed}}}})  # type: ignore[no-any-return]


def for_name(value: Any, name: str) -> Any:
    """``value`` for one machine."""
    return filled(value, {NAME: name})


def filled(value: Any, known: Mapping[str, str]) -> Any:
    """``value`` with what is known now in the place of what stands for it."""
    if isinstance(value, Mapping):
        return {key: filled(each, known) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each, known) for each in value]
    if isinstance(value, str):
        for placeholder, text in known.items():
            value = value.replace(placeholder, text)
    return value


def _custom_data(body: Mapping[str, Any]) -> str:
    return str(body["resource"]["properties"]["osProfile"]["customData"])


# Machines


def _bodies(machine: Machine, facts: AzureFacts) -> Iterator[Body]:
    found = places(machine.options, machine.role, facts)
    gpu = found[0][0].gpus != 0
    spot = machine.options["spot"] if machine.role == "worker" else False
    url = _url(f"{facts.place.path}/{COMPUTE}/virtualMachines/{NAME}")
    for market in {False: (False,), True: (True,), "fallback": (True, False)}[spot]:
        for type, zone in found:
            resource = merge(_resource(machine, facts, type, zone, market), given.extra(machine.options))
            end = gone(given.acts_as(resource), facts.endpoint)
            setting = userdata.Setting(NAMING, gpu, end, notice="azure" if spot else "")
            text = userdata.render(machine.launch, machine.options, setting)
            own = {"properties": {"osProfile": {"customData": text}}, "tags": _own_tags(machine, facts)}
            yield {"url": url, "resource": _tagged(merge(resource, own))}


def _tagged(resource: Body) -> Body:
    """With the machine's tags on its network cards and addresses, too, which keep tags that they have themselves."""
    network = resource["properties"].get("networkProfile") or {}
    cards = [_card(each, resource["tags"]) for each in network.get("networkInterfaceConfigurations") or ()]
    network = {**network, "networkInterfaceConfigurations": cards} if cards else network
    return {**resource, "properties": {**resource["properties"], "networkProfile": network}}


def _card(card: Body, tags: Mapping[str, str]) -> Body:
    inside = card.get("properties") or {}
    addresses = [_address(each, tags) for each in inside.get("ipConfigurations") or ()]
    return _with({**card, "properties": {**inside, "ipConfigurations": addresses}}, tags)


def _address(address: Body, tags: Mapping[str, str]) -> Body:
    inside = address.get("properties") or {}
    if not (public := inside.get("publicIPAddressConfiguration")):
        return address
    return {**address, "properties": {**inside, "publicIPAddressConfiguration": _with(public, tags)}}


def _with(thing: Body, tags: Mapping[str, str]) -> Body:
    return {**thing, "tags": {**tags, **(thing.get("tags") or {})}}


def places(options: Mapping[str, Any], role: str, facts: AzureFacts) -> list[tuple[Type, str | None]]:
    """Sizes and zones to try: each size in each zone before the next size; None is where Azure likes.

    Raises CloudError where machines would differ.
    """
    types = offered(options, facts.types)
    wanted: Sequence[str | None] = facts.zones or (None,)
    found = [(t, z) for t in types for z in wanted if t.zones is None or z is None or z in t.zones]
    if len({t.gpus != 0 for t, _ in found}) > 1:
        what = f"some of {', '.join(t.name for t in types)} have GPUs and some have not"
        hint = f"let {role}_machine_type name one kind of machines"
        raise CloudError(doing=f"set up the {role}", what=what, hint=hint)
    return found


def check(roles: Mapping[str, Mapping[str, Any]], facts: AzureFacts) -> None:
    """Refuses what would fail only after the scheduler's machine is made. Raises CloudError."""
    for role, options in roles.items():
        for type, _ in places(options, role, facts):
            _disk(options, facts.images[role, type.name])


def _resource(machine: Machine, facts: AzureFacts, type: Type, zone: str | None, spot: bool) -> Body:
    options = machine.options
    properties: Body = {
        "hardwareProfile": {"vmSize": type.name},
        "storageProfile": _disk(options, facts.images[machine.role, type.name]),
        "osProfile": _system(options, facts.key),
        "networkProfile": _network(options, machine.role, facts, type),
        "diagnosticsProfile": {"bootDiagnostics": {"enabled": True}},
    }
    if spot:
        price = options["max_price"]
        properties |= {
            "priority": "Spot",
            "evictionPolicy": "Delete",
            "billingProfile": {"maxPrice": -1 if price is None else price},
        }
    found: Body = {"location": facts.place.region, "tags": given.tags(options["instance_tags"])}
    if zone:
        found["zones"] = [zone]
    shared = {"type": "UserAssigned", "userAssignedIdentities": {facts.identity: {}}} if facts.identity else {}
    if identity := given.identity(options) or shared:
        found["identity"] = identity
    if plan := options["marketplace_plan"]:
        found["plan"] = dict(plan)
    return {**found, "properties": properties}


def _own_tags(machine: Machine, facts: AzureFacts) -> dict[str, str]:
    """All that is known about a machine later, besides its name."""
    return {
        f"{TAG}cluster": machine.cluster,
        f"{TAG}role": machine.role,
        f"{TAG}options": machine.digest,
        f"{TAG}scheduler": f"{protocol(machine.options)}-{facts.port}",
        f"{TAG}version": __version__,
        f"{TAG}launcher": facts.nonce,
    }


def _disk(options: Mapping[str, Any], image: Image) -> Body:
    if options["disk_size"] < image.size:
        what = f"image {image} needs {image.size} GB, disk_size is {options['disk_size']}"
        raise CloudError(doing="make the system disk", what=what, hint=f"set disk_size to {image.size} or more")
    disk = {
        "createOption": "FromImage",
        "deleteOption": "Delete",
        "caching": "ReadWrite",
        "diskSizeGB": options["disk_size"],
        "managedDisk": {"storageAccountType": options["disk_type"]},
    }
    return {"imageReference": dict(image.reference), "osDisk": disk}


def _system(options: Mapping[str, Any], key: str) -> Body:
    user = options["admin_username"]
    keys = [{"path": f"/home/{user}/.ssh/authorized_keys", "keyData": key}]
    linux = {"disablePasswordAuthentication": True, "ssh": {"publicKeys": keys}}
    return {"computerName": NAME, "adminUsername": user, "linuxConfiguration": linux}


def _network(options: Mapping[str, Any], role: str, facts: AzureFacts, type: Type) -> Body:
    address: Body = {"primary": True, "subnet": {"id": facts.network.subnet}}
    if given.public_ip(options, role):
        address["publicIPAddressConfiguration"] = {
            "name": f"{NAME}-ip",
            "sku": STANDARD,
            "properties": {"deleteOption": "Delete", "publicIPAllocationMethod": "Static"},
        }
    card: Body = {
        "primary": True,
        "deleteOption": "Delete",
        "enableAcceleratedNetworking": type.fast_network,
        "ipConfigurations": [{"name": "machine", "properties": address}],
    }
    if facts.network.security_group:
        card["networkSecurityGroup"] = {"id": facts.network.security_group}
    cards = [{"name": f"{NAME}-nic", "properties": card}]
    return {"networkApiVersion": NETWORK_VERSION, "networkInterfaceConfigurations": cards}


# What exists


def machine_of(
    machine: Mapping[str, Any],
    power: str = "",
    private_ip: str = "",
    public_ip: str | None = None,
) -> VM | None:
    """The VM that a virtual machine is, by its tags; None where it is none of ours."""
    tags = machine.get("tags") or {}
    cluster, role = tags.get(f"{TAG}cluster"), tags.get(f"{TAG}role")
    if not cluster or not role:
        return None
    inside = machine["properties"]
    scheme, _, number = tags.get(f"{TAG}scheduler", "").partition("-")
    state = POWER.get(power) or PROVISIONING.get(inside.get("provisioningState", ""), ENDED)
    if inside.get("provisioningState") in ("Deleting", "Failed") and power != "running":
        state = ENDED
    born = inside.get("timeCreated")
    return VM(
        id=machine["id"],
        name=machine["name"],
        cluster=cluster,
        role=role,
        state=ENDED if inside.get("provisioningState") == "Deleting" else state,
        cloud="azure",
        private_ip=private_ip,
        public_ip=public_ip,
        protocol=scheme or "tls",
        port=int(number or PORT),
        zone=next(iter(machine.get("zones") or ()), None),
        spot=inside.get("priority") == "Spot",
        options_digest=tags.get(f"{TAG}options", ""),
        created=seconds(born) if born else 0.0,
    )
