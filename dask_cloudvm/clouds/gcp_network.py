"""The network a cluster lives in and the firewall rules that clusters with the same setting share.

Rules apply to machines with one network tag, which is named like them by a digest of network and setting: so clusters
with different settings do not open each other, and what has the name has the content.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dask_cloudvm.clouds import common, gcp_errors
from dask_cloudvm.clouds.base import VM, Part, Parts
from dask_cloudvm.clouds.gcp_session import Session
from dask_cloudvm.errors import CloudError

PREFIX = "dask-cloudvm-"
WHY = "look up the network"
LOOK = "look for firewall rules"
OURS = "Dask clusters made by dask-cloudvm; shared by those with the same firewall setting"
_URL = re.compile(r"^https?://[^/]+/(?:compute/[^/]+/)?(?=projects/)")


@dataclass(frozen=True)
class Network:
    """Paths as the API takes them. ``subnetwork`` is None where it is not known; ``rules`` are those still to make."""

    project: str  # that owns it
    network: str
    subnetwork: str | None
    tag: str
    rules: tuple[Mapping[str, Any], ...] = ()


def path(text: str) -> str:
    """``projects/...`` of a full or partial URL; a name stays as it is."""
    return _URL.sub("", text).lstrip("/")


def split(text: str, project: str) -> tuple[str, str]:
    """The owning project and the name of a resource given as name, path or URL."""
    found = re.match(r"projects/([^/]+)/", path(text))
    return (found[1] if found else project), text.rstrip("/").rpartition("/")[2]


async def read(values: Mapping[str, Any], session: Session, region: str, scheduler: VM | None) -> Network:
    """The network of a new cluster, or of one with a scheduler, whose tags its workers take."""
    home = values["network_projectid"] or await session.project()
    owner, network, subnetwork = await _place(values, session, home, region)
    if scheduler is not None:
        return Network(owner, network, subnetwork, await _tag_of(scheduler, session))
    private = not common.per_role("gcp", values)["scheduler"]["public_ingress"]
    wanted = rules(network, common.open_ports(values), await common.networks(values, private))
    missing = await _missing(wanted, owner, session, home)
    return Network(owner, network, subnetwork, tag(wanted), missing)


async def _place(values: Mapping[str, Any], session: Session, home: str, region: str) -> tuple[str, str, str | None]:
    """Owner, network and subnetwork."""
    if values["subnet"]:
        return await _by_subnetwork(values, session, values["subnet"], home, region)
    owner, name = split(values["vnet"] or "default", home)
    try:
        found = await session.call("networks.get", WHY, project=owner, network=name)
    except CloudError as error:
        if gcp_errors.code(error) not in gcp_errors.GONE:
            raise
        return await _old_meaning(values, session, name, owner, region, error)
    inside = [each for each in found.get("subnetworks", ()) if f"/regions/{region}/" in each]
    if len(inside) != 1 and "IPv4Range" not in found:  # a legacy network has none at all
        there = ", ".join(split(each, owner)[1] for each in inside)
        what = f"network {name} of project {owner} has {len(inside) or 'no'} subnetworks in {region}"
        hint = f"choose one by subnet (subnetwork): {there}" if there else "change region, zone or vnet (network)"
        raise CloudError(doing=WHY, what=what, hint=hint)
    return owner, f"projects/{owner}/global/networks/{name}", path(inside[0]) if inside else None


async def _by_subnetwork(
    values: Mapping[str, Any], session: Session, given: str, home: str, region: str
) -> tuple[str, str, str]:
    owner, name = split(given, home)
    if (where := re.search(r"/regions/([^/]+)/", f"/{path(given)}")) and where[1] != region:
        what = f"subnetwork {name} is in {where[1]}, the machines will be in {region}"
        raise CloudError(doing=WHY, what=what, hint="change subnet (subnetwork), region or zone")
    found = await session.call("subnetworks.get", WHY, project=owner, region=region, subnetwork=name)
    network = path(found["network"])
    if values["vnet"] and values["vnet"] != given and split(values["vnet"], owner) != split(network, owner):
        what = f"subnetwork {name} is in network {split(network, owner)[1]}"
        hint = f"change subnet (subnetwork), or vnet (network), which is {values['vnet']}"
        raise CloudError(doing=WHY, what=what, hint=hint)
    return owner, network, f"projects/{owner}/regions/{region}/subnetworks/{name}"


async def _old_meaning(
    values: Mapping[str, Any], session: Session, name: str, owner: str, region: str, error: CloudError
) -> tuple[str, str, str]:
    """Under ``network`` dask-cloudprovider meant a subnetwork."""
    try:
        return await _by_subnetwork({**values, "vnet": name}, session, name, owner, region)
    except CloudError as second:
        if gcp_errors.code(second) in gcp_errors.GONE:
            raise error from None
        raise


async def _tag_of(scheduler: VM, session: Session) -> str:
    machine = await session.call(
        "instances.get", "look up the scheduler's machine", zone=scheduler.zone, instance=scheduler.id, fields="tags"
    )
    return next((t for t in machine.get("tags", {}).get("items", ()) if t.startswith(PREFIX)), "")


# Firewall: https://cloud.google.com/firewall/docs/firewalls


def rules(network: str, ports: Sequence[int], networks: Sequence[str]) -> list[dict[str, Any]]:
    """The rules of a setting as firewalls.insert takes them: one from outside for each IP version, one inside."""
    setting = json.dumps([network, list(ports), list(networks)])
    digest = "<firewall>" if "<" in setting else hashlib.sha256(setting.encode()).hexdigest()[:12]
    name = f"{PREFIX}{digest}"
    versions = {"": [n for n in networks if ":" not in n], "-v6": [n for n in networks if ":" in n]}
    common_part = {
        "network": network,
        "direction": "INGRESS",
        "description": OURS,
        "targetTags": [name],
    }
    outside = [{"IPProtocol": "tcp", "ports": [str(p) for p in ports]}]
    opened = [
        {"name": f"{name}{suffix}", **common_part, "allowed": outside, "sourceRanges": ranges}
        for suffix, ranges in versions.items()
        if ranges and ports
    ]
    inside = {"name": f"{name}-inside", **common_part, "allowed": [{"IPProtocol": "all"}], "sourceTags": [name]}
    return [*opened, inside]


def tag(wanted: Sequence[Mapping[str, Any]]) -> str:
    """The network tag that rules apply to."""
    return str(wanted[-1]["targetTags"][0])


async def _missing(
    wanted: Sequence[Mapping[str, Any]], owner: str, session: Session, home: str
) -> tuple[Mapping[str, Any], ...]:
    names = " OR ".join(f'(name = "{rule["name"]}")' for rule in wanted)
    try:
        found = await session.pages(
            "firewalls.list", "items", "look up the firewall rules", project=owner, filter=names, fields=_FIELDS
        )
    except CloudError as error:
        raise of_owner(error, owner, await session.project()) from None
    have = {rule["name"]: rule for rule in found}
    if off := [name for name, rule in have.items() if rule.get("disabled")]:
        what = f"the firewall rule {', '.join(off)} of project {owner} is disabled"
        raise CloudError(doing="use the firewall rules", what=what, hint="enable or delete it, or change firewall")
    return tuple(rule for rule in wanted if rule["name"] not in have)


_FIELDS = "items(name,disabled),nextPageToken"


def of_owner(error: CloudError, owner: str, project: str) -> CloudError:
    """What an error about another project's firewall means to the user of a shared VPC."""
    if owner == project or gcp_errors.code(error) not in gcp_errors.DENIED:
        return error
    hint = (
        f"let an administrator of {owner} make the rules that 'dask-cloudvm plan --offline' shows for a firewall "
        "with a fixed cidr, and grant compute.firewalls.list"
    )
    return CloudError(**{**error.facts, "hint": hint})


# Leftovers


async def parts(session: Session) -> Parts:
    """The rules that this package has made in the session's project; rules have no labels, but a description."""
    project = await session.project()
    fields = "items(name,description,targetTags,creationTimestamp),nextPageToken"
    found = await session.pages("firewalls.list", "items", LOOK, fields=fields)
    ours = [rule for rule in found if rule["name"].startswith(PREFIX) and rule.get("description") == OURS]
    if not ours:
        return []
    fields = "items/*/instances(tags/items),nextPageToken"
    used = set()
    for each in [project, *await _service_projects(session)]:
        machines = await session.pages("instances.aggregatedList", "instances", LOOK, project=each, fields=fields)
        used |= {tag for machine in machines for tag in machine.get("tags", {}).get("items", ())}
    return [
        Part(
            kind="firewall rule",
            id=rule["name"],
            name=rule["name"],
            cloud="gcp",
            place=project,
            used=bool(used & set(rule.get("targetTags", ()))),
            created=datetime.fromisoformat(rule["creationTimestamp"]).timestamp(),
        )
        for rule in ours
    ]


async def _service_projects(session: Session) -> list[str]:
    """Whose machines are in this project's networks, too: https://cloud.google.com/vpc/docs/shared-vpc

    Raises CloudError where that cannot be seen, since any rule may then be in use.
    """
    role = await session.call("projects.get", LOOK, fields="xpnProjectStatus")
    if role.get("xpnProjectStatus") != "HOST":
        return []
    return [each["id"] for each in await session.pages("projects.getXpnResources", "resources", LOOK)]


async def remove(part: Part, session: Session, limit: float) -> bool:
    """Google does not know which rules are in use."""
    doing = f"remove the firewall rule {part.name}"
    try:
        operation = await session.call("firewalls.delete", doing, firewall=part.id)
        error = gcp_errors.of_operation(await session.finished(operation, doing, limit), doing)
    except CloudError as failure:
        error = failure
    if error and gcp_errors.code(error) not in gcp_errors.GONE:
        raise error
    return True
