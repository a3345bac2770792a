"""An Azure Resource Manager that answers on this computer and refuses whatever Azure's own models do not allow.

Operations take time, sizes and quotas run out, lists have pages, calls fail where they are told to. What is checked
beyond the models is what Azure's documentation says about machines, images, tags, spot, addresses and names.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from azure_contract import ROUTES, Refused, check, check_headers, check_query, find
from azure_rights import needs
from tools import serving

SUBSCRIPTION, OTHER = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"
TENANT = "33333333-3333-3333-3333-333333333333"
WHO = "launcher@example.com"
TOKEN = f"e30.{base64.urlsafe_b64encode(json.dumps({'upn': WHO}).encode()).decode().rstrip('=')}.x"
LOCATIONS = {"eastus": ("1", "2", "3"), "westeurope": ("1", "2", "3"), "northcentralus": ()}
# name -> CPUs, GiB, architecture, GPUs, family, zones of eastus, generations
SIZES: dict[str, tuple[int, float, str, float, str, tuple[str, ...], str]] = {
    "Standard_D2s_v5": (2, 8, "x64", 0, "standardDSv5Family", ("1", "2", "3"), "V1,V2"),
    "Standard_D4s_v5": (4, 16, "x64", 0, "standardDSv5Family", ("1", "2", "3"), "V1,V2"),
    "Standard_D4as_v5": (4, 16, "x64", 0, "standardDASv5Family", ("1", "2"), "V1,V2"),
    "Standard_D2ps_v5": (2, 8, "Arm64", 0, "standardDPSv5Family", ("1",), "V2"),
    "Standard_DS1_v2": (1, 3.5, "x64", 0, "standardDSv2Family", ("1", "2", "3"), "V1"),
    "Standard_NC12s_v3": (12, 224, "x64", 2, "standardNCSv3Family", ("1", "2"), "V1,V2"),
    "Standard_NV6ads_A10_v5": (6, 55, "x64", 0.1667, "StandardNVADSA10v5Family", ("1", "2"), "V2"),
    "Standard_NC4as_T4_v3": (4, 28, "x64", 1, "Standard NCASv3_T4 Family", ("1", "2"), "V1,V2"),
}
# Quotas of addresses, of which each of ours (of Standard SKU and static) uses one up -> code and words of the refusal.
ADDRESSES = {
    "PublicIPAddresses": ("PublicIPCountLimitReached", "public IP addresses"),
    "StaticPublicIPAddresses": (
        "StaticPublicIPCountLimitReached", "public IP addresses with static allocation method"
    ),
    "IPv4StandardSkuPublicIpAddresses": (
        "IPv4StandardSkuPublicIpCountLimitReached", "IPv4 Standard SKU public IP addresses"
    ),
}  # fmt: skip
DISKS = ("StandardSSD_LRS", "StandardSSD_ZRS", "Premium_LRS", "Premium_ZRS", "Standard_LRS")
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,62}[A-Za-z0-9_])?")
CREATED = "2026-11-21T04:12:54.1234567+00:00"
WRITES = (".createOrUpdate", ".create", ".delete", ".deallocate")


@dataclass
class Fault:
    """Answers to come: ``times`` refusals of one operation, or, ``later``, operations that begin and then end so."""

    operation: str
    message: str
    code: str = "InternalServerError"
    status: int = 500
    later: bool = False
    retry_after: str = ""
    times: int = 1


@dataclass
class Fake:
    """One tenant with one subscription. The fields may be changed while it runs."""

    takes: float = 0.0  # seconds of an operation
    latency: float = 0.0  # seconds of a call
    page: int = 500
    address: str | None = None  # of every machine
    me: str = "203.0.113.7"
    capacity: dict[tuple[str, str | None, bool], int] = field(default_factory=dict)  # by size, zone, spot; else enough
    price: float = 0.0  # of a spot machine
    quota: dict[str, int] = field(default_factory=dict)  # CPUs by family, cores, and of addresses
    permissions: set[str] | None = None  # of the caller; None is all
    in_group: dict[str, set[str]] = field(default_factory=dict)  # by name in lower case: what it may there besides
    conditional: set[str] = field(default_factory=set)  # of these, what it may do on conditions that are not met
    faults: list[Fault] = field(default_factory=list)
    consoles: Mapping[str, str] = field(default_factory=dict)
    calls: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    on_run: Any = None  # called with the body and the name of each machine that starts
    on_end: Any = None  # called with the name of each machine that is deleted

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        self.takes, self.latency, self.page, self.address, self.me = 0.0, 0.0, 500, None, "203.0.113.7"
        self.capacity, self.quota, self.permissions, self.faults, self.consoles = {}, {}, None, [], {}
        self.in_group, self.conditional, self.propagation, self.price = {}, set(), 0, 0.0
        self.on_run = self.on_end = None
        self.calls.clear()
        self.subscriptions = {SUBSCRIPTION: "Research"}
        self.groups: dict[str, dict[str, Any]] = {}
        self.resources: dict[str, dict[str, Any]] = {}  # by id in lower case
        self.operations: dict[str, dict[str, Any]] = {}
        self.registered = {"Microsoft.Compute", "Microsoft.Network", "Microsoft.ManagedIdentity"}
        self.roles: dict[str, dict[str, Any]] = {}  # definitions by name
        self.assigned: list[dict[str, Any]] = []
        self.images = {
            ("Canonical", offer, sku, "24.04.202611100"): (30, arch, gen)
            for offer in ("ubuntu-26_04-lts", "ubuntu-24_04-lts")
            for sku, arch, gen in (
                ("server", "x64", "V2"), ("server-gen1", "x64", "V1"), ("server-arm64", "Arm64", "V2")
            )
        }  # fmt: skip
        self.plans: dict[tuple[str, str, str], dict[str, str]] = {}
        self.restricted: dict[str, list[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)

    # For tests

    def count(self) -> Counter[str]:
        return Counter(name for name, _, _ in self.calls)

    def writes(self) -> list[str]:
        return [name for name, _, _ in self.calls if name.endswith(WRITES)]

    def reads(self) -> list[str]:
        return [name for name, _, _ in self.calls if not name.endswith(WRITES)]

    def sent(self, operation: str = "virtualMachines.createOrUpdate") -> list[tuple[dict[str, str], Any]]:
        return [(parameters, body) for name, parameters, body in self.calls if name == operation]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The resources of one kind, such as virtualMachines."""
        with self._lock:
            self._advance()
            return [each for each in self.resources.values() if each["type"].endswith(f"/{kind}")]

    def there(self) -> dict[str, dict[str, Any]]:
        gone = ("Deleting", "Failed")
        return {m["name"]: m for m in self.of("virtualMachines") if m["properties"]["provisioningState"] not in gone}

    def ended(self, name: str) -> None:
        """As if the machine of this name had switched itself off: it is there, and is billed on."""
        with self._lock:
            for machine in self.of("virtualMachines"):
                if machine["name"] == name and machine["properties"]["_power"] == "running":
                    machine["properties"]["_power"] = "stopped"

    def leftovers(self) -> list[str]:
        """Names of whatever machines bring with them."""
        kinds = ("virtualMachines", "networkInterfaces", "disks")
        addresses = [each for each in self.of("publicIPAddresses") if not each["name"].startswith("dask-cloudvm-")]
        return [each["name"] for each in [*addresses, *(each for kind in kinds for each in self.of(kind))]]

    def add(self, kind: str, name: str, group: str, location: str = "eastus", **properties: Any) -> str:
        """Something that is there already; its id."""
        self.groups.setdefault(group.lower(), {"name": group, "location": location, "tags": {}})
        provider = {"userAssignedIdentities": "ManagedIdentity"} | dict.fromkeys(("galleries", "images"), "Compute")
        id = self._id(group, f"Microsoft.{provider.get(kind, 'Network')}/{kind}", name)
        self._store(id, location, {}, properties)
        return id

    def network(
        self, group: str = "my-group", location: str = "eastus", subnets: tuple[str, ...] = ("default",)
    ) -> None:
        """A resource group with a network and a security group, as dask-cloudprovider's documentation has them made."""
        made = [
            {"name": name, "id": f"{self._id(group, 'Microsoft.Network/virtualNetworks', 'my-vnet')}/subnets/{name}"}
            for name in subnets
        ]
        self.add("virtualNetworks", "my-vnet", group, location, subnets=made)
        self.add("networkSecurityGroups", "my-nsg", group, location, securityRules=[])

    def serving(self) -> AbstractContextManager[str]:
        return serving(_handler(self))

    # HTTP

    def answer(self, verb: str, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        path = urlsplit(url).path
        query = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
        if path == "/checkip":
            return 200, {"Content-Type": "text/plain"}, f"{self.me}\n".encode()
        if path == "/token":
            assert headers["X-IDENTITY-HEADER"] == "secret"
            return _json(200, _token())
        if path.startswith("/metadata/"):
            return self._metadata(path.removeprefix("/metadata/"), query, headers)
        if path.startswith("/console/"):
            assert query["sig"] == "signed" and "Authorization" not in headers
            return 200, {"Content-Type": "text/plain"}, self.consoles.get(path.rpartition("/")[2], "").encode()
        time.sleep(self.latency)
        try:
            return self._call(verb, path, query, headers, json.loads(body) if body else None)
        except Refused as refused:
            extra = {"Retry-After": refused.retry_after} if refused.retry_after else {}
            status, answered, content = _json(refused.status, refused.body())
            return status, {**answered, **extra}, content

    def _metadata(
        self, what: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        """What a machine's metadata service tells it: https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service"""
        assert headers["Metadata"] == "true"
        machine = next(iter(self.of("virtualMachines")))
        identity = machine.get("identity") or {}
        if what == "instance/compute":
            return _json(200, {"resourceId": machine["id"], "name": machine["name"]})
        ids = [each.lower() for each in identity.get("userAssignedIdentities", {})]
        known = query["msi_res_id"].lower() in ids if "msi_res_id" in query else "SystemAssigned" in identity["type"]
        if not known:
            return _json(400, {"error": "invalid_request", "error_description": "Identity not found"})
        return _json(200, _token())

    def _call(
        self, verb: str, path: str, query: dict[str, str], headers: Mapping[str, str], body: Any
    ) -> tuple[int, dict[str, str], bytes]:
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "InvalidAuthenticationToken", "The access token is invalid.")
        name, route, where = find(verb, path)
        check_query(route, query)
        check_headers(route, headers)
        if (body is None) == (route.verb == "PUT"):
            raise Refused(400, "InvalidRequestContent", "The request content was invalid.")
        if route.body:
            check(route.body, body, "parameters")
        p = {**query, **where}
        with self._lock:
            self.calls.append((name, p, body))
            if "subscriptionId" in where and where["subscriptionId"] not in self.subscriptions:
                message = f"The subscription '{where['subscriptionId']}' could not be found."
                raise Refused(404, "SubscriptionNotFound", message)
            later = self._fault(name)
            self._authorize(name, p, body)
            self._check_registered(path)
            self._advance()
            p["base"] = f"{headers.get('X-Forwarded-Proto', 'http')}://{headers['Host']}"
            status, more, answer = self._act(name, p, body, headers, later)
        if answer is not None and route.answer:
            if isinstance(route.answer, list):
                for each in answer["value"]:
                    check(route.answer[0], each, name, answer=True)
            else:
                check(route.answer, answer, name, answer=True)
        code, kinds, content = _json(status, answer)
        return code, {**kinds, **more}, content if answer is not None else b""

    def _act(
        self, name: str, p: dict[str, str], body: Any, headers: Mapping[str, str], later: Fault | None
    ) -> tuple[int, dict[str, str], Any]:
        kind, _, verb = name.rpartition(".")
        own = getattr(self, f"_on_{kind}_{verb}", None)
        if own:
            found = own(p, body, headers, later) if name.endswith(WRITES) else own(p)
            return found if isinstance(found, tuple) else (200, {}, found)
        if verb in ("list", "listAll"):
            return 200, {}, self._pages(p, self._listed(kind, p))
        if verb == "get":
            return 200, {}, self._shown(self._found(p, kind))
        if verb == "createOrUpdate":
            return self._make(kind, p, body, later)
        return self._unmake(kind, p, later)

    def _fault(self, name: str) -> Fault | None:
        for fault in self.faults:
            if fault.operation == name and fault.times > 0:
                fault.times -= 1
                if fault.later:
                    return fault
                raise Refused(fault.status, fault.code, fault.message, fault.retry_after)
        return None

    # Resources

    def _id(self, group: str, type: str, name: str) -> str:
        return f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{group}/providers/{type}/{name}"

    def _store(self, id: str, location: str, extra: Mapping[str, Any], properties: Mapping[str, Any]) -> dict[str, Any]:
        parts = id.split("/")
        found = {"id": id, "name": parts[-1], "type": f"{parts[6]}/{parts[7]}", "location": location, **extra}
        found["properties"] = {"provisioningState": "Succeeded", **properties}
        self.resources[id.lower()] = found
        return found

    def _group_of(self, p: Mapping[str, str]) -> dict[str, Any]:
        name = p["resourceGroupName"]
        if name.lower() not in self.groups:
            raise Refused(404, "ResourceGroupNotFound", f"Resource group '{name}' could not be found.")
        return self.groups[name.lower()]

    def _path(self, p: Mapping[str, str], kind: str) -> str:
        provider = "Microsoft.Compute" if kind in ("virtualMachines", "images") else "Microsoft.Network"
        provider = "Microsoft.ManagedIdentity" if kind == "userAssignedIdentities" else provider
        name = next(v for k, v in p.items() if k.lower().endswith("name") and k != "resourceGroupName")
        return self._id(p["resourceGroupName"], f"{provider}/{kind}", name)

    def _found(self, p: Mapping[str, str], kind: str) -> dict[str, Any]:
        self._group_of(p)
        id = self._path(p, kind)
        if id.lower() not in self.resources:
            short = "/".join(id.split("/")[6:])
            message = f"The Resource '{short}' under resource group '{p['resourceGroupName']}' was not found."
            raise Refused(404, "ResourceNotFound", message)
        return self.resources[id.lower()]

    def _shown(self, resource: Mapping[str, Any]) -> dict[str, Any]:
        """With what refers to it."""
        found = json.loads(json.dumps(resource))
        id = resource["id"].lower()
        hidden = [key for key in found["properties"] if key.startswith("_")]
        for key in hidden:
            del found["properties"][key]
        if found["type"].endswith("/networkSecurityGroups"):
            used = [c["id"] for c in self._cards_of() if _id_of(c["properties"].get("networkSecurityGroup")) == id]
            found["properties"]["networkInterfaces"] = [{"id": each} for each in used]
        if found["type"].endswith("/virtualNetworks"):
            for subnet in found["properties"].get("subnets", ()):
                inside = [
                    {"id": f"{c['id']}/ipConfigurations/machine"}
                    for c in self._cards_of()
                    if _id_of(c["properties"]["ipConfigurations"][0]["properties"]["subnet"]) == subnet["id"].lower()
                ]
                subnet.setdefault("properties", {})["ipConfigurations"] = inside
        if found["type"].endswith("/virtualMachines"):
            (found["properties"].get("osProfile") or {}).pop("customData", None)
        return found

    def _cards_of(self) -> list[dict[str, Any]]:
        return [each for each in self.resources.values() if each["type"].endswith("/networkInterfaces")]

    def _listed(self, kind: str, p: Mapping[str, str]) -> list[Any]:
        group = f"/resourcegroups/{p['resourceGroupName'].lower()}/" if "resourceGroupName" in p else ""
        if group:
            self._group_of(p)
        found = [r for id, r in self.resources.items() if r["type"].endswith(f"/{kind}") and group in id]
        if p.get("statusOnly") == "true":
            return [self._status(each) for each in found]
        return [self._shown(each) for each in found]

    def _pages(self, p: Mapping[str, str], items: list[Any]) -> dict[str, Any]:
        start = int(p.get("$skiptoken", 0))
        found: dict[str, Any] = {"value": items[start : start + self.page]}
        if start + self.page < len(items):
            kept = {k: v for k, v in p.items() if k in ("api-version", "$filter", "statusOnly")}
            query = "&".join(f"{k}={quote(v)}" for k, v in {**kept, "$skiptoken": str(start + self.page)}.items())
            found["nextLink"] = f"{p['base']}{self._asked(p)}?{query}"
        return found

    def _asked(self, p: Mapping[str, str]) -> str:
        return ROUTES[self.calls[-1][0]].path.format(**p)

    # Operations

    def _advance(self) -> None:
        """What has ended by now takes effect."""
        now = time.monotonic()
        for operation in list(self.operations.values()):
            if operation["done"] <= now and operation["effect"]:
                effect, operation["effect"] = operation["effect"], None
                effect()

    def _operation(
        self, p: Mapping[str, str], provider: str, effect: Callable[[], None], error: Fault | None = None
    ) -> dict[str, str]:
        """The headers that tell of one."""
        id = f"{next(self._numbers):08d}"
        self.operations[id] = {"done": time.monotonic() + self.takes, "effect": effect, "error": error}
        self._advance()
        url = f"{p['base']}/subscriptions/{p['subscriptionId']}/providers/{provider}/locations/eastus/operations/{id}"
        return {"Azure-AsyncOperation": f"{url}?api-version={p['api-version']}", "Retry-After": "10"}

    def _on_operations_get(self, p: Mapping[str, str]) -> Any:
        record = self.operations[p["id"]]
        if record["done"] > time.monotonic():
            return 200, {"Retry-After": "10"}, {"status": "InProgress", "name": p["id"]}
        if "canceled" in record:
            return {"status": "Canceled", "name": p["id"], "error": record["canceled"]}
        if record["error"]:
            error = {"code": record["error"].code, "message": record["error"].message}
            return {"status": "Failed", "name": p["id"], "error": error}
        return {"status": "Succeeded", "name": p["id"]}

    # What clusters share

    def _make(self, kind: str, p: Mapping[str, str], body: Any, later: Fault | None) -> tuple[int, dict[str, str], Any]:
        self._group_of(p)
        self._check_tags(body)
        id = self._path(p, kind)
        old = self.resources.get(id.lower())
        properties = json.loads(json.dumps(body.get("properties") or {}))
        for subnet in properties.get("subnets", ()):
            subnet["id"] = f"{id}/subnets/{subnet['name']}"
            self._check_reference(subnet["properties"].get("natGateway"))
        for rule in properties.get("securityRules", ()):
            rule["id"] = f"{id}/securityRules/{rule['name']}"
            self._check_rule(rule["properties"])
        for address in properties.get("publicIpAddresses", ()):
            self._check_reference(address)
        if kind == "publicIPAddresses" and not old:
            self._check_addresses()
        if old and old["properties"]["provisioningState"] == "Updating":
            self._supersede(kind, old)
        if kind == "userAssignedIdentities":
            number = next(self._numbers)
            properties |= {"principalId": f"p-{number}", "clientId": f"c-{number}", "tenantId": TENANT}
            properties |= old["properties"] if old else {}
        extra = {key: body[key] for key in ("tags", "sku") if key in body}
        made = self._store(id, body["location"], extra, properties)
        if kind == "userAssignedIdentities":
            return 200 if old else 201, {}, self._shown(made)
        made["properties"]["provisioningState"] = "Updating"

        def effect() -> None:
            made["properties"]["provisioningState"] = "Failed" if later else "Succeeded"

        headers = self._operation(p, "Microsoft.Network", effect, later)
        made["properties"]["_operation"] = max(self.operations)
        return 200 if old else 201, headers, self._shown(made)

    def _supersede(self, kind: str, old: Mapping[str, Any]) -> None:
        """The newer of two changes wins, but for addresses."""
        if kind == "publicIPAddresses":
            message = f"Another operation on this or dependent resource is in progress. Resource '{old['id']}'"
            raise Refused(409, "AnotherOperationInProgress", message)
        said = f"Operation Put{kind}Operation was canceled and superseded by operation Put{kind}Operation."
        detail = {"code": "CanceledAndSupersededDueToAnotherOperation", "message": said}
        error = {"code": "Canceled", "message": "Operation was canceled.", "details": [detail]}
        self.operations[old["properties"]["_operation"]] |= {"done": 0.0, "effect": None, "canceled": error}

    def _unmake(self, kind: str, p: Mapping[str, str], later: Fault | None) -> tuple[int, dict[str, str], Any]:
        self._group_of(p)
        resource = self.resources.get(self._path(p, kind).lower())
        if resource is None:
            return 204, {}, None
        id, shown = resource["id"].lower(), self._shown(resource)["properties"]
        others = json.dumps([r for key, r in self.resources.items() if key != id]).lower()
        inside = [c for s in shown.get("subnets", ()) for c in s["properties"]["ipConfigurations"]]
        if inside or f'"{id}"' in others or f"{id}/subnets/" in others:
            code = {
                "networkSecurityGroups": "InUseNetworkSecurityGroupCannotBeDeleted",
                "natGateways": "CannotDeleteNatGatewayAssociatedToSubnet",
                "publicIPAddresses": "PublicIPAddressCannotBeDeleted",
                "virtualNetworks": "InUseSubnetCannotBeDeleted",
            }
            raise Refused(400, code.get(kind, "InUse"), f"{resource['id']} is in use.")
        return 202, self._operation(p, "Microsoft.Network", lambda: self.resources.pop(id, None), later), None

    def _check_reference(self, reference: Any) -> None:
        if not reference:
            return
        found = self.resources.get(re.sub(r"/subnets/[^/]+$", "", reference["id"]).lower())
        if found is None:
            message = f"Resource {reference['id']} referenced by the request was not found."
            raise Refused(400, "InvalidResourceReference", message)
        if found["properties"]["provisioningState"] != "Succeeded":
            message = f"Cannot proceed with operation because resource {reference['id']} is not in Succeeded state."
            raise Refused(409, "ReferencedResourceNotProvisioned", message)

    def _check_rule(self, rule: Any) -> None:
        families = {":" in network for network in rule["sourceAddressPrefixes"]}
        if len(families) > 1:
            raise Refused(400, "SecurityRuleInvalidAddressPrefix", "IPv4 and IPv6 cannot be combined in one rule.")

    def _check_tags(self, body: Any) -> None:
        tags = body.get("tags") or {}
        if len(tags) > 50:
            raise Refused(400, "TagsLimitExceeded", "The maximum number of tags is 50.")
        for key, value in tags.items():
            if re.search(r"[<>%&\\?/]", key) or len(key) > 512 or len(value) > 256:
                raise Refused(400, "InvalidTagNameCharacters", f"The tag '{key}' is invalid.")

    # Subscriptions, groups, permissions

    def _on_subscriptions_list(self, p: Mapping[str, str]) -> Any:
        shown = [
            {"id": f"/subscriptions/{id}", "subscriptionId": id, "displayName": name, "state": "Enabled"}
            for id, name in self.subscriptions.items()
        ]
        return {"value": shown}

    def _on_resourceGroups_get(self, p: Mapping[str, str]) -> Any:
        return self._group_of(p)

    def _on_resourceGroups_createOrUpdate(self, p: Mapping[str, str], body: Any, *_: Any) -> Any:
        if body["location"] not in LOCATIONS:
            raise Refused(400, "LocationNotAvailableForResourceGroup", f"The location '{body['location']}' is invalid.")
        name = p["resourceGroupName"]
        new = name.lower() not in self.groups
        self.groups.setdefault(name.lower(), {"name": name, **body, "properties": {"provisioningState": "Succeeded"}})
        return 201 if new else 200, {}, self.groups[name.lower()]

    def _on_resources_list(self, p: Mapping[str, str]) -> Any:
        wanted = re.fullmatch(r"tagName eq '([^']+)'(?: and tagValue eq '([^']+)')?", p["$filter"])
        assert wanted
        found = [
            {k: r[k] for k in ("id", "name", "type", "location")} | {"createdTime": CREATED}
            for r in self.resources.values()
            if (r.get("tags") or {}).get(wanted[1]) in ([wanted[2]] if wanted[2] else (r.get("tags") or {}).values())
        ]
        return self._pages(p, found)

    def _on_providers_get(self, p: Mapping[str, str]) -> Any:
        state = "Registered" if p["namespace"] in self.registered else "NotRegistered"
        return {"namespace": p["namespace"], "registrationState": state}

    def _on_permissions_list(self, p: Mapping[str, str]) -> Any:
        """Those of the caller at the scope that is asked about."""
        granted, some = self._allowed(p), sorted(self.conditional)
        of_role = {"actions": ["*"] if granted is None else sorted(granted - self.conditional), "notActions": some}
        limited = {
            "actions": some,
            "notActions": [],
            "condition": "@Request[...:RoleDefinitionId] ...",
            "conditionVersion": "2.0",
        }
        return {"value": [of_role, limited] if some else [of_role]}

    def _allowed(self, p: Mapping[str, str]) -> set[str] | None:
        if self.permissions is None:
            return None
        return self.permissions | self.in_group.get(p.get("resourceGroupName", "").lower(), set())

    _on_permissions_listForGroup = _on_permissions_list

    def _on_roleAssignments_list(self, p: Mapping[str, str]) -> Any:
        who = re.fullmatch(r"assignedTo\('([^']+)'\)|principalId eq '([^']+)'", p["$filter"])
        assert who
        return {"value": [each for each in self.assigned if each["properties"]["principalId"] in who.groups()]}

    def _on_roleAssignments_create(self, p: Mapping[str, str], body: Any, *_: Any) -> Any:
        scope = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{p['resourceGroupName']}"
        made = {"name": p["name"], "properties": {**body["properties"], "scope": scope}}
        if any(each["name"] == p["name"] for each in self.assigned):
            raise Refused(409, "RoleAssignmentExists", "The role assignment already exists.")
        role, who = body["properties"]["roleDefinitionId"].rpartition("/")[2], body["properties"]["principalId"]
        if role not in self.roles or self.propagation > 0:
            self.propagation -= 1
            message = f"The specified role definition with ID '{role}' does not exist."
            raise Refused(400, "RoleDefinitionDoesNotExist", message)
        if not any(who == each["properties"].get("principalId") for each in self.resources.values()):
            raise Refused(400, "PrincipalNotFound", f"Principal {who} does not exist in the directory {TENANT}.")
        self.assigned.append(made)
        return 201, {}, made

    def _on_roleDefinitions_get(self, p: Mapping[str, str]) -> Any:
        if p["name"] not in self.roles:
            raise Refused(404, "RoleDefinitionDoesNotExist", f"The role definition '{p['name']}' does not exist.")
        return self.roles[p["name"]]

    def _on_roleDefinitions_createOrUpdate(self, p: Mapping[str, str], body: Any, *_: Any) -> Any:
        self.roles[p["name"]] = {"name": p["name"], **body}
        return 201, {}, self.roles[p["name"]]

    def _check_registered(self, path: str) -> None:
        """Authorization and Resources are always."""
        _, inside, rest = path.lower().rpartition("/providers/")
        known = {each.lower() for each in self.registered} | {"microsoft.authorization"}
        if inside and "/" in rest and (namespace := rest.split("/")[0]) not in known:
            message = f"The subscription is not registered to use namespace '{namespace}'."
            raise Refused(409, "MissingSubscriptionRegistration", message)

    def _authorize(self, name: str, p: Mapping[str, str], body: Any) -> None:
        allowed = self._allowed(p)
        for action in needs(name, body, p.get("provider", "")):
            if action in self.conditional or not (allowed is None or action in allowed):
                scope = f"/subscriptions/{p['subscriptionId']}"
                scope += f"/resourceGroups/{p['resourceGroupName']}" if "resourceGroupName" in p else ""
                message = (
                    f"The client '{WHO}' with object id 'o' does not have authorization to perform action '{action}' "
                    f"over scope '{scope}' or the scope is invalid. If access was recently granted, please refresh "
                    "your credentials."
                )
                raise Refused(403, "AuthorizationFailed", message)

    # Compute

    def _on_skus_list(self, p: Mapping[str, str]) -> Any:
        location = re.fullmatch(r"location eq '(\w+)'", p["$filter"])[1]
        if location not in LOCATIONS:
            return {"value": []}
        disk = {"resourceType": "disks", "name": "Premium_LRS", "locations": [location]}
        return self._pages(p, [disk, *(self._sku(name, location) for name in SIZES)])

    def _sku(self, name: str, location: str) -> dict[str, Any]:
        cpus, memory, architecture, gpus, family, zones, generations = SIZES[name]
        has = {
            "vCPUs": str(cpus), "MemoryGB": str(memory), "CpuArchitectureType": architecture, "GPUs": str(gpus),
            "HyperVGenerations": generations, "AcceleratedNetworkingEnabled": str(cpus > 1), "PremiumIO": "True",
        }  # fmt: skip
        offered = [zone for zone in zones if zone in LOCATIONS[location]]
        return {
            "resourceType": "virtualMachines", "name": name, "family": family, "locations": [location],
            "locationInfo": [{"location": location, "zones": offered, "zoneDetails": []}],
            "capabilities": [{"name": k, "value": v} for k, v in has.items() if v != "0"],
            "restrictions": self.restricted.get(name, []),
        }  # fmt: skip

    def _on_usages_list(self, p: Mapping[str, str]) -> Any:
        families = sorted({size[4] for size in SIZES.values()})
        names = ["cores", "lowPriorityCores", "virtualMachines", *families]
        return {"value": [self._usage(name, self._used(name)) for name in names]}

    def _on_networkUsages_list(self, p: Mapping[str, str]) -> Any:
        return {"value": [self._usage(name, len(self.of("publicIPAddresses"))) for name in ADDRESSES]}

    def _usage(self, name: str, used: int) -> dict[str, Any]:
        usual = 1000 if name in ADDRESSES else 350
        text = {"value": name, "localizedValue": name}
        return {"name": text, "unit": "Count", "currentValue": used, "limit": self.quota.get(name, usual)}

    def _used(self, name: str) -> int:
        sizes = [SIZES[m["properties"]["hardwareProfile"]["vmSize"]] for m in self.there().values()]
        return sum(size[0] for size in sizes if name in ("cores", size[4]))

    def _on_virtualMachineImages_list(self, p: Mapping[str, str]) -> Any:
        wanted = (p["publisherName"], p["offer"], p["skus"])
        found = sorted((version for *parts, version in self.images if tuple(parts) == wanted), reverse=True)
        if not found:
            raise Refused(404, "PlatformImageNotFound", f"The platform image '{wanted}' is not available.")
        return [{"name": v, "location": p["location"]} for v in found[: int(p.get("$top", 100))]]

    def _on_virtualMachineImages_get(self, p: Mapping[str, str]) -> Any:
        key = (p["publisherName"], p["offer"], p["skus"], p["version"])
        if key not in self.images:
            raise Refused(404, "PlatformImageNotFound", f"The platform image '{key}' is not available.")
        _, architecture, generation = self.images[key]
        disk = {"operatingSystem": "Linux"}
        inside = {"architecture": architecture, "hyperVGeneration": generation, "osDiskImage": disk}
        if plan := self.plans.get(key[:3]):
            inside["plan"] = plan
        return {"name": key[3], "location": p["location"], "properties": inside}

    def _on_images_get(self, p: Mapping[str, str]) -> Any:
        return self._shown(self._found(p, "images"))

    def _on_galleryImages_get(self, p: Mapping[str, str]) -> Any:
        id = self._asked(p)
        if id.lower() not in self.resources:
            raise Refused(404, "ResourceNotFound", f"The gallery image {id} was not found.")
        return self._shown(self.resources[id.lower()])

    _on_galleryImageVersions_get = _on_galleryImages_get

    def _on_virtualMachines_createOrUpdate(
        self, p: Mapping[str, str], body: Any, headers: Mapping[str, str], later: Fault | None
    ) -> tuple[int, dict[str, str], Any]:
        group = self._group_of(p)
        id = self._id(group["name"], "Microsoft.Compute/virtualMachines", p["vmName"])
        if id.lower() in self.resources:
            if headers.get("If-None-Match") == "*":
                message = "The operation failed because the specified precondition is not met: the resource exists."
                raise Refused(412, "PreconditionFailed", message)
            raise Refused(409, "PropertyChangeNotAllowed", "Changing property 'osProfile' is not allowed.")
        self._check_machine(p["vmName"], body)
        self._check_quota(body)
        error = later or self._allocate(body)
        inside = json.loads(json.dumps({k: v for k, v in body["properties"].items() if k != "networkProfile"}))
        cards = self._cards(group["name"], id, body)
        number = next(self._numbers)
        made = self._store(
            id, body["location"], {k: body[k] for k in ("tags", "zones", "identity", "plan") if k in body}, inside
        )
        made["properties"] |= {"provisioningState": "Creating", "vmId": f"vm-{number}", "timeCreated": CREATED}
        made["properties"]["networkProfile"] = {"networkInterfaces": [{"id": card} for card in cards]}
        made["properties"]["_power"] = "creating"
        disk = self._disk(group["name"], id, body)
        made["properties"]["storageProfile"]["osDisk"]["managedDisk"] = {"id": disk}

        def effect() -> None:
            if id.lower() not in self.resources or made["properties"]["provisioningState"] == "Deleting":
                return
            made["properties"]["provisioningState"] = "Failed" if error else "Succeeded"
            made["properties"]["_power"] = "" if error else "running"
            made["properties"]["_error"] = [error.code, error.message] if error else None
            if self.on_run and not error:
                self.on_run(body, made["name"])

        shown = self._shown(made)
        return 201, self._operation(p, "Microsoft.Compute", effect, error), shown

    def _cards(self, group: str, machine: str, body: Any) -> list[str]:
        found = []
        for given in body["properties"]["networkProfile"]["networkInterfaceConfigurations"]:
            number = next(self._numbers)
            inside, address = given["properties"], given["properties"]["ipConfigurations"][0]["properties"]
            card = {
                "subnet": address["subnet"],
                "privateIPAddress": self.address or f"10.184.{number // 250}.{number % 250 + 4}",
            }
            if public := address.get("publicIPAddressConfiguration"):
                ip = self._id(group, "Microsoft.Network/publicIPAddresses", f"{public['name']}-{number}")
                outside = self.address or f"20.1.{number // 250}.{number % 250 + 1}"
                option = public["properties"].get("deleteOption", "Detach")
                self._store(
                    ip,
                    body["location"],
                    {"sku": public["sku"], "tags": public.get("tags", {})},
                    {"ipAddress": outside, "_with": [machine, option]},
                )
                card["publicIPAddress"] = {"id": ip}
            id = self._id(group, "Microsoft.Network/networkInterfaces", f"{given['name']}-{number}")
            properties = {
                "virtualMachine": {"id": machine}, "_with": [machine, inside.get("deleteOption", "Detach")],
                "ipConfigurations": [{"name": given["properties"]["ipConfigurations"][0]["name"], "properties": card}],
            }  # fmt: skip
            if "networkSecurityGroup" in inside:
                properties["networkSecurityGroup"] = inside["networkSecurityGroup"]
            self._check_tags(given)
            self._store(id, body["location"], {"tags": given.get("tags", {})}, properties)
            found.append(id)
        return found

    def _disk(self, group: str, machine: str, body: Any) -> str:
        disk = body["properties"]["storageProfile"]["osDisk"]
        id = self._id(group, "Microsoft.Compute/disks", f"{machine.rpartition('/')[2]}_OsDisk_{next(self._numbers)}")
        self._store(id, body["location"], {}, {"_with": [machine, disk.get("deleteOption", "Detach")]})
        return id

    def _check_machine(self, name: str, body: Any) -> None:
        """What Azure refuses although it fits the model."""
        inside = body["properties"]
        if not NAME.fullmatch(name) or not NAME.fullmatch(inside["osProfile"]["computerName"]):
            raise Refused(400, "InvalidParameter", f"The name '{name}' is invalid.")
        self._check_tags(body)
        size = inside["hardwareProfile"]["vmSize"]
        if size not in SIZES or body["location"] not in LOCATIONS:
            message = f"The requested VM size '{size}' is not available in location '{body['location']}'."
            raise Refused(400, "InvalidParameter", message)
        for zone in body.get("zones") or ():
            if zone not in SIZES[size][5]:
                message = f"The zone(s) '{zone}' for resource '{name}' is not supported by the VM size '{size}'."
                raise Refused(400, "InvalidAvailabilityZone", message)
        self._check_storage(inside["storageProfile"], size, body.get("plan"))
        system = inside["osProfile"]
        if len(base64.b64decode(system["customData"], validate=True)) > 65535:
            raise Refused(400, "InvalidParameter", "Custom data in OSProfile must be of at most 65535 bytes.")
        if not system["linuxConfiguration"]["disablePasswordAuthentication"] or "adminPassword" in system:
            raise Refused(400, "InvalidParameter", "This subscription's policy allows SSH keys only.")
        for key in system["linuxConfiguration"]["ssh"]["publicKeys"]:
            if not re.match(r"ssh-(rsa|ed25519) AAAA", key["keyData"]):
                raise Refused(400, "InvalidParameter", "The value of parameter linuxConfiguration.ssh is invalid.")
        if inside.get("priority") != "Spot" and ("evictionPolicy" in inside or "billingProfile" in inside):
            raise Refused(409, "OperationNotAllowed", "Eviction policy can be set only on Azure Spot Virtual Machines.")
        self._check_price(inside, size)
        if inside["networkProfile"]["networkApiVersion"] not in ("2020-11-01", "2022-11-01"):
            raise Refused(400, "InvalidParameter", "The value of parameter networkApiVersion is invalid.")
        for card in inside["networkProfile"]["networkInterfaceConfigurations"]:
            self._check_reference(card["properties"].get("networkSecurityGroup"))
            self._check_reference(card["properties"]["ipConfigurations"][0]["properties"]["subnet"])
        for id in (body.get("identity") or {}).get("userAssignedIdentities", {}):
            if id.lower() not in self.resources:
                raise Refused(400, "FailedIdentityOperation", f"The user-assigned identity {id} was not found.")

    def _check_price(self, inside: Any, size: str) -> None:
        highest = (inside.get("billingProfile") or {}).get("maxPrice", -1)
        if inside.get("priority") == "Spot" and -1 != highest < self.price:
            message = (
                f"Unable to perform operation 'Create VM' since the provided max price '{highest} USD' is lower than "
                f"the current spot price '{self.price} USD' for Azure Spot VM size '{size}'. For more information, see "
                "http://aka.ms/AzureSpot/errormessages."
            )
            raise Refused(409, "OperationNotAllowed", message)

    def _check_storage(self, storage: Any, size: str, plan: Any) -> None:
        reference = storage["imageReference"]
        if "id" in reference:
            if reference["id"].lower() not in self.resources:
                raise Refused(404, "ResourceNotFound", f"The image {reference['id']} was not found.")
        elif "publisher" in reference:
            parts = tuple(reference[key] for key in ("publisher", "offer", "sku"))
            found = [
                it
                for (*known, v), it in self.images.items()
                if tuple(known) == parts and reference["version"] in (v, "latest")
            ]
            if not found:
                raise Refused(404, "PlatformImageNotFound", f"The platform image '{':'.join(parts)}' is not available.")
            smallest, architecture, generation = found[0]
            if architecture != SIZES[size][2] or generation not in SIZES[size][6]:
                message = f"The selected VM size '{size}' cannot boot the image '{':'.join(parts)}'."
                raise Refused(400, "BadRequest", message)
            if storage["osDisk"]["diskSizeGB"] < smallest:
                raise Refused(400, "ResizeDiskError", f"The disk size is smaller than the image's {smallest} GB.")
            if self.plans.get(parts) != plan:
                message = f"Creating a virtual machine from Marketplace image requires Plan information: {plan}."
                raise Refused(400, "VMMarketplaceInvalidInput", message)
        if storage["osDisk"]["managedDisk"]["storageAccountType"] not in DISKS:
            raise Refused(400, "InvalidParameter", "The storage account type is invalid.")

    def _check_quota(self, body: Any) -> None:
        if not self.quota:
            return
        size = body["properties"]["hardwareProfile"]["vmSize"]
        for name in ("cores", SIZES[size][4]):
            used, limit = self._used(name), self.quota.get(name, 100_000)
            if used + SIZES[size][0] > limit:
                message = (
                    f"Operation could not be completed as it results in exceeding approved {name} Cores quota. "
                    f"Additional details - Deployment Model: Resource Manager, Location: {body['location']}, Current "
                    f"Limit: {limit}, Current Usage: {used}, Additional Required: {SIZES[size][0]}, (Minimum) New "
                    f"Limit Required: {used + SIZES[size][0]}. Submit a request for Quota increase at "
                    "https://aka.ms/ProdportalCRP/#blade/ by specifying parameters listed in the 'Details' section."
                )
                raise Refused(409, "OperationNotAllowed", message)
        if "publicIPAddressConfiguration" in json.dumps(body):
            self._check_addresses()

    def _check_addresses(self) -> None:
        for name, (code, kind) in ADDRESSES.items():
            limit = self.quota.get(name, 100_000)
            if len(self.of("publicIPAddresses")) >= limit:
                message = f"Cannot create more than {limit} {kind} for this subscription in this region."
                raise Refused(400, code, message)

    def _allocate(self, body: Any) -> Fault | None:
        zone = next(iter(body.get("zones") or ()), None)
        key = (body["properties"]["hardwareProfile"]["vmSize"], zone, body["properties"].get("priority") == "Spot")
        if self.capacity.get(key, 1) > 0:
            if key in self.capacity:
                self.capacity[key] -= 1
            return None
        message = "We do not have sufficient capacity for the requested VM size in this "
        code = "ZonalAllocationFailed" if zone else "AllocationFailed"
        return Fault("", f"Allocation failed. {message}{'zone' if zone else 'region'}.", code)

    def _on_virtualMachines_get(self, p: Mapping[str, str]) -> Any:
        found = self._found(p, "virtualMachines")
        shown = self._shown(found)
        if p.get("$expand") == "instanceView":
            shown["properties"]["instanceView"] = self._status(found)["properties"]["instanceView"]
        return shown

    def _status(self, machine: Mapping[str, Any]) -> dict[str, Any]:
        inside = machine["properties"]
        error = inside.get("_error")
        code = f"ProvisioningState/failed/{error[0]}" if error else "ProvisioningState/succeeded"
        statuses = [{"code": code, **({"message": error[1]} if error else {})}]
        if inside["_power"]:
            statuses.append({"code": f"PowerState/{inside['_power']}"})
        kept = {"provisioningState": inside["provisioningState"], "instanceView": {"statuses": statuses}}
        return {**{k: machine[k] for k in ("id", "name", "type", "location")}, "properties": kept}

    def _on_virtualMachines_delete(self, p: Mapping[str, str], body: Any, headers: Any, later: Fault | None) -> Any:
        id = self._path(p, "virtualMachines").lower()
        if id not in self.resources:
            return 204, {}, None
        machine = self.resources[id]
        machine["properties"]["provisioningState"] = "Deleting"

        def effect() -> None:
            if self.resources.pop(id, None) is None:
                return
            belongs = [r for r in self.resources.values() if r["properties"].get("_with", [""])[0].lower() == id]
            for each in belongs:
                if each["properties"]["_with"][1] == "Delete":
                    del self.resources[each["id"].lower()]

        if self.on_end:
            self.on_end(machine["name"])
        return 202, self._operation(p, "Microsoft.Compute", effect, later), None

    def _on_virtualMachines_deallocate(self, p: Mapping[str, str], *_: Any) -> Any:
        self._found(p, "virtualMachines")["properties"]["_power"] = "deallocated"
        return 202, {}, None

    def _on_virtualMachines_retrieveBootDiagnosticsData(self, p: Mapping[str, str]) -> Any:
        machine = self._found(p, "virtualMachines")
        if not (machine["properties"].get("diagnosticsProfile") or {}).get("bootDiagnostics", {}).get("enabled"):
            raise Refused(409, "OperationNotAllowed", "Boot diagnostics is not enabled.")
        url = f"{p['base']}/console/{machine['name']}?sig=signed"
        return {"serialConsoleLogBlobUri": url, "consoleScreenshotBlobUri": url}


def user_data(body: Any) -> str:
    """What cloud-init makes of a machine's custom data."""
    return gzip.decompress(base64.b64decode(body["properties"]["osProfile"]["customData"])).decode()


def _id_of(reference: Any) -> str:
    return str((reference or {}).get("id", "")).lower()


def _token() -> dict[str, Any]:
    then = int(time.time()) + 86400
    return {"access_token": TOKEN, "expires_on": str(then), "resource": "r", "token_type": "Bearer"}


def _json(status: int, answer: Any) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json; charset=utf-8"}, json.dumps(answer).encode()


def _handler(fake: Fake) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, answer = fake.answer(self.command, self.path, self.headers, body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(answer))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)
            self.wfile.flush()

        do_GET = do_POST = do_PUT = do_DELETE = _answer

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
