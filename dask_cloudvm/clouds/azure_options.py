"""What options of Azure mean to the API: images, tags, identities, addresses. Pure; wrong ones are refused here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from dask_cloudvm.checks import merge
from dask_cloudvm.clouds.common import listed, per_role
from dask_cloudvm.errors import CloudError

TAG = "dask-cloudvm-"
MOST_TAGS = 50 - 8  # some are ours
LONGEST_KEY, LONGEST_VALUE = 512, 256  # characters
CANONICAL = "Canonical"
OFFERS = ("ubuntu-26_04-lts", "ubuntu-24_04-lts")  # the newest that there is is taken
IDS = ("id", "sharedGalleryImageId", "communityGalleryImageId")
SYSTEM = "SystemAssigned"
# What stands beside ``properties`` in a virtual machine's body; everything else belongs into them.
TOP = {"location", "tags", "plan", "properties", "identity", "zones", "extendedLocation", "placement"}
_WORDS = {"gb": "GB", "ip": "IP", "vm": "VM", "ssd": "SSD"}  # capitals inside the API's names
_EXACT = {
    "disk_iops_read_only": "diskIOPSReadOnly", "disk_iops_read_write": "diskIOPSReadWrite",
    "v_cpus_available": "vCPUsAvailable", "v_cpus_per_core": "vCPUsPerCore", "win_rm": "winRM",
}  # fmt: skip
KEYS = ("ssh-rsa", "ssh-ed25519")
KEY_HINT = "change ssh_public_key: a key such as ssh-ed25519 AAAA... or ssh-rsa AAAA..., or the path of its .pub file"
_FREE = {"tags", "userAssignedIdentities"}  # keys of the user's own


def check(values: Mapping[str, Any]) -> None:
    """Refuses what no call needs to be made for. Raises CloudError."""
    tags(values["instance_tags"])
    is_key(values["ssh_public_key"] or "")
    name = values["admin_username"]
    if name in ("root", "admin", "administrator", "user", "test", "guest"):
        raise _wrong(f"Azure does not allow a user named {name}", "change admin_username")
    if outbound(values) == "nat_gateway" and not own_network(values):
        raise _wrong(
            "outbound_access is nat_gateway, and the network is yours",
            "attach a NAT gateway to the subnet and set outbound_access: existing, or leave vnet and subnet out",
        )
    if outbound(values) == "existing" and own_network(values):
        raise _wrong("outbound_access is existing, and no network is given", "give vnet or subnet")
    if own_network(values) and not values["public_ingress"] and outbound(values) == "public_ip":
        raise _wrong(
            "the scheduler has no public address, so it cannot reach the internet in a network of dask-cloudvm's own",
            "set outbound_access: nat_gateway, or give vnet or subnet",
        )
    for options in per_role("azure", values).values():
        image(options)
        identity(options)


def _wrong(what: str, hint: str) -> CloudError:
    return CloudError(doing="plan machines on azure", what=what, hint=hint)


# Network


def own_network(values: Mapping[str, Any]) -> bool:
    """Whether the virtual network is one that dask-cloudvm makes."""
    return not values["vnet"] and not values["subnet"]


def outbound(values: Mapping[str, Any]) -> str:
    """How machines without a public ingress reach the internet.

    https://learn.microsoft.com/en-us/azure/virtual-network/ip-services/default-outbound-access
    """
    return str(values["outbound_access"] or ("public_ip" if own_network(values) else "existing"))


def public_ip(values: Mapping[str, Any], role: str) -> bool:
    """Whether machines of ``role`` have a public address."""
    return bool(values["public_ingress"]) if role == "scheduler" else outbound(values) == "public_ip"


def region(text: str | None) -> str:
    """``East US`` as the API has it: ``eastus``."""
    return (text or "").replace(" ", "").lower()


# Images


def image(options: Mapping[str, Any]) -> dict[str, str] | None:
    """The image reference that an option means; None is the newest Ubuntu. Raises CloudError."""
    given: Any = options["image"]
    if plan := options["marketplace_plan"]:
        parts = {"publisher": plan["publisher"], "offer": plan["product"], "sku": plan["name"]}
        version = given.get("version") if isinstance(given, Mapping) else None
        if not isinstance(given, str) and not any(key in (given or {}) for key in IDS):
            return {**parts, "version": version or "latest"}
    if not given:
        return None
    if isinstance(given, str):
        if given.startswith("/"):
            return {gallery(given): given}
        parts = dict(zip(("publisher", "offer", "sku", "version"), given.split(":"), strict=False))
        if len(parts) < 3:
            hint = "use a resource id, or publisher:offer:sku:version"
            raise _wrong(f"image {given!r} is neither a resource id nor the parts of a marketplace image", hint)
        return {"version": "latest", **parts}
    for key in IDS:
        if key in given:
            return {key: given[key]}
    newest = {"publisher": CANONICAL, "offer": OFFERS[0], "sku": "server", "version": "latest"}
    return {**newest, **given}


def gallery(id: str) -> str:
    """The field of an image reference for a resource id."""
    kind = id.lower().partition("/")[2].partition("/")[0]
    return {"sharedgalleries": IDS[1], "communitygalleries": IDS[2]}.get(kind, IDS[0])


# Tags


def tags(given: Mapping[str, Any]) -> dict[str, str]:
    """Tags as Azure's. Raises CloudError where that cannot be.

    https://learn.microsoft.com/en-us/azure/azure-resource-manager/management/tag-resources#limitations
    """
    found: dict[str, str] = {}
    for key, value in given.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if re.search(r"[<>%&\\?/]", key):
            raise _tag(key, "Azure allows none of <>%&\\?/ in it")
        if not 0 < len(key) <= LONGEST_KEY or len(text) > LONGEST_VALUE:
            raise _tag(key, f"it may have {LONGEST_KEY} characters, and its value {LONGEST_VALUE}")
        if key.lower().startswith((TAG, "microsoft", "azure", "windows")):
            raise _tag(key, "what starts with that is kept for Azure's or dask-cloudvm's own use")
        if key.lower() in {each.lower() for each in found}:
            raise _tag(key, "capitals make no difference to Azure, and another tag is the same")
        found[key] = text
    if len(found) > MOST_TAGS:
        raise _wrong(f"there are {len(found)} instance_tags, Azure allows {MOST_TAGS}", "give fewer instance_tags")
    return found


def _tag(key: str, what: str) -> CloudError:
    return _wrong(f"instance_tags: {key!r} cannot be a tag: {what}", "change instance_tags (tags)")


def seconds(text: str) -> float:
    """Azure's time since 1970; it gives seven digits of a second, of which Python 3.10 reads six."""
    head, _, rest = text.replace("Z", "+00:00").partition(".")
    digits = rest.partition("+")[0][:6]
    return datetime.fromisoformat(f"{head}.{digits:0<6}+00:00" if rest else head).timestamp()


# The user's own part of the body


def extra(options: Mapping[str, Any]) -> dict[str, Any]:
    """``extra_vm_options`` in the API's form, whichever form they have.

    dask-cloudprovider's users give what its SDK took: ``{"eviction_policy": ...}`` for
    ``{"properties": {"evictionPolicy": ...}}``, and models' ``as_dict()``, which has the one or the other form.
    """
    given = wire(options["extra_vm_options"] or {})
    inside = {key: value for key, value in given.items() if key not in TOP}
    found: dict[str, Any] = {key: value for key, value in given.items() if key in TOP}
    return merge(found, {"properties": inside}) if inside else found


def wire(value: Any) -> Any:
    """A tree with names such as ``os_profile`` as the API has them: ``osProfile``."""
    if isinstance(value, Mapping):
        return {
            (name := camel(key)): dict(each) if name in _FREE and isinstance(each, Mapping) else wire(each)
            for key, each in value.items()
        }
    return [wire(each) for each in value] if isinstance(value, (list, tuple)) else value


def camel(name: str) -> str:
    """``disk_size_gb`` -> ``diskSizeGB``; what has no underscore stays."""
    if name in _EXACT or "_" not in name:
        return _EXACT.get(name, name)
    first, *others = name.split("_")
    return first + "".join(_WORDS.get(word, word[:1].upper() + word[1:]) for word in others)


# SSH


def is_key(given: str) -> bool:
    """Whether it is a public key, and not the path of one. Raises CloudError for a key that Azure does not take."""
    return bool(re.match(r"(sk-)?(ssh|ecdsa)-\S+\s", given.lstrip()) and key(given))


def key(text: str) -> str:
    """A public key. Raises CloudError where it is none that Azure takes.

    https://learn.microsoft.com/en-us/azure/virtual-machines/linux/mac-create-ssh-keys
    """
    kind = text.split(maxsplit=1)[0] if text.strip() else "nothing"
    if kind not in KEYS:
        what = f"{kind[:40]} is no kind of SSH keys that Azure takes"
        raise CloudError(doing="read the SSH key", what=what, hint=KEY_HINT)
    return text.strip()


# Identity, and what becomes of a machine


def identity(options: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of the options as the API has it; empty where there is none.

    https://learn.microsoft.com/en-us/entra/identity/managed-identities-azure-resources/overview
    """
    given = options["identity"]
    if isinstance(given, Mapping):
        return dict(wire(given))
    names = [] if no_identity(options) else listed(given)
    ids = [name for name in names if name.startswith("/")]
    if others := [name for name in names if name not in ids and name.lower() not in ("system", "systemassigned")]:
        hint = "use system, none, or the resource id of a user-assigned identity"
        raise _wrong(f"identity {others[0]!r} is not known", hint)
    kinds = [*([SYSTEM] if len(ids) < len(names) else []), *(["UserAssigned"] if ids else [])]
    found: dict[str, Any] = {"type": ", ".join(kinds)} if kinds else {}
    return {**found, "userAssignedIdentities": {id: {} for id in ids}} if ids else found


def no_identity(options: Mapping[str, Any]) -> bool:
    """Whether machines are to have no identity at all, not even a shared one."""
    return str(options["identity"]).lower() == "none" and options["identity"] is not None


def acts_as(body: Mapping[str, Any]) -> list[str]:
    """The identities that a machine with this body may act by: resource ids, ``""`` for its own."""
    found = body.get("identity") or {}
    system = [""] if SYSTEM.lower() in str(found.get("type", "")).lower() else []
    return [*(found.get("userAssignedIdentities") or {}), *system]


def acting(options: Mapping[str, Any]) -> list[str]:
    """Like :func:`acts_as`, by the options alone."""
    return acts_as(merge({"identity": identity(options)}, {"identity": extra(options).get("identity") or {}}))
