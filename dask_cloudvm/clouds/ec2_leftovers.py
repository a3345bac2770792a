"""The shared security groups that this package has made, and which of them are in use."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from dask_cloudvm.clouds import ec2_errors
from dask_cloudvm.clouds.base import Part, Parts
from dask_cloudvm.clouds.ec2_facts import TAG
from dask_cloudvm.clouds.ec2_session import Session
from dask_cloudvm.errors import CloudError

LOOK = "look for security groups"
MOST = 200  # values of one filter
MADE = f"{TAG}made"  # seconds since 1970: AWS does not tell the age of a security group


def dated(body: Mapping[str, Any]) -> dict[str, Any]:
    """The call that makes a group, with the time at which it is made."""
    now = {"Key": MADE, "Value": str(int(time.time()))}
    return {**body, "TagSpecifications": [{**s, "Tags": [*s["Tags"], now]} for s in body["TagSpecifications"]]}


def _made(group: Mapping[str, Any]) -> float:
    """0 for a group of an earlier release, or whose tag somebody has changed."""
    found = next((tag["Value"] for tag in group["Tags"] if tag["Key"] == MADE), "")
    return float(found) if found.isdecimal() else 0.0


async def parts(session: Session) -> Parts:
    """Those of one region. A group is in use where it is at a network interface, whoever made that."""
    ours = [{"Name": "tag-key", "Values": [f"{TAG}network"]}]
    groups = await _pages(session, "describe_security_groups", "SecurityGroups", ours)
    used = set()
    for start in range(0, len(groups), MOST):
        which = [{"Name": "group-id", "Values": [group["GroupId"] for group in groups[start : start + MOST]]}]
        nics = await _pages(session, "describe_network_interfaces", "NetworkInterfaces", which)
        used |= {group["GroupId"] for nic in nics for group in nic["Groups"]}
    region = await session.region()
    return [
        Part("security group", id, group["GroupName"], "ec2", region, id in used, _made(group))
        for group in groups
        if (id := group["GroupId"])
    ]


async def _pages(session: Session, operation: str, key: str, filters: list[dict[str, Any]]) -> list[Any]:
    return await session.pages(operation, key, LOOK, Filters=filters, MaxResults=1000)


async def remove(part: Part, session: Session) -> bool:
    """https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DeleteSecurityGroup.html"""
    try:
        await session.call("ec2", "delete_security_group", f"remove {part.kind} {part.name}", GroupId=part.id)
    except CloudError as error:
        if ec2_errors.code(error) == "DependencyViolation":
            return False
        if ec2_errors.code(error) not in ("InvalidGroup.NotFound", "InvalidGroupId.NotFound"):
            raise
    return True
