"""What Azure allows, as the models and operations in azure-mgmt-compute and azure-mgmt-network have it.

The paths, parameters and API versions are read from their generated request builders, the fields and their types from
their models, which know the names on the wire. What those packages have not, the few calls about subscriptions, groups
and permissions, is in ``OTHERS``.
"""

from __future__ import annotations

import enum
import inspect
import re
import typing
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import azure.mgmt.compute.models as compute
import azure.mgmt.compute.operations._operations as compute_operations
import azure.mgmt.network.models as network
import azure.mgmt.network.operations._operations as network_operations


class Refused(Exception):
    """An answer in Azure's form."""

    def __init__(self, status: int, code: str, message: str, retry_after: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after

    def body(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": self.message}}


@dataclass(frozen=True)
class Route:
    """One operation: what may be asked, and the models of its body and its answer."""

    verb: str
    path: str
    query: frozenset[str] = frozenset()
    headers: frozenset[str] = frozenset()
    versions: frozenset[str] = frozenset()
    body: Any = None
    answer: Any = None
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        pattern = re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", self.path)
        object.__setattr__(self, "pattern", re.compile(pattern, re.IGNORECASE))


# Ours -> the generated builder; the models of its body and its answer.
COMPUTE = {
    "images.get": ("images_get", None, compute.Image),
    "galleryImageVersions.get": ("gallery_image_versions_get", None, compute.GalleryImageVersion),
    "galleryImages.get": ("gallery_images_get", None, compute.GalleryImage),
    "skus.list": ("resource_skus_list", None, [compute.ResourceSku]),
    "usages.list": ("usage_list", None, [compute.Usage]),
    "virtualMachineImages.get": ("virtual_machine_images_get", None, compute.VirtualMachineImage),
    "virtualMachineImages.list": ("virtual_machine_images_list", None, None),
    "virtualMachines.createOrUpdate": (
        "virtual_machines_create_or_update",
        compute.VirtualMachine,
        compute.VirtualMachine,
    ),
    "virtualMachines.deallocate": ("virtual_machines_deallocate", None, None),
    "virtualMachines.delete": ("virtual_machines_delete", None, None),
    "virtualMachines.get": ("virtual_machines_get", None, compute.VirtualMachine),
    "virtualMachines.list": ("virtual_machines_list", None, [compute.VirtualMachine]),
    "virtualMachines.listAll": ("virtual_machines_list_all", None, [compute.VirtualMachine]),
    "virtualMachines.retrieveBootDiagnosticsData": (
        "virtual_machines_retrieve_boot_diagnostics_data",
        None,
        compute.RetrieveBootDiagnosticsDataResult,
    ),
}
NETWORK = {
    "natGateways.createOrUpdate": ("nat_gateways_create_or_update", network.NatGateway, network.NatGateway),
    "natGateways.delete": ("nat_gateways_delete", None, None),
    "natGateways.get": ("nat_gateways_get", None, network.NatGateway),
    "natGateways.listAll": ("nat_gateways_list_all", None, [network.NatGateway]),
    "networkInterfaces.get": ("network_interfaces_get", None, network.NetworkInterface),
    "networkInterfaces.list": ("network_interfaces_list", None, [network.NetworkInterface]),
    "networkInterfaces.listAll": ("network_interfaces_list_all", None, [network.NetworkInterface]),
    "networkSecurityGroups.createOrUpdate": (
        "network_security_groups_create_or_update",
        network.NetworkSecurityGroup,
        network.NetworkSecurityGroup,
    ),
    "networkSecurityGroups.delete": ("network_security_groups_delete", None, None),
    "networkSecurityGroups.get": ("network_security_groups_get", None, network.NetworkSecurityGroup),
    "networkSecurityGroups.listAll": ("network_security_groups_list_all", None, [network.NetworkSecurityGroup]),
    "networkUsages.list": ("usages_list", None, [network.Usage]),
    "publicIPAddresses.createOrUpdate": (
        "public_ip_addresses_create_or_update",
        network.PublicIPAddress,
        network.PublicIPAddress,
    ),
    "publicIPAddresses.delete": ("public_ip_addresses_delete", None, None),
    "publicIPAddresses.list": ("public_ip_addresses_list", None, [network.PublicIPAddress]),
    "publicIPAddresses.listAll": ("public_ip_addresses_list_all", None, [network.PublicIPAddress]),
    "virtualNetworks.createOrUpdate": (
        "virtual_networks_create_or_update",
        network.VirtualNetwork,
        network.VirtualNetwork,
    ),
    "virtualNetworks.delete": ("virtual_networks_delete", None, None),
    "virtualNetworks.get": ("virtual_networks_get", None, network.VirtualNetwork),
    "virtualNetworks.listAll": ("virtual_networks_list_all", None, [network.VirtualNetwork]),
}
_S, _G = "/subscriptions/{subscriptionId}", "/subscriptions/{subscriptionId}/resourceGroups/{resourceGroupName}"
_ROLES = "/providers/Microsoft.Authorization/"
# https://learn.microsoft.com/en-us/rest/api/resources/, .../authorization/, .../managedidentity/
OTHERS = {
    "operations.get": ("GET", _S + "/providers/{provider}/locations/{location}/operations/{id}", ""),
    "permissions.list": ("GET", _S + _ROLES + "permissions", "2022-04-01"),
    "permissions.listForGroup": ("GET", _G + _ROLES + "permissions", "2022-04-01"),
    "providers.get": ("GET", _S + "/providers/{namespace}", "2022-09-01"),
    "resourceGroups.createOrUpdate": ("PUT", _G, "2022-09-01"),
    "resourceGroups.get": ("GET", _G, "2022-09-01"),
    "resources.list": ("GET", _S + "/resources", "2022-09-01"),
    "roleAssignments.list": ("GET", _S + _ROLES + "roleAssignments", "2022-04-01"),
    "roleAssignments.create": ("PUT", _G + _ROLES + "roleAssignments/{name}", "2022-04-01"),
    "roleDefinitions.get": ("GET", _S + _ROLES + "roleDefinitions/{name}", "2022-04-01"),
    "roleDefinitions.createOrUpdate": ("PUT", _S + _ROLES + "roleDefinitions/{name}", "2022-04-01"),
    "subscriptions.list": ("GET", "/subscriptions", "2022-09-01"),
    "userAssignedIdentities.get": (
        "GET",
        _G + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}",
        "2023-01-31",
    ),
    "userAssignedIdentities.createOrUpdate": (
        "PUT",
        _G + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}",
        "2023-01-31",
    ),
}
_FREE_QUERY = {"$filter", "$expand", "$top", "$skiptoken"}


def _routes() -> dict[str, Route]:
    found = {}
    for wanted, module in ((COMPUTE, compute_operations), (NETWORK, network_operations)):
        text = inspect.getsource(module)
        for name, (builder, body, answer) in wanted.items():
            found[name] = _built(text, builder, body, answer)
    for name, (verb, path, version) in OTHERS.items():
        found[name] = Route(verb, path, frozenset(_FREE_QUERY), versions=frozenset(filter(None, [version])))
    return found


def _versions(text: str, newest: str) -> frozenset[str]:
    """Those of a group of operations, by its newest: galleries, disks and the list of sizes have their own each."""
    lists = re.findall(r"api_versions_list=\[([^]]+)\]", text)
    groups = [re.findall(r'"([^"]+)"', each) for each in lists]
    return frozenset({newest}.union(*(group for group in groups if group[-1] == newest)))


def _built(text: str, builder: str, body: Any, answer: Any) -> Route:
    """One generated function ``build_..._request``."""
    code = re.search(rf"^def build_{builder}_request\(.*?\n    return HttpRequest\(method=\"(\w+)\"", text, re.M | re.S)
    assert code, builder
    path = re.search(r'_url = \(?\s*"([^"]+)"', code[0])
    own = re.search(r'"api-version", "(20\d\d-\d\d-\d\d)"', code[0])
    assert path and own
    query = frozenset(re.findall(r'_params\["([^"]+)"\]', code[0])) - {"api-version"}
    headers = frozenset(name.lower() for name in re.findall(r'_headers\["([^"]+)"\]', code[0]))
    return Route(code[1], path[1], query, headers, _versions(text, own[1]), body, answer)


ROUTES = _routes()
STALE = {"VirtualMachineSizeTypes"}  # its own documentation says that it lacks newer sizes


def find(verb: str, path: str) -> tuple[str, Route, dict[str, str]]:
    """The operation of a call and the parameters in its path."""
    for name, route in ROUTES.items():
        matched = route.pattern.fullmatch(path)
        if matched and verb == route.verb:
            return name, route, {key: unquote(value) for key, value in matched.groupdict().items()}
    raise Refused(404, "InvalidResourceType", f"The resource type could not be found for {verb} '{path}'.")


def check_query(route: Route, query: dict[str, str]) -> None:
    version = query.get("api-version")
    if not version:
        raise Refused(400, "MissingApiVersionParameter", "The api-version query parameter (?api-version=) is required.")
    if route.versions and version not in route.versions:
        known = ", ".join(sorted(route.versions))
        raise Refused(400, "NoRegisteredProviderFound", f"The supported api-versions are '{known}', not '{version}'.")
    for name in query:
        if name not in route.query | {"api-version", "$skiptoken"}:
            raise Refused(400, "InvalidQueryParameter", f"The query parameter '{name}' is not known.")


def check_headers(route: Route, headers: Any) -> None:
    for name in ("If-Match", "If-None-Match"):
        if headers.get(name) and name.lower() not in route.headers:
            raise Refused(400, "InvalidHeader", f"The header '{name}' is not known.")


# Models


@cache
def fields(model: Any) -> dict[str, tuple[Any, bool, bool]]:
    """Name on the wire -> type, whether it may be sent, whether it must be."""
    package: ModuleType = network if model.__module__.startswith("azure.mgmt.network") else compute
    names = {**vars(inspect.getmodule(model)), "_models": package}
    hints = typing.get_type_hints(model, names, names)
    found = {}
    for attribute, rest in model({})._attr_to_rest_field.items():
        hint = hints[attribute]
        writable = not rest._visibility or bool({"create", "update"} & set(rest._visibility))
        found[rest._rest_name] = (hint, writable, writable and type(None) not in typing.get_args(hint))
    return found


def check(kind: Any, value: Any, where: str, answer: bool = False) -> None:
    """Refuses unknown fields, wrong types, unknown values of enumerations; in a request, also what Azure alone sets."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or value is None:
        return None
    if origin is typing.Union:
        return _check_union([each for each in inner if each is not type(None)], value, where, answer)
    if origin is list or isinstance(kind, list):
        if not isinstance(value, list):
            raise invalid(where, "an array", value)
        for i, each in enumerate(value):
            check(inner[0], each, f"{where}[{i}]", answer)
    elif origin is typing.Literal:
        if value not in inner:
            raise invalid(where, str(inner), value)
    elif origin is dict:
        if not isinstance(value, dict):
            raise invalid(where, "an object", value)
        for key, each in value.items():
            check(inner[1], each, f"{where}.{key}", answer)
    elif hasattr(kind, "_attr_to_rest_field") or hasattr(kind, "_deserialize"):
        _check_model(kind, value, where, answer)
    else:
        _check_plain(kind, value, where)


def invalid(where: str, wanted: str, value: Any) -> Refused:
    return Refused(400, "InvalidRequestFormat", f"Cannot parse '{where}': {wanted} is expected, not {value!r}.")


def _check_union(kinds: list[Any], value: Any, where: str, answer: bool) -> None:
    enums = [each for each in kinds if isinstance(each, type) and issubclass(each, enum.Enum)]
    if enums and enums[0].__name__ not in STALE:
        known = {member.value.lower() for each in enums for member in each}
        if not isinstance(value, str) or value.lower() not in known:
            raise Refused(400, "InvalidParameter", f"The value '{value}' of parameter '{where}' is invalid.")
        return
    check(str if enums else kinds[0], value, where, answer)


def _check_model(kind: Any, value: Any, where: str, answer: bool) -> None:
    if not isinstance(value, dict):
        raise invalid(where, "an object", value)
    known = fields(kind)
    for key, each in value.items():
        if key not in known or not (known[key][1] or answer):
            why = f"Could not find member '{key}' on object of type '{kind.__name__}'. Path '{where}.{key}'."
            raise Refused(400, "InvalidRequestContent", why)
        check(known[key][0], each, f"{where}.{key}", answer)
    if missing := [key for key, (_, _, must) in known.items() if must and key not in value and not answer]:
        raise Refused(400, "InvalidParameter", f"Required parameter '{where}.{missing[0]}' is missing (null).")


def _check_plain(kind: Any, value: Any, where: str) -> None:
    if kind is datetime:
        kind = str
    wanted = {float: (int, float), int: int, str: str, bool: bool}.get(kind)
    if wanted is None:
        raise NotImplementedError(f"{where}: {kind}")
    if not isinstance(value, wanted) or (kind is not bool and isinstance(value, bool)):
        raise invalid(where, kind.__name__, value)
