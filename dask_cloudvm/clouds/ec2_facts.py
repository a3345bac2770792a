"""What only the account and the region can tell, as data, and placeholders for it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dask_cloudvm.clouds.base import Facts
from dask_cloudvm.clouds.common import listed, open_ports, per_role, port
from dask_cloudvm.clouds.ec2_firewall import rules_of
from dask_cloudvm.schema import ROLES

TAG = "dask-cloudvm:"


@dataclass(frozen=True)
class Type:
    """A machine type; ``gpus`` is None where it is not known."""

    name: str
    architecture: str = "x86_64"
    vcpus: int = 0
    memory: int = 0  # MiB
    gpus: int | None = None
    zones: tuple[str, ...] | None = None  # that offer it; None where it is not known


@dataclass(frozen=True)
class Image:
    """A machine image and its root disk."""

    id: str
    root: str  # device name
    size: int = 0  # GB of its root disk
    architecture: str = "x86_64"


@dataclass(frozen=True)
class Subnet:
    """A place for machines; ``zone`` is empty where it is not known."""

    id: str
    zone: str


@dataclass(frozen=True)
class Group:
    """The security group that clusters with the same firewall share; ``id`` is None until it is made."""

    name: str
    vpc: str
    id: str | None
    missing: tuple[Mapping[str, Any], ...]  # rules that it does not have yet

    @property
    def reference(self) -> str:
        """Its id, or what stands for the id until there is one."""
        return self.id or f"<id of {self.name}>"


@dataclass(frozen=True)
class EC2Facts(Facts):
    """The facts for one set of options."""

    nonce: str = ""  # makes a launcher's client tokens its own
    vpc: str = ""
    types: Mapping[str, Type] = field(default_factory=dict)
    images: Mapping[tuple[str, str], Image] = field(default_factory=dict)  # by role and machine type
    subnets: Mapping[str, tuple[Subnet, ...]] = field(default_factory=dict)  # by role
    groups: tuple[str, ...] = ()  # ids of the security groups to use
    shared: Group | None = None  # or the one that they share


def offline(values: Mapping[str, Any]) -> EC2Facts:
    """Facts that ask nobody: placeholders in angle brackets for what only the account can tell. Pure."""
    roles = per_role("ec2", values)
    names = [(role, name) for role in ROLES for name in listed(roles[role]["machine_type"])]
    images = {
        (role, name): Image(roles[role]["image"] or f"<newest Ubuntu LTS for {name}>", "<root device of the image>")
        for role, name in names
    }
    vpc = values["vnet"] or "<the default VPC>"
    anywhere = [Subnet(f"<a subnet of {vpc} in {z or 'any zone'}>", z) for z in listed(values["zone"]) or [""]]
    subnets = {r: tuple([Subnet(id, "") for id in listed(roles[r]["subnet"])] or anywhere) for r in ROLES}
    groups = tuple(listed(values["security_group"]))
    networks = [str(cidr).replace("me", "<this computer>") for cidr in listed(values["firewall"].get("cidr", "me"))]
    ports = open_ports(values)
    shared = Group("dask-cloudvm-<firewall>", vpc, None, tuple(rules_of(ports, networks)))
    types = {name: Type(name) for _, name in names}
    return EC2Facts(
        port=port(values), nonce="offline", vpc=vpc, types=types, images=images, subnets=subnets, groups=groups,
        shared=None if groups else shared,
    )  # fmt: skip
