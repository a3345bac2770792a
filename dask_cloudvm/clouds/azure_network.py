"""The network a cluster lives in: what is given is looked up, what is not is made once for a region and shared.

Names are the same for all launchers, and what has the name has the content: so two that make it at once make the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask_cloudvm.clouds import azure_options, common
from dask_cloudvm.clouds.azure_session import Session
from dask_cloudvm.clouds.base import VM
from dask_cloudvm.errors import CloudError

PREFIX = "dask-cloudvm-"
TAGS = {f"{PREFIX}network": "shared"}  # of everything that clusters share
WHY = "look up the network"
SPACE = "10.184.0.0/16"  # addresses for 65,531 machines
SUBNET = "machines"
NETWORK = "providers/Microsoft.Network"
STANDARD = {"name": "Standard", "tier": "Regional"}


@dataclass(frozen=True)
class Place:
    """Where machines are made: ``root`` is ``/subscriptions/ID``, ``exists`` whether the group is there already."""

    root: str
    group: str
    region: str
    exists: bool = True

    @property
    def path(self) -> str:
        return f"{self.root}/resourceGroups/{self.group}"

    def id(self, kind: str, name: str) -> str:
        """The resource id of something in the network that is given by its name, or already by its id."""
        return name if name.startswith("/") else f"{self.path}/{NETWORK}/{kind}/{name}"


@dataclass(frozen=True)
class Network:
    """Resource ids as the API takes them; ``setup`` is what is still to make: (path, body) in order."""

    subnet: str
    security_group: str
    setup: tuple[tuple[str, Mapping[str, Any]], ...] = ()


def group_of(region: str) -> str:
    """The name of the resource group that clusters in a region share."""
    return f"{PREFIX}{region}"


def named(id: str, kind: str) -> str:
    """The part of a resource id that follows ``kind``, whatever its capitals; ``""`` where there is none."""
    parts = id.split("/")
    lower = [part.lower() for part in parts]
    return parts[lower.index(kind.lower()) + 1] if kind.lower() in lower[:-1] else ""


async def read(values: Mapping[str, Any], session: Session, place: Place, scheduler: VM | None) -> Network:
    """The network of a new cluster, or of one with a scheduler, whose own its workers take."""
    if scheduler is not None:
        return await _of(scheduler, session)
    group, subnet = await asyncio.gather(_group(values, session, place), _subnet(values, session, place))
    return Network(subnet[0], group[0], (*group[1], *subnet[1]))


Setup = list[tuple[str, Mapping[str, Any]]]


async def _of(scheduler: VM, session: Session) -> Network:
    """https://learn.microsoft.com/en-us/rest/api/virtualnetwork/network-interfaces/get"""
    why = "look up the scheduler's machine"
    machine = await session.get(scheduler.id, why)
    card = await session.get(machine["properties"]["networkProfile"]["networkInterfaces"][0]["id"], why)
    inside = card["properties"]
    return Network(
        inside["ipConfigurations"][0]["properties"]["subnet"]["id"],
        (inside.get("networkSecurityGroup") or {}).get("id", ""),
    )


async def _group(values: Mapping[str, Any], session: Session, place: Place) -> tuple[str, Setup]:
    if values["security_group"]:
        id = place.id("networkSecurityGroups", values["security_group"])
        found = await session.find(id, WHY)
        _check(found, id, "security_group", place)
        return id, []
    private = not values["public_ingress"]
    id, body = security_group(place, common.open_ports(values), await common.networks(values, private))
    return id, [] if await _there(id, session, place) else [(id, body)]


async def _subnet(values: Mapping[str, Any], session: Session, place: Place) -> tuple[str, Setup]:
    if not azure_options.own_network(values):
        return await _given(values, session, place), []
    steps = virtual_network(place, azure_options.outbound(values) == "nat_gateway")
    id = steps[-1][0]
    return f"{id}/subnets/{SUBNET}", [] if await _there(id, session, place) else steps


async def _there(id: str, session: Session, place: Place) -> bool:
    """Whether something shared is there and ready; while another launcher makes it, it is made here, too."""
    found = await session.find(id, WHY) if place.exists else None
    return bool(found and found["properties"].get("provisioningState") == "Succeeded")


async def _given(values: Mapping[str, Any], session: Session, place: Place) -> str:
    """The subnet of the options. Raises CloudError where it is not there.

    https://learn.microsoft.com/en-us/rest/api/virtualnetwork/virtual-networks/get
    """
    wanted = values["subnet"] or ""
    if wanted.startswith("/"):
        vnet, _, wanted = wanted.partition("/subnets/")
        option = "subnet"
    elif values["vnet"]:
        vnet, option = place.id("virtualNetworks", values["vnet"]), "vnet"
    else:
        hint = "give its full resource id, or vnet"
        raise CloudError(doing=WHY, what=f"subnet is {wanted}, and vnet is not given", hint=hint)
    found = await session.find(vnet, WHY)
    _check(found, vnet, option, place)
    subnets = {each["name"]: each["id"] for each in found["properties"].get("subnets", ())}
    if not subnets or (wanted and wanted not in subnets):
        what = f"virtual network {vnet} has {f'no subnet {wanted}' if wanted else 'no subnet'}"
        raise CloudError(doing=WHY, what=what, hint=f"change subnet: {', '.join(subnets) or 'make one'}")
    return str(subnets[wanted] if wanted else next(iter(subnets.values())))


def _check(found: Any, id: str, option: str, place: Place) -> None:
    if found is None:
        hint = f"change {option}, or give its full resource id where it is in another resource group"
        raise CloudError(doing=WHY, what=f"there is no {id}", hint=hint)
    if azure_options.region(found["location"]) != place.region:
        what = f"{id} is in {found['location']}, the machines will be in {place.region}"
        raise CloudError(doing=WHY, what=what, hint=f"change {option} or region (location)")


# What is shared


def resource_group(place: Place) -> Setup:
    """https://learn.microsoft.com/en-us/rest/api/resources/resource-groups/create-or-update"""
    return [] if place.exists else [(place.path, {"location": place.region, "tags": TAGS})]


def security_group(place: Place, ports: Sequence[int], networks: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Resource id and body of the group for a setting; its name is a digest of that.

    Inside their virtual network machines reach each other by Azure's own default rules.
    https://learn.microsoft.com/en-us/rest/api/virtualnetwork/network-security-groups/create-or-update
    """
    setting = json.dumps([list(ports), list(networks)])
    digest = "<firewall>" if "<" in setting else hashlib.sha256(setting.encode()).hexdigest()[:12]
    versions = {"IPv4": [n for n in networks if ":" not in n], "IPv6": [n for n in networks if ":" in n]}
    rules = [
        {"name": f"dask-{version}", "properties": _rule(100 + i, ports, ranges)}
        for i, (version, ranges) in enumerate(versions.items())
        if ranges and ports
    ]
    body = {"location": place.region, "tags": TAGS, "properties": {"securityRules": rules}}
    return place.id("networkSecurityGroups", f"{PREFIX}{place.region}-{digest}"), body


def _rule(priority: int, ports: Sequence[int], networks: Sequence[str]) -> dict[str, Any]:
    return {
        "priority": priority,
        "direction": "Inbound",
        "access": "Allow",
        "protocol": "Tcp",
        "sourcePortRange": "*",
        "sourceAddressPrefixes": list(networks),
        "destinationAddressPrefix": "*",
        "destinationPortRanges": [str(port) for port in ports],
    }


def virtual_network(place: Place, nat: bool) -> Setup:
    """Path and body of the virtual network, after those of the NAT gateway that its subnet needs.

    https://learn.microsoft.com/en-us/rest/api/virtualnetwork/virtual-networks/create-or-update
    """
    name = f"{PREFIX}{place.region}{'-nat' if nat else ''}"
    shared = {"location": place.region, "tags": TAGS}
    subnet: dict[str, Any] = {"addressPrefix": SPACE, "defaultOutboundAccess": False}
    steps: Setup = []
    if nat:
        address, gateway = place.id("publicIPAddresses", name), place.id("natGateways", name)
        subnet["natGateway"] = {"id": gateway}
        static = {"publicIPAllocationMethod": "Static"}
        steps = [
            (address, {**shared, "sku": STANDARD, "properties": static}),
            (gateway, {**shared, "sku": {"name": "Standard"}, "properties": {"publicIpAddresses": [{"id": address}]}}),
        ]
    inside = {"addressSpace": {"addressPrefixes": [SPACE]}, "subnets": [{"name": SUBNET, "properties": subnet}]}
    return [*steps, (place.id("virtualNetworks", name), {**shared, "properties": inside})]


def offline(values: Mapping[str, Any], place: Place) -> Network:
    """The network without asking anybody. Pure."""
    cidrs = [str(c).replace("me", "<this computer>") for c in common.listed(values["firewall"].get("cidr", "me"))]
    group, body = security_group(place, common.open_ports(values), sorted(cidrs))
    setup: Setup = []
    if values["security_group"]:
        group = place.id("networkSecurityGroups", values["security_group"])
    else:
        setup.append((group, body))
    if azure_options.own_network(values):
        steps = virtual_network(place, azure_options.outbound(values) == "nat_gateway")
        return Network(f"{steps[-1][0]}/subnets/{SUBNET}", group, (*setup, *steps))
    wanted = values["subnet"] or ""
    vnet = place.id("virtualNetworks", values["vnet"] or "<of the subnet>")
    subnet = wanted if wanted.startswith("/") else f"{vnet}/subnets/{wanted or '<first>'}"
    return Network(subnet, group, tuple(setup))
