"""What only the project can tell: zones, machine types, images, the network.

The number of calls does not depend on the number of machines; nothing is read that the options say already.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dask_cloudvm.clouds import common, gcp_errors, gcp_network, gcp_options
from dask_cloudvm.clouds.base import VM, Facts
from dask_cloudvm.clouds.common import listed, per_role, port
from dask_cloudvm.clouds.gcp_network import Network
from dask_cloudvm.clouds.gcp_session import Session
from dask_cloudvm.errors import CloudError
from dask_cloudvm.schema import ROLES

ZONE = "us-east1-c"  # where neither zone nor region is given
PUBLIC = "ubuntu-os-cloud"
OTHERS = (PUBLIC, "debian-cloud")  # where a bare name is looked for after one's own project
LTS = ("2604", "2404", "2204")  # of Ubuntu, the newest that there is is taken
ARCHITECTURES = {"X86_64": "amd64", "ARM64": "arm64"}
WHY = "look up what the cluster needs"
_CUSTOM = re.compile(r"(^|-)custom-\d+-\d+(-ext)?$")


@dataclass(frozen=True)
class Type:
    """A machine type; ``gpus`` are those built in, None where their number is not known."""

    name: str
    architecture: str = "X86_64"
    vcpus: int = 0
    memory: int = 0  # MiB
    gpus: int | None = None
    zones: tuple[str, ...] | None = None  # that offer it; None where that is not known


@dataclass(frozen=True)
class Image:
    """A boot image; its size and architecture are those of the newest of its family."""

    path: str
    size: int = 0  # GB
    architecture: str = "X86_64"


@dataclass(frozen=True)
class GCPFacts(Facts):
    """What a plan for Compute Engine needs to know."""

    nonce: str = ""  # makes a launcher's request ids its own
    project: str = ""
    region: str = ""
    zones: tuple[str, ...] = ()  # to try in order; none is any zone of the region
    types: Mapping[str, Type] = field(default_factory=dict)
    images: Mapping[tuple[str, str], Image] = field(default_factory=dict)  # by role and machine type
    network: Network = field(default_factory=lambda: Network("", "", None, ""))


def region_of(zone: str) -> str:
    """``us-east1`` of ``us-east1-c``."""
    return zone.rpartition("-")[0]


def places(values: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Region, and the zones to try; no zone is any of the region. Raises CloudError where they do not agree."""
    zones = tuple(listed(values["zone"]) or ([] if values["region"] else [ZONE]))
    regions = {region_of(zone) for zone in zones} | ({values["region"]} if values["region"] else set())
    if len(regions) > 1:
        what = f"zone {', '.join(zones)} and region {values['region']} are" if values["region"] else ", ".join(zones)
        what = what if values["region"] else f"zones {what} are"
        raise CloudError(doing="choose where", what=f"{what} in different regions", hint="change zone or region")
    return regions.pop(), zones


class Reader:
    """Reads the facts for one set of options."""

    def __init__(self, values: Mapping[str, Any], session: Session) -> None:
        self.values, self.session = values, session
        self.roles = per_role("gcp", values)
        self.type_names = list(dict.fromkeys(t for r in ROLES for t in listed(self.roles[r]["machine_type"])))
        self.region, self.zones = places(values)

    async def read(self, scheduler: VM | None) -> GCPFacts:
        """Everything at once where possible: about as long as three calls one after the other."""
        project = await self.session.project()
        types, network = await asyncio.gather(
            self.types(), gcp_network.read(self.values, self.session, self.region, scheduler)
        )
        images = await self.images(types, project)
        return GCPFacts(
            port=port(self.values), nonce=secrets.token_hex(8), project=project, region=self.region, zones=self.zones,
            types=types, images=images, network=network, notes=(gcp_options.ending(self.values),),
        )  # fmt: skip

    # Machine types

    async def types(self) -> dict[str, Type]:
        """https://cloud.google.com/compute/docs/reference/rest/v1/machineTypes/aggregatedList"""
        custom = [name for name in self.type_names if _CUSTOM.search(name)]
        known = [name for name in self.type_names if name not in custom]
        listing, *alone = await asyncio.gather(self._listed(known), *(self._custom(name) for name in custom))
        found: dict[str, Type] = {}
        for answer in [*listing, *(each for each in alone if each)]:
            type = _type(answer)
            if answer["zone"].startswith(f"{self.region}-"):
                before = found.get(type.name, type)
                found[type.name] = replace(type, zones=(*(before.zones or ()), answer["zone"]))
        if unknown := [name for name in self.type_names if name not in found]:
            what = f"region {self.region} has no machine type {', '.join(unknown)}"
            raise CloudError(doing=WHY, what=what, hint="change machine_type, zone or region")
        return found

    async def _listed(self, names: Sequence[str]) -> list[Any]:
        if not names:
            return []
        which = " OR ".join(f'(name = "{name}")' for name in names)
        fields = "items/*/machineTypes(name,zone,architecture,guestCpus,memoryMb,accelerators),nextPageToken"
        return await self.session.pages("machineTypes.aggregatedList", "machineTypes", WHY, filter=which, fields=fields)

    async def _custom(self, name: str) -> Any:
        """A custom type is in no list."""
        zone = self.zones[0] if self.zones else f"{self.region}-b"
        try:
            found = await self.session.call("machineTypes.get", WHY, zone=zone, machineType=name)
        except CloudError as error:
            if gcp_errors.code(error) in gcp_errors.GONE:
                return None
            raise
        return {**found, "zone": zone}

    # Images

    async def images(self, types: Mapping[str, Type], project: str) -> dict[tuple[str, str], Image]:
        """https://cloud.google.com/compute/docs/images/image-families-best-practices"""
        wanted: dict[tuple[str, str], tuple[str, ...]] = {}
        for role in ROLES:
            for name in listed(self.roles[role]["machine_type"]):
                wanted[role, name] = candidates(self.roles[role]["image"], types[name].architecture, project)
        several = list(dict.fromkeys(wanted.values()))
        found = dict(zip(several, await asyncio.gather(*map(self._first, several)), strict=True))
        for (_, name), paths in wanted.items():
            image, architecture = found[paths], types[name].architecture
            if image.architecture != architecture:
                what = f"image {image.path} is for {image.architecture}, {name} is {architecture}"
                raise CloudError(doing=WHY, what=what, hint="leave image (source_image) out, or change machine_type")
        return {key: found[paths] for key, paths in wanted.items()}

    async def _first(self, paths: Sequence[str]) -> Image:
        """The first of ``paths`` that exists and may be used."""
        failure: CloudError | None = None
        for place in paths:
            _, project, _, _, *family, name = place.split("/")
            method, key = ("images.getFromFamily", "family") if family else ("images.get", "image")
            try:
                fields = "selfLink,diskSizeGb,architecture"
                found = await self.session.call(method, WHY, project=project, fields=fields, **{key: name})
            except CloudError as error:
                if gcp_errors.code(error) not in gcp_errors.GONE | gcp_errors.DENIED:
                    raise
                if failure is None or gcp_errors.code(error) in gcp_errors.DENIED:
                    failure = error
                continue
            return Image(place, int(found.get("diskSizeGb", 0)), found.get("architecture") or "X86_64")
        assert failure is not None
        gone = gcp_errors.code(failure) in gcp_errors.GONE
        hint = "change image (source_image), or leave it out" if gone else failure.facts["hint"]
        raise CloudError(**{**failure.facts, "doing": "find the image", "hint": hint})


def candidates(image: str | None, architecture: str, project: str) -> tuple[str, ...]:
    """The paths that an option ``image`` may mean, the likeliest first."""
    if image is None:
        deb = ARCHITECTURES.get(architecture, architecture.lower())
        return tuple(f"projects/{PUBLIC}/global/images/family/ubuntu-{release}-lts-{deb}" for release in LTS)
    text = gcp_network.path(image)
    if text.startswith("projects/"):
        return (text,)
    if text.startswith("global/images/"):
        return (f"projects/{project}/{text}",)
    if text.startswith("family/"):
        return tuple(f"projects/{p}/global/images/{text}" for p in (project, *OTHERS))
    owner, _, name = text.rpartition("/")
    owners = (owner,) if owner else (project, *OTHERS)
    return tuple(f"projects/{p}/global/images/{kind}{name}" for p in owners for kind in ("", "family/"))


def _type(answer: Mapping[str, Any]) -> Type:
    gpus = sum(a.get("guestAcceleratorCount", 0) for a in answer.get("accelerators", ()) if _is_gpu(a))
    architecture = answer.get("architecture") or "X86_64"
    return Type(answer["name"], architecture, answer["guestCpus"], answer["memoryMb"], gpus)


def _is_gpu(accelerator: Mapping[str, Any]) -> bool:
    return "nvidia" in accelerator.get("guestAcceleratorType", "")


# Without a project


def offline(values: Mapping[str, Any]) -> GCPFacts:
    """Facts that ask nobody: placeholders in angle brackets for what only the project can tell. Pure."""
    roles = per_role("gcp", values)
    region, zones = places(values)
    project = values["projectid"] or "<project of the credentials>"
    names = [(role, name) for role in ROLES for name in listed(roles[role]["machine_type"])]
    images = {(role, name): Image(_shown(roles[role]["image"], name)) for role, name in names}
    return GCPFacts(
        port=port(values), nonce="offline", project=project, region=region, zones=zones, images=images,
        types={name: Type(name, gpus=None if gcp_options.has_gpus(name) else 0) for _, name in names},
        network=_offline_network(values, project, region), notes=(gcp_options.ending(values),),
    )  # fmt: skip


def _shown(image: str | None, type: str) -> str:
    if image is None:
        return f"<newest Ubuntu LTS for {type}>"
    text = gcp_network.path(image)
    return text if text.startswith("projects/") else f"<image {image}>"


def _offline_network(values: Mapping[str, Any], project: str, region: str) -> Network:
    home = values["network_projectid"] or project
    subnetwork = None
    if values["subnet"]:
        owner, name = gcp_network.split(values["subnet"], home)
        subnetwork = f"projects/{owner}/regions/{region}/subnetworks/{name}"
        home = owner
    owner, name = gcp_network.split(values["vnet"] or ("default" if not subnetwork else "<of the subnetwork>"), home)
    network = f"projects/{owner}/global/networks/{name}"
    cidrs = [str(c).replace("me", "<this computer>") for c in listed(values["firewall"].get("cidr", "me"))]
    rules = gcp_network.rules(network, common.open_ports(values), sorted(cidrs))
    return Network(owner, network, subnetwork, gcp_network.tag(rules), tuple(rules))
