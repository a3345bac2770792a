"""Reads the facts: images, machine types, subnets, the shared security group.

The number of calls does not depend on the number of machines; nothing is read that the options say already.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from dask_cloudvm.clouds.base import VM
from dask_cloudvm.clouds.common import listed, networks, open_ports, per_role, port
from dask_cloudvm.clouds.ec2_facts import EC2Facts, Group, Image, Subnet, Type
from dask_cloudvm.clouds.ec2_firewall import group_name, missing_rules, rules_of
from dask_cloudvm.clouds.ec2_session import Session
from dask_cloudvm.errors import CloudError
from dask_cloudvm.schema import ROLES

LTS = ("26.04", "24.04", "22.04")  # of Ubuntu; the newest that the region has is taken
ARCHITECTURES = {"x86_64": "amd64", "arm64": "arm64"}
IMAGE = "/aws/service/canonical/ubuntu/server/{}/stable/current/{}/hvm/ebs-{}/ami-id"
WHY = "look up what the cluster needs"


class Reader:
    """Reads the facts for one set of options."""

    def __init__(self, values: Mapping[str, Any], session: Session) -> None:
        self.values, self.session = values, session
        self.roles = per_role("ec2", values)
        self.type_names = list(dict.fromkeys(t for r in ROLES for t in listed(self.roles[r]["machine_type"])))

    async def read(self, scheduler: VM | None) -> EC2Facts:
        """Everything at once where possible: about as long as three calls one after the other."""
        types, newest, network = await asyncio.gather(self.types(), self.newest(), self.network(scheduler))
        vpc, subnets, groups = network
        shared = None if groups else await self.shared(vpc)
        images = await self.images(types, newest)
        return EC2Facts(
            port=port(self.values), nonce=secrets.token_hex(8), vpc=vpc, types=types, images=images, subnets=subnets,
            groups=groups, shared=shared,
        )  # fmt: skip

    async def call(self, operation: str, **parameters: Any) -> Any:
        return await self.session.call("ec2", operation, WHY, **parameters)

    # Machine types and images

    async def types(self) -> dict[str, Type]:
        """https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstanceTypes.html"""
        filters = [{"Name": "instance-type", "Values": self.type_names}]
        offers, found = await asyncio.gather(
            self.session.pages(
                "describe_instance_type_offerings", "InstanceTypeOfferings", WHY,
                LocationType="availability-zone", Filters=filters,
            ),
            self.session.pages("describe_instance_types", "InstanceTypes", WHY, Filters=filters),
        )  # fmt: skip
        zones: dict[str, list[str]] = {}
        for offer in offers:
            zones.setdefault(offer["InstanceType"], []).append(offer["Location"])
        types = {t["InstanceType"]: _type(t, sorted(zones.get(t["InstanceType"], ()))) for t in found}
        if unknown := [name for name in self.type_names if name not in types]:
            what = f"region {await self.session.region()} has no machine type {', '.join(unknown)}"
            raise CloudError(doing=WHY, what=what, hint="change machine_type (instance_type) or region")
        return types

    async def newest(self) -> dict[str, str]:
        """The newest Ubuntu LTS by architecture, from Canonical's own parameters in AWS Systems Manager."""
        if all(self.roles[role]["image"] for role in ROLES):
            return {}
        names = {
            IMAGE.format(release, deb, "gp3" if release > "23" else "gp2"): aws
            for release in LTS
            for aws, deb in ARCHITECTURES.items()
        }
        answer = await self.session.call("ssm", "get_parameters", "find an Ubuntu image", Names=list(names))
        values = {parameter["Name"]: parameter["Value"] for parameter in answer["Parameters"]}
        found: dict[str, str] = {}
        for name, architecture in names.items():
            if name in values:
                found.setdefault(architecture, values[name])
        return found

    async def images(self, types: Mapping[str, Type], newest: Mapping[str, str]) -> dict[tuple[str, str], Image]:
        """https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeImages.html"""
        wanted: dict[tuple[str, str], str] = {}
        for role in ROLES:
            for name in listed(self.roles[role]["machine_type"]):
                architecture = types[name].architecture
                if not (image := self.roles[role]["image"] or newest.get(architecture)):
                    what = f"there is no Ubuntu image for {architecture} in region {await self.session.region()}"
                    raise CloudError(doing="find an image", what=what, hint="choose one by image (ami)")
                wanted[role, name] = image
        answer = await self.call("describe_images", ImageIds=sorted(set(wanted.values())))
        found = {image["ImageId"]: _image(image) for image in answer["Images"]}
        for (_, name), id in wanted.items():
            _check_image(found.get(id), id, types[name])
        return {key: found[id] for key, id in wanted.items()}

    # Network

    async def network(self, scheduler: VM | None) -> tuple[str, dict[str, tuple[Subnet, ...]], tuple[str, ...]]:
        """VPC, subnets by role, and security groups where they are chosen; a running scheduler has chosen all."""
        groups = tuple(listed(self.values["security_group"]))
        vpc = self.values["vnet"]
        if scheduler is not None:
            instance = await self._instance(scheduler)
            vpc, groups = instance["VpcId"], _groups_of(instance)
        chosen = {role: listed(self.roles[role]["subnet"]) for role in ROLES}
        if not vpc and not any(chosen.values()):
            vpc = await self._vpc_of(groups) if groups else await self._default_vpc()
        ids = sorted({id for role in ROLES for id in chosen[role]})
        by_id = {"SubnetIds": ids} if all(chosen.values()) else {"Filters": [{"Name": "vpc-id", "Values": [vpc]}]}
        if not vpc and not all(chosen.values()):
            vpc = (await self.call("describe_subnets", SubnetIds=ids))["Subnets"][0]["VpcId"]
            by_id = {"Filters": [{"Name": "vpc-id", "Values": [vpc]}]}
        found = sorted((await self.call("describe_subnets", **by_id))["Subnets"], key=_preference)
        return self._subnets(found, chosen, vpc, groups)

    async def _instance(self, scheduler: VM) -> Mapping[str, Any]:
        answer = await self.call("describe_instances", InstanceIds=[scheduler.id])
        for reservation in answer["Reservations"]:
            return dict(reservation["Instances"][0])
        what = f"the scheduler's machine {scheduler.id} is gone"
        raise CloudError(doing=WHY, what=what, hint=f"remove the rest by 'dask-cloudvm down {scheduler.cluster}'")

    def _subnets(
        self, found: Sequence[Mapping[str, Any]], chosen: Mapping[str, Sequence[str]], vpc: str | None,
        groups: tuple[str, ...],
    ) -> tuple[str, dict[str, tuple[Subnet, ...]], tuple[str, ...]]:  # fmt: skip
        of_vpc = {s["VpcId"] for s in found}
        if len(of_vpc) > 1 or (vpc and of_vpc - {vpc}):
            what = f"the subnets are in {', '.join(sorted(of_vpc | ({vpc} if vpc else set())))}"
            raise CloudError(doing=WHY, what=what, hint="let vnet (vpc) and subnet (subnet_id) name one VPC")
        known = {s["SubnetId"]: Subnet(s["SubnetId"], s["AvailabilityZone"]) for s in found}
        subnets = {}
        for role in ROLES:
            if strangers := [id for id in chosen[role] if id not in known]:
                what = f"{', '.join(strangers)} is not in {vpc}"
                raise CloudError(doing=WHY, what=what, hint="change subnet (subnet_id) or vnet (vpc)")
            of_role = [known[id] for id in chosen[role]] or _one_per_zone(known.values())
            subnets[role] = tuple(self._in_zones(of_role, vpc))
        return vpc or next(iter(of_vpc)), subnets, groups

    def _in_zones(self, subnets: Sequence[Subnet], vpc: str | None) -> list[Subnet]:
        zones = listed(self.values["zone"])
        found = sorted((s for s in subnets if s.zone in zones), key=lambda s: zones.index(s.zone)) if zones else subnets
        if found:
            return list(found)
        there = ", ".join(sorted({s.zone for s in subnets}))
        what = f"{vpc or 'the VPC'} has no subnet in zone {', '.join(zones)}" if zones else f"{vpc} has no subnet"
        other = "choose another vnet (vpc) or subnet (subnet_id)"
        hint = f"change zone: there are subnets in {there}" if there else other
        raise CloudError(doing=WHY, what=what, hint=hint)

    async def _default_vpc(self) -> str:
        answer = await self.call("describe_vpcs", Filters=[{"Name": "is-default", "Values": ["true"]}])
        if answer["Vpcs"]:
            return str(answer["Vpcs"][0]["VpcId"])
        what = f"the account has no default VPC in region {await self.session.region()}"
        hint = "choose one by vnet (vpc) or subnet (subnet_id), or make one by: aws ec2 create-default-vpc"
        raise CloudError(doing=WHY, what=what, hint=hint)

    async def _vpc_of(self, groups: Sequence[str]) -> str:
        answer = await self.call("describe_security_groups", GroupIds=list(groups))
        return str(answer["SecurityGroups"][0]["VpcId"])

    async def shared(self, vpc: str) -> Group:
        """The shared security group of a VPC and a firewall, whether it is there or not."""
        networks = await self.networks()
        name = group_name(open_ports(self.values), networks)
        rules = rules_of(open_ports(self.values), networks)
        filters = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": [name]}]
        found = (await self.call("describe_security_groups", Filters=filters))["SecurityGroups"]
        if not found:
            return Group(name, vpc, None, tuple(rules))
        return Group(name, vpc, found[0]["GroupId"], tuple(missing_rules(rules, found[0])))

    async def networks(self) -> list[str]:
        """Where clients may come from, in CIDR notation."""
        return await networks(self.values, self.roles["scheduler"]["use_private_ip"])


def _groups_of(instance: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(group["GroupId"] for group in instance["NetworkInterfaces"][0]["Groups"])


def _type(answer: Mapping[str, Any], zones: Sequence[str]) -> Type:
    known = answer["ProcessorInfo"]["SupportedArchitectures"]
    architecture = next((a for a in ARCHITECTURES if a in known), known[0])
    gpus = sum(g.get("Count", 0) for g in answer.get("GpuInfo", {}).get("Gpus", ()) if g["Manufacturer"] == "NVIDIA")
    return Type(
        answer["InstanceType"], architecture, answer["VCpuInfo"]["DefaultVCpus"], answer["MemoryInfo"]["SizeInMiB"],
        gpus, tuple(zones),
    )  # fmt: skip


def _image(answer: Mapping[str, Any]) -> Image:
    root = answer.get("RootDeviceName", "/dev/sda1")
    disks = {m.get("DeviceName"): m.get("Ebs", {}) for m in answer.get("BlockDeviceMappings", ())}
    size = disks.get(root, {}).get("VolumeSize", 0)
    return Image(answer["ImageId"], root, size, answer.get("Architecture", "x86_64"))


def _check_image(image: Image | None, id: str, type: Type) -> None:
    if image is None:
        hint = "change image (ami): ids differ from region to region; or leave it out"
        raise CloudError(doing=WHY, what=f"there is no image {id} that this account can use", hint=hint)
    if image.architecture != type.architecture:
        what = f"image {id} is for {image.architecture}, machine type {type.name} is {type.architecture}"
        raise CloudError(doing=WHY, what=what, hint="leave image (ami) out, or change machine_type (instance_type)")


def _preference(subnet: Mapping[str, Any]) -> tuple[Any, ...]:
    """The zone's default subnet first, then the one with most free addresses."""
    return (
        subnet["AvailabilityZone"],
        not subnet.get("DefaultForAz", False),
        -subnet.get("AvailableIpAddressCount", 0),
        subnet["SubnetId"],
    )


def _one_per_zone(subnets: Any) -> list[Subnet]:
    found: dict[str, Subnet] = {}
    for subnet in subnets:
        found.setdefault(subnet.zone, subnet)
    return list(found.values())
