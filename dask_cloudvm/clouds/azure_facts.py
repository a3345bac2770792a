"""What only the subscription can tell: sizes, zones, images, the network.

The number of calls does not depend on the number of machines; nothing is read that the options say already.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask_cloudvm.clouds import azure_identity, azure_network, azure_options
from dask_cloudvm.clouds.azure_network import Network, Place
from dask_cloudvm.clouds.azure_session import PUBLIC, Session
from dask_cloudvm.clouds.base import VM, Facts
from dask_cloudvm.clouds.common import listed, per_role, port
from dask_cloudvm.errors import CloudError
from dask_cloudvm.schema import ROLES
from dask_cloudvm.threads import in_thread

WHY = "look up what the cluster needs"
ARM, INTEL = "Arm64", "x64"
MADE_KEY = "<made by up>"


@dataclass(frozen=True)
class Type:
    """A VM size; ``gpus`` is None where their number is not known."""

    name: str
    architecture: str = INTEL
    vcpus: int = 0
    memory: float = 0  # GiB
    gpus: int | None = None
    family: str = ""  # that the quota counts
    zones: tuple[str, ...] | None = None  # that offer it; None where that is not known
    generations: tuple[str, ...] = ("V1", "V2")  # of Hyper-V
    fast_network: bool = False


@dataclass(frozen=True)
class Image:
    """A reference as the API takes it; size in GB and architecture where they are known."""

    reference: Mapping[str, str]
    size: int = 0
    architecture: str = ""

    def __str__(self) -> str:
        return ":".join(self.reference.values())


@dataclass(frozen=True)
class AzureFacts(Facts):
    """What a plan for Azure needs to know."""

    nonce: str = ""  # tells the machines of this launcher from those of others
    endpoint: str = PUBLIC
    place: Place = field(default_factory=lambda: Place("", "", ""))
    zones: tuple[str, ...] = ()  # to try in order; none is Azure's choice
    types: Mapping[str, Type] = field(default_factory=dict)
    images: Mapping[tuple[str, str], Image] = field(default_factory=dict)  # by role and size
    network: Network = field(default_factory=lambda: Network("", ""))
    setup: tuple[tuple[str, Mapping[str, Any]], ...] = ()  # what clusters share and is still to make: (path, body)
    identity: str = ""  # that machines share, where the options give them none
    key: str = ""  # public, for SSH


def zones(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The zones to try."""
    return tuple(str(zone) for zone in listed(values["zone"]))


class Reader:
    """Reads the facts for one set of options."""

    def __init__(self, values: Mapping[str, Any], session: Session) -> None:
        self.values, self.session = values, session
        self.roles = per_role("azure", values)
        self.type_names = list(dict.fromkeys(t for r in ROLES for t in listed(self.roles[r]["machine_type"])))
        self.notes: tuple[str, ...] = ()

    async def read(self, scheduler: VM | None) -> AzureFacts:
        """Everything at once where possible: about as long as three calls one after the other."""
        if self.values["ssh_public_key"]:
            await in_thread(public_key, self.values["ssh_public_key"])  # a wrong one is said before anybody is asked
        place = await self.place(scheduler)
        types, network, identity, key = await asyncio.gather(
            self.types(place),
            azure_network.read(self.values, self.session, place, scheduler),
            azure_identity.read(self.values, self.session, place, scheduler),
            in_thread(public_key, self.values["ssh_public_key"]),
        )
        images = await self.images(types, place)
        return AzureFacts(
            port=port(self.values), nonce=secrets.token_hex(8), endpoint=self.session.endpoint, place=place,
            zones=zones(self.values), types=types, images=images, network=network, identity=identity.id, key=key,
            setup=(*azure_network.resource_group(place), *identity.setup, *network.setup),
            notes=(identity.note, *self.notes),
        )  # fmt: skip

    # Place

    async def place(self, scheduler: VM | None) -> Place:
        """https://learn.microsoft.com/en-us/rest/api/resources/resource-groups/get"""
        root = await self.session.root()
        region, group = azure_options.region(self.values["region"]), self.values["resource_group"]
        if scheduler is not None:  # its workers come to where it is
            where = await self.session.get(scheduler.id, "look up the scheduler's machine")
            own = "/".join(scheduler.id.split("/")[:3])
            group = azure_network.named(scheduler.id, "resourceGroups")
            return Place(own, group, azure_options.region(where["location"]))
        if not region and not group:
            hint = "set region (location), such as eastus"
            raise CloudError(doing="choose where", what="neither region nor resource_group is given", hint=hint)
        name = group or azure_network.group_of(region)
        found = await self.session.find(f"{root}/resourceGroups/{name}", WHY)
        if group and not found:
            hint = "change resource_group, or leave it out: then a shared one is made"
            raise CloudError(doing="choose where", what=f"there is no resource group {group}", hint=hint)
        return Place(root, name, region or azure_options.region(found["location"]), bool(found))

    # Sizes

    async def types(self, place: Place) -> dict[str, Type]:
        """The sizes that are offered; of several in a list some may be missing, which ``notes`` then say.

        https://learn.microsoft.com/en-us/rest/api/compute/resource-skus/list
        """
        path = f"{place.root}/providers/Microsoft.Compute/skus"
        listing = await self.session.pages(path, WHY, {"$filter": f"location eq '{place.region}'"})
        machines = {each["name"].lower(): each for each in listing if each["resourceType"] == "virtualMachines"}
        found, missing = dict[str, Type](), dict[str, CloudError]()
        for name in self.type_names:
            try:
                found[name] = _offered(name, machines.get(name.lower()), place, zones(self.values))
            except CloudError as error:
                missing[name] = error
        for role in ROLES:
            if not offered(self.roles[role], found):
                raise missing[listed(self.roles[role]["machine_type"])[0]]
        self.notes = tuple(f"{error.facts['what']}; the others in machine_type are used" for error in missing.values())
        return found

    # Images

    async def images(self, types: Mapping[str, Type], place: Place) -> dict[tuple[str, str], Image]:
        """https://learn.microsoft.com/en-us/rest/api/compute/virtual-machine-images/get"""
        wanted = {
            (role, type.name): candidates(self.roles[role], type)
            for role in ROLES
            for type in offered(self.roles[role], types)
        }
        keys = {key: repr(references) for key, references in wanted.items()}
        several = {repr(references): references for references in wanted.values()}
        answers = await asyncio.gather(*(self._first(references, place) for references in several.values()))
        by_key = dict(zip(several, answers, strict=True))
        found = {key: by_key[text] for key, text in keys.items()}
        for (_, name), image in found.items():
            if image.architecture and image.architecture != types[name].architecture:
                what = f"image {image} is for {image.architecture}, {name} is {types[name].architecture}"
                hint = "leave image (vm_image) out, or change machine_type (vm_size)"
                raise CloudError(doing=WHY, what=what, hint=hint)
        return found

    async def _first(self, references: tuple[Mapping[str, str], ...], place: Place) -> Image:
        """The first that there is."""
        for reference in references:
            found = await self._image(reference, place)
            if found:
                return found
        what = f"there is no image {':'.join(references[0].values())} in {place.region}"
        raise CloudError(doing="find the image", what=what, hint="change image (vm_image), or leave it out")

    async def _image(self, reference: Mapping[str, str], place: Place) -> Image | None:
        if "id" in reference:
            return await self._own(reference)
        if "publisher" not in reference:  # of a gallery of others: there is no call that all may make
            return Image(reference)
        path = (
            f"{place.root}/providers/Microsoft.Compute/locations/{place.region}/publishers/{reference['publisher']}"
            f"/artifacttypes/vmimage/offers/{reference['offer']}/skus/{reference['sku']}/versions"
        )
        version = reference["version"]
        if version == "latest":
            newest = await self.session.find(path, WHY, **{"$top": "1", "$orderby": "name desc"})
            if not newest:
                return None
            version = newest[0]["name"]
        found = await self.session.find(f"{path}/{version}", WHY)
        if found is None:
            return None
        inside = found.get("properties") or {}
        if inside.get("plan") and not self.values["marketplace_plan"]:
            plan = {"name": inside["plan"]["name"], "publisher": inside["plan"]["publisher"]}
            hint = f"set marketplace_plan: {{name: {plan['name']}, publisher: {plan['publisher']}, product: ...}}"
            raise CloudError(doing="find the image", what=f"image {reference['sku']} needs its plan named", hint=hint)
        return Image(reference, architecture=inside.get("architecture") or "")

    async def _own(self, reference: Mapping[str, str]) -> Image | None:
        """A managed image, or an image of a gallery, or a version of one."""
        found = await self.session.find(reference["id"], WHY)
        if found is None:
            return None
        inside = found.get("properties") or {}
        storage = inside.get("storageProfile") or {}
        size = (storage.get("osDisk") or {}).get("diskSizeGB") or (storage.get("osDiskImage") or {}).get("sizeInGB")
        return Image(reference, int(size or 0), inside.get("architecture") or "")


def offered(options: Mapping[str, Any], types: Mapping[str, Type]) -> list[Type]:
    """The sizes to try for a role, the first choice first: those of the options that there are."""
    return [types[name] for name in listed(options["machine_type"]) if name in types]


def candidates(options: Mapping[str, Any], type: Type) -> tuple[Mapping[str, str], ...]:
    """The image references that an option may mean, the likeliest first."""
    if (chosen := azure_options.image(options)) is not None:
        return (chosen,)
    sku = "server-arm64" if type.architecture == ARM else "server" if "V2" in type.generations else "server-gen1"
    parts = {"publisher": azure_options.CANONICAL, "sku": sku, "version": "latest"}
    return tuple({"publisher": parts["publisher"], "offer": o, **parts} for o in azure_options.OFFERS)


def _type(name: str, sku: Mapping[str, Any]) -> Type:
    has = {each["name"]: each["value"] for each in sku.get("capabilities", ())}
    where = sku["locationInfo"][0]
    closed = {
        zone
        for each in sku.get("restrictions", ())
        if each["type"] == "Zone"
        for zone in (each.get("restrictionInfo") or {}).get("zones", ())
    }
    return Type(
        name=name,
        architecture=has.get("CpuArchitectureType", INTEL),
        vcpus=int(has.get("vCPUs", 0)),
        memory=float(has.get("MemoryGB", 0)),
        gpus=math.ceil(float(has.get("GPUs", 0))),  # a part of one is one
        family=sku.get("family", ""),
        zones=tuple(sorted(set(where.get("zones", ())) - closed)),
        generations=tuple(has.get("HyperVGenerations", "V1,V2").split(",")),
        fast_network=has.get("AcceleratedNetworkingEnabled") == "True",
    )


def _offered(name: str, sku: Mapping[str, Any] | None, place: Place, wanted: tuple[str, ...]) -> Type:
    """The size of this name. Raises CloudError where the subscription cannot have it there."""
    if sku is None:
        what = f"region {place.region} has no VM size {name}"
        raise CloudError(doing=WHY, what=what, hint="change machine_type (vm_size) or region (location)")
    type = _type(name, sku)
    for each in sku.get("restrictions", ()):
        if each["type"] == "Location":
            what = f"{name} is not available to this subscription in {place.region} ({each.get('reasonCode', '')})"
            hint = "change machine_type (vm_size) or region (location), or ask Azure's support for access"
            raise CloudError(doing=WHY, what=what, hint=hint)
    if wanted and not set(wanted) & set(type.zones or ()):
        offers = ", ".join(type.zones or ()) or "none"
        what = f"no zone of {', '.join(wanted)} offers {name} in {place.region}"
        raise CloudError(doing=WHY, what=what, hint=f"change zone ({offers} offer it) or machine_type (vm_size)")
    return type


# SSH


def public_key(given: str | None) -> str:
    """The public key of the option, which may be the path of its file; a new one that nobody has where there is none.

    Azure wants a key where there is no password. Raises CloudError.
    """
    if not given:
        return _throwaway()
    if azure_options.is_key(given):
        return given.strip()
    try:
        return azure_options.key(Path(given).expanduser().read_text("ascii"))
    except (OSError, RuntimeError, ValueError) as error:
        raise CloudError(doing="read the SSH key", what=f"{given}: {error}", hint=azure_options.KEY_HINT) from None


def _throwaway() -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048).public_key()
    openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_bytes(*openssh).decode()


# Without a subscription


def offline(values: Mapping[str, Any]) -> AzureFacts:
    """Facts that ask nobody: placeholders in angle brackets for what only the subscription can tell. Pure."""
    roles = per_role("azure", values)
    region = azure_options.region(values["region"]) or "<region of the resource group>"
    group = values["resource_group"] or azure_network.group_of(region)
    root = f"/subscriptions/{values['subscription_id'] or '<subscription>'}"
    place = Place(root, group, region, bool(values["resource_group"]))
    names = [(role, name) for role in ROLES for name in listed(roles[role]["machine_type"])]
    given = values["ssh_public_key"]
    key = f"<content of {given}>" if given and not azure_options.is_key(given) else given or MADE_KEY
    types = {name: Type(name, _architecture(name), gpus=None if has_gpus(name) else 0) for _, name in names}
    images = {(role, name): Image(candidates(roles[role], types[name])[0]) for role, name in names}
    network, identity = azure_network.offline(values, place), azure_identity.offline(values, place)
    return AzureFacts(
        port=port(values), nonce="offline", place=place, zones=zones(values), types=types, images=images,
        network=network, identity=identity.id, key=key, notes=(identity.note,),
        setup=(*azure_network.resource_group(place), *identity.setup, *network.setup),
    )  # fmt: skip


def has_gpus(type: str) -> bool:
    """Whether sizes of this family have GPUs: https://learn.microsoft.com/en-us/azure/virtual-machines/sizes/overview"""
    return type.lower().startswith("standard_n")


def _architecture(type: str) -> str:
    """As names of sizes tell: https://learn.microsoft.com/en-us/azure/virtual-machines/vm-naming-conventions"""
    return ARM if re.match(r"standard_[a-z]+\d+(-\d+)?[a-z]*p", type.lower()) else INTEL
