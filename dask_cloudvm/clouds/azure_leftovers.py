"""The shared parts of networks that this package has made, and which of them are in use."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from dask_cloudvm.clouds import azure_errors
from dask_cloudvm.clouds.azure_network import NETWORK, TAGS
from dask_cloudvm.clouds.azure_options import seconds
from dask_cloudvm.clouds.azure_session import Session
from dask_cloudvm.clouds.base import Part, Parts
from dask_cloudvm.errors import CloudError

LOOK = "look for shared parts of networks"
# In the order in which they can be removed: a gateway is part of a subnet, an address part of a gateway.
AGAIN = 0.0, 1.0, 5.0  # seconds before each try to remove what is in use
KINDS = {
    "networkSecurityGroups": "security group",
    "virtualNetworks": "virtual network",
    "natGateways": "NAT gateway",
    "publicIPAddresses": "public address",
}


async def parts(session: Session) -> Parts:
    """Those of the subscription. What a NAT gateway is for is used where a machine is in the network."""
    root = await session.root()
    found = await asyncio.gather(*(session.pages(f"{root}/{NETWORK}/{kind}", LOOK) for kind in KINDS))
    ours = {kind: [each for each in listed if _is_ours(each)] for kind, listed in zip(KINDS, found, strict=True)}
    if not any(ours.values()):
        return []
    born = await _born(session, root)
    networks = {each["name"] for each in ours["virtualNetworks"] if _inhabited(each)}
    return [
        Part(
            kind=KINDS[kind],
            id=each["id"],
            name=each["name"],
            cloud="azure",
            place=each["location"],
            used=_used(kind, each, networks),
            created=born.get(each["id"].lower(), 0.0),
        )
        for kind, listed in ours.items()
        for each in listed
    ]


def _is_ours(resource: Mapping[str, Any]) -> bool:
    return TAGS.items() <= (resource.get("tags") or {}).items()


def _used(kind: str, resource: Mapping[str, Any], networks: set[str]) -> bool:
    """A gateway and its address have the name of their network."""
    if kind == "networkSecurityGroups":
        inside = resource["properties"]
        return bool(inside.get("networkInterfaces") or inside.get("subnets"))
    return resource["name"] in networks


def _inhabited(network: Mapping[str, Any]) -> bool:
    subnets = network["properties"].get("subnets") or ()
    return any((each.get("properties") or {}).get("ipConfigurations") for each in subnets)


async def _born(session: Session, root: str) -> dict[str, float]:
    """Only the Resource Manager knows: https://learn.microsoft.com/en-us/rest/api/resources/resources/list"""
    [(key, value)] = TAGS.items()
    query = {"$filter": f"tagName eq '{key}' and tagValue eq '{value}'", "$expand": "createdTime"}
    listed = await session.pages(f"{root}/resources", LOOK, query)
    return {each["id"].lower(): seconds(each["createdTime"]) for each in listed if each.get("createdTime")}


async def remove(part: Part, session: Session, limit: float) -> bool:
    """Azure refuses to remove what is in use, for a moment also where its user has just been removed."""
    for pause in AGAIN:
        await asyncio.sleep(pause)
        error = await _removed(part, session, limit)
        if error is None or azure_errors.gone(error):
            return True
        if not azure_errors.used(error):
            raise error
        if part.used:
            break
    return False


async def _removed(part: Part, session: Session, limit: float) -> CloudError | None:
    doing = f"remove {part.kind} {part.name}"
    try:
        return await session.finished(await session.call("DELETE", part.id, doing), doing, limit)
    except CloudError as refused:
        return refused
