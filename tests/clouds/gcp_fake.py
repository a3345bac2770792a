"""A Compute Engine that answers on this computer and refuses whatever Google's discovery document does not allow.

Operations take time, zones and quotas run out, lists have pages, calls fail where they are told to. What is checked
beyond the document is what Google's documentation says about bulkInsert, labels, GPUs, spot and names.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tools import serving

PROJECT, HOST_PROJECT = "my-project", "host-project"
CONTRACT = json.loads(Path(__file__).with_name("compute.v1.json").read_text())
API = f"/{CONTRACT['servicePath']}"
STANDARD = set(CONTRACT["parameters"])
ZONES = ("us-east1-b", "us-east1-c", "us-east1-d", "europe-west1-b", "europe-west1-c", "europe-west1-d")
ACCOUNT = "launcher@my-project.iam.gserviceaccount.com"
# name -> CPUs, MiB, architecture, GPUs built in, zones that offer it
TYPES: dict[str, tuple[int, int, str, tuple[str, int] | None, tuple[str, ...]]] = {
    "e2-standard-2": (2, 8192, "X86_64", None, ZONES),
    "e2-standard-4": (4, 16384, "X86_64", None, ZONES),
    "n1-standard-1": (1, 3840, "X86_64", None, ZONES),
    "n2-standard-4": (4, 16384, "X86_64", None, ZONES),
    "c4a-standard-2": (2, 8192, "ARM64", None, ("us-east1-b", "us-east1-c")),
    "g2-standard-4": (4, 16384, "X86_64", ("nvidia-l4", 1), ("us-east1-b", "us-east1-d")),
}
GPUS = {"nvidia-tesla-t4": ("us-east1-c", "us-east1-d"), "nvidia-tesla-v100": ("us-east1-c",), "nvidia-l4": ZONES}
DISKS = ("pd-standard", "pd-balanced", "pd-ssd", "hyperdisk-balanced")
LABEL_KEY, LABEL_VALUE = re.compile(r"[^\W\d_A-Z][\w-]{0,62}"), re.compile(r"[\w-]{0,63}")
TERM = r"\(?([\w.-]+)(:\*| = \"((?:[^\"\\]|\\.)*)\")\)?"  # of a filter
NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
PACIFIC = timezone(timedelta(hours=-8))  # as Google gives times


class Refused(Exception):
    def __init__(self, status: int, reason: str, message: str, name: str = "") -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message
        self.name = name or {400: "INVALID_ARGUMENT", 403: "PERMISSION_DENIED", 404: "NOT_FOUND"}.get(status, "")

    def body(self) -> dict[str, Any]:
        errors = [{"message": self.message, "domain": "global", "reason": self.reason}]
        return {"error": {"code": self.status, "message": self.message, "errors": errors, "status": self.name}}


def invalid(where: str, value: Any, why: str) -> Refused:
    return Refused(400, "invalid", f"Invalid value for field '{where}': '{value}'. {why}")


# The contract


def find(verb: str, path: str) -> tuple[str, dict[str, Any], dict[str, str]]:
    """The method of a call and the parameters in its path."""
    for name, method in CONTRACT["methods"].items():
        pattern = re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", method["path"])
        found = re.fullmatch(pattern, path)
        if found and verb == method["httpMethod"]:
            return name, method, {key: unquote(value) for key, value in found.groupdict().items()}
    raise Refused(404, "notFound", f"The requested URL {path} was not found on this server.")


def check_parameters(method: Mapping[str, Any], given: Mapping[str, str], place: str) -> None:
    known = {name: p for name, p in method["parameters"].items() if p["location"] == place}
    for name, value in given.items():
        if name not in known:
            if place == "query" and name in STANDARD:
                continue
            message = f'Invalid JSON payload received. Unknown name "{name}": Cannot bind query parameter.'
            raise Refused(400, "badRequest", message)
        parameter = known[name]
        if "pattern" in parameter and not re.fullmatch(parameter["pattern"], value):
            raise invalid(name, value, f"Must be a match of regex '{parameter['pattern']}'")
        if parameter["type"] == "integer" and not value.isdigit():
            raise invalid(name, value, "Must be an integer")
        if parameter["type"] == "boolean" and value not in ("true", "false"):
            raise invalid(name, value, "Must be true or false")
        if "maximum" in parameter and int(value) > int(parameter["maximum"]):
            raise invalid(name, value, f"Must be less than or equal to {parameter['maximum']}")
        if name == "requestId":
            try:
                uuid.UUID(value)
            except ValueError:
                raise invalid("requestId", value, "Must be a UUID") from None
    if missing := [n for n, p in known.items() if p.get("required") and n not in given]:
        raise Refused(400, "required", f"Required parameter: {missing[0]}")


def check(schema: Mapping[str, Any], value: Any, where: str) -> None:
    """Refuses unknown fields, wrong types, unknown enum values, as Google does."""
    if "$ref" in schema:
        return check(CONTRACT["schemas"][schema["$ref"]], value, where)
    kind = schema.get("type", "any")
    if kind == "object":
        if not isinstance(value, dict):
            raise invalid(where, value, "Must be an object")
        for key, each in value.items():
            inner = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            if inner is None:
                message = f"Invalid JSON payload received. Unknown name \"{key}\" at '{where}': Cannot find field."
                raise Refused(400, "badRequest", message)
            check(inner, each, f"{where}.{key}")
    elif kind == "array":
        if not isinstance(value, list):
            raise invalid(where, value, "Must be a list")
        for i, each in enumerate(value):
            check(schema["items"], each, f"{where}[{i}]")
    else:
        _check_plain(schema, kind, value, where)


def _check_plain(schema: Mapping[str, Any], kind: str, value: Any, where: str) -> None:
    types = {"string": str, "boolean": bool, "integer": int, "number": (int, float)}
    if kind in types and (not isinstance(value, types[kind]) or (kind != "boolean" and isinstance(value, bool))):
        raise invalid(where, value, f"Must be a {kind}")
    if schema.get("format") in ("int64", "uint64") and kind == "string" and not re.fullmatch(r"-?\d+", value):
        raise invalid(where, value, "Must be a 64-bit integer")
    if "enum" in schema and value not in schema["enum"]:
        raise invalid(where, value, f"Must be one of {schema['enum']}")
    if "pattern" in schema and kind == "string" and not re.fullmatch(schema["pattern"], value):
        raise invalid(where, value, f"Must be a match of regex '{schema['pattern']}'")


def select(value: Any, fields: str) -> Any:
    """The standard parameter ``fields``: a,b(c,d),e/f and * for any key."""
    if isinstance(value, list):
        return [select(each, fields) for each in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for part in _split(fields):
        head, rest = re.fullmatch(r"([\w*]+)(.*)", part, re.S).groups()
        inner = rest[1:-1] if rest.startswith("(") else rest[1:]
        for key in value if head == "*" else [head] if head in value else []:
            found[key] = select(value[key], inner) if inner else value[key]
    return found


def _split(fields: str) -> list[str]:
    parts, depth = [""], 0
    for c in fields:
        depth += (c == "(") - (c == ")")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def matches(resource: Mapping[str, Any], expression: str | None) -> bool:
    """Google's filters, as far as they are used: https://cloud.google.com/compute/docs/reference/rest/v1/instances/list"""
    if not expression:
        return True
    if not re.fullmatch(rf"{TERM}( OR {TERM})*", expression):
        raise invalid("filter", expression, "Invalid list filter expression.")
    for key, operation, text in re.findall(TERM, expression):
        value: Any = resource
        first, _, rest = key.partition(".")
        value = value.get(first, {}).get(rest) if rest else value.get(first)
        if value is not None and (operation == ":*" or re.fullmatch(_wanted(text), value)):
            return True
    return False


def _wanted(text: str) -> str:
    """A filter's string as a pattern: a backslash takes the meaning of the next character, ``*`` is any text."""
    parts = re.findall(r"\\(.)|(\*)|(.)", text, re.S)
    return "".join(".*" if star else re.escape(escaped or plain) for escaped, star, plain in parts)


@dataclass
class Fault:
    """Answers to come: ``times`` refusals of one method, or with ``code`` operations that end in this error."""

    method: str
    message: str
    reason: str = "backendError"
    status: int = 503
    code: str = ""
    times: int = 1


@dataclass
class Fake:
    """One project. The fields may be changed while it runs."""

    takes: float = 0.0  # seconds of an operation
    latency: float = 0.0  # seconds of a call
    poll: float = 0.3  # the longest long poll
    page: int = 500
    address: str | None = None  # of every machine
    me: str = "203.0.113.7"
    capacity: dict[tuple[str, str, bool], int] = field(default_factory=dict)  # by zone, type and spot; else enough
    quota: int | None = None  # CPUs in a region
    permissions: set[str] | None = None  # of the caller; None is all
    faults: list[Fault] = field(default_factory=list)
    consoles: Mapping[str, str] = field(default_factory=dict)
    calls: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    http: Counter[str] = field(default_factory=Counter)
    guests: Mapping[str, Sequence[str]] = field(default_factory=dict)  # service projects of each host of a shared VPC
    closed: set[str] = field(default_factory=set)  # projects in which the caller may do nothing
    on_run: Any = None  # called with the body and the name of each machine that starts
    on_end: Any = None  # called with the name of each machine that is deleted

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        self.takes, self.latency, self.poll, self.page, self.address, self.me = 0.0, 0.0, 0.3, 500, None, "203.0.113.7"
        self.capacity, self.quota, self.permissions, self.faults, self.consoles = {}, None, None, [], {}
        self.guests, self.closed = {}, set()
        self.on_run = self.on_end = None
        self.calls.clear()
        self.http.clear()
        self.instances: dict[str, dict[str, Any]] = {}
        self.operations: dict[str, dict[str, Any]] = {}
        self.answered: dict[str, str] = {}
        self.firewalls: dict[tuple[str, str], dict[str, Any]] = {}
        self.networks = {(p, "default"): {"auto": True} for p in (PROJECT, HOST_PROJECT)}
        self.subnetworks = {
            (p, r, "default"): "default" for p in (PROJECT, HOST_PROJECT) for r in ("us-east1", "europe-west1")
        }
        self.images = {
            ("ubuntu-os-cloud", f"ubuntu-{v}-{a}-v20261101"): (f"ubuntu-{v}-lts-{a}", 10, google)
            for v in ("2604", "2404") for a, google in (("amd64", "X86_64"), ("arm64", "ARM64"))
        }  # fmt: skip
        self._numbers = itertools.count(1)
        self.service_accounts: dict[str, set[str]] = {"default": set()}
        self.policy: dict[str, Any] = {"bindings": []}

    # For tests

    def count(self) -> Counter[str]:
        return Counter(method for method, _, _ in self.calls)

    def writes(self) -> list[str]:
        return [m for m, _, _ in self.calls if m.endswith((".insert", ".bulkInsert", ".delete"))]

    def reads(self) -> list[str]:
        return [m for m, _, _ in self.calls if not m.endswith((".insert", ".bulkInsert", ".delete", ".wait"))]

    def sent(self, method: str = "bulkInsert") -> list[tuple[dict[str, str], Any]]:
        return [(parameters, body) for name, parameters, body in self.calls if name.endswith(method)]

    def ended(self, name: str) -> None:
        """As if the machine of this name had switched itself off: it is there, and its disk is paid for."""
        with self._lock:
            for instance in self.instances.values():
                if instance["name"] == name and instance["status"] == "RUNNING":
                    instance["status"] = "TERMINATED"

    def there(self) -> dict[str, dict[str, Any]]:
        self._advance()
        return {i["name"]: i for i in self.instances.values() if i["status"] in ("STAGING", "RUNNING")}

    def serving(self) -> AbstractContextManager[str]:
        return serving(_handler(self))

    # HTTP

    def answer(self, verb: str, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str, bytes]:
        path = urlsplit(url).path
        if path == "/checkip":
            return 200, "text/plain", f"{self.me}\n".encode()
        if path == "/token":
            return _json(200, {"access_token": "a-token", "expires_in": 3600, "token_type": "Bearer"})
        if path.startswith("/computeMetadata/v1/"):
            return self._metadata(path.removeprefix("/computeMetadata/v1/"), headers)
        time.sleep(self.latency)
        if headers.get("Authorization") != "Bearer a-token":
            return _json(401, Refused(401, "authError", "Invalid Credentials").body())
        self.http[path.rpartition("/")[2] if path.startswith("/batch") else verb] += 1
        if path == f"/{CONTRACT['batchPath']}":
            return self._batch(headers["Content-Type"], body)
        if path.startswith("/v1/projects/"):
            return self._manager(path, json.loads(body or b"{}"))
        return self._one(verb, url, body)

    def _metadata(self, what: str, headers: Mapping[str, str]) -> tuple[int, str, bytes]:
        """What the first machine's metadata server tells it."""
        assert headers["Metadata-Flavor"] == "Google"
        instance = next(iter(self.instances.values()))
        answers = {
            "instance/service-accounts/default/token": '{"access_token": "a-token"}',
            "instance/zone": f"projects/123/zones/{instance['zone'].rpartition('/')[2]}",
            "instance/id": instance["id"],
            "project/project-id": PROJECT,
        }
        return 200, "text/plain", answers[what].encode()

    def _one(self, verb: str, url: str, body: bytes) -> tuple[int, str, bytes]:
        try:
            return _json(200, self._call(verb, url, json.loads(body) if body else None))
        except Refused as refused:
            return _json(refused.status, refused.body())

    def _batch(self, kind: str, body: bytes) -> tuple[int, str, bytes]:
        mark = kind.partition("boundary=")[2]
        out = []
        for part in body.decode().split(f"--{mark}")[1:-1]:
            head, _, inner = part.strip("\r\n").partition("\r\n\r\n")
            verb, url, _ = inner.split("\r\n")[0].split(" ")
            id = re.search(r"Content-ID: <([^>]*)>", head)[1]
            status, _, answer = self._one(verb, url, b"")
            out.append(
                f"--batch_x\r\nContent-Type: application/http\r\nContent-ID: <response-{id}>\r\n\r\n"
                f"HTTP/1.1 {status} X\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{answer.decode()}\r\n"
            )
        return 200, "multipart/mixed; boundary=batch_x", ("".join(reversed(out)) + "--batch_x--\r\n").encode()

    def _call(self, verb: str, url: str, body: Any) -> Any:
        address = urlsplit(url)
        if not address.path.startswith(API):
            raise Refused(404, "notFound", f"The requested URL {address.path} was not found on this server.")
        name, method, where = find(verb, address.path.removeprefix(API))
        query = dict(parse_qsl(address.query, keep_blank_values=True, strict_parsing=bool(address.query)))
        check_parameters(method, where, "path")
        check_parameters(method, query, "query")
        if (body is None) == ("request" in method):
            raise Refused(400, "parseError", "Parse Error")
        if body is not None:
            check(method["request"], body, "resource")
        p = {**query, **where}
        with self._lock:
            self.calls.append((name, p, body))
            self._fail(name)
            self._authorize(name, p, body)
            self._advance()
            answer = getattr(self, "_on_" + name.replace(".", "_"))(p, body)
        if name.endswith("Operations.wait"):
            answer = self._wait(p["operation"])
        check(method["response"], answer, "response")
        return select(answer, query["fields"]) if "fields" in query else answer

    def _fail(self, name: str) -> None:
        for fault in self.faults:
            if fault.method == name and fault.times > 0 and not fault.code:
                fault.times -= 1
                raise Refused(fault.status, fault.reason, fault.message)

    # Operations

    def _advance(self) -> None:
        """What has ended by now takes effect."""
        now = time.monotonic()
        for operation in self.operations.values():
            if operation["done"] <= now and operation["effect"]:
                effect, operation["effect"] = operation["effect"], None
                effect()

    def _operation(self, kind: str, p: Mapping[str, str], effect: Any = None, errors: Any = ()) -> dict[str, Any]:
        name = f"operation-{next(self._numbers)}"
        if kind != "bulkInsert" and (fault := self._faulty(kind)):
            errors, effect = [fault], None
        place = next((f"{k}s/{p[k]}" for k in ("zone", "region") if k in p), "global")
        self.operations[name] = {
            "p": dict(p), "kind": kind, "place": place, "done": time.monotonic() + self.takes, "effect": effect,
            "errors": list(errors),
        }  # fmt: skip
        if "requestId" in p:
            self.answered[p["requestId"]] = name
        self._advance()
        return self._shown(name)

    def _shown(self, name: str) -> dict[str, Any]:
        record = self.operations[name]
        done = record["done"] <= time.monotonic()
        base = f"https://www.googleapis.com/compute/v1/projects/{record['p']['project']}/"
        shown = {
            "kind": "compute#operation", "id": str(1000 + int(name.rpartition("-")[2])), "name": name,
            "operationType": record["kind"], "status": "DONE" if done else "RUNNING",
            "selfLink": f"{base}{record['place']}/operations/{name}", "progress": 100 if done else 0,
        }  # fmt: skip
        kind, _, place = record["place"].partition("s/")
        if place:
            shown[kind] = f"{base}{record['place']}"
        if done and record["errors"]:
            shown["error"] = {"errors": [{"code": c, "message": m} for c, m in record["errors"]]}
            shown["httpErrorStatusCode"] = 400
        return shown

    def _wait(self, name: str) -> dict[str, Any]:
        until = time.monotonic() + self.poll
        while self.operations[name]["done"] > time.monotonic() and time.monotonic() < until:
            time.sleep(0.005)
        with self._lock:
            self._advance()
            return self._shown(name)

    def _on_wait(self, p: Mapping[str, str], body: Any) -> Any:
        if p["operation"] not in self.operations:
            raise _unknown(p["project"], "operations", p["operation"])
        return {}

    _on_zoneOperations_wait = _on_regionOperations_wait = _on_globalOperations_wait = _on_wait

    # Reading

    def _on_projects_get(self, p: Mapping[str, str], body: Any) -> Any:
        role = "HOST" if p["project"] in self.guests else "UNSPECIFIED_XPN_PROJECT_STATUS"
        account = "123-compute@developer.gserviceaccount.com"
        return {"name": p["project"], "defaultServiceAccount": account, "xpnProjectStatus": role}

    def _on_projects_getXpnResources(self, p: Mapping[str, str], body: Any) -> Any:
        if p["project"] not in self.guests:
            raise Refused(400, "invalid", f"Project {p['project']} is not a shared VPC host project.")
        start, size = int(p.get("pageToken", 0)), min(self.page, int(p.get("maxResults", 500)))
        every = self.guests[p["project"]]
        found = [{"id": id, "type": "PROJECT"} for id in every[start : start + size]]
        more = {"nextPageToken": str(start + size)} if start + size < len(every) else {}
        return {**({"resources": found} if found else {}), **more}

    def _on_regions_get(self, p: Mapping[str, str], body: Any) -> Any:
        if p["region"] not in {z.rpartition("-")[0] for z in ZONES}:
            raise _unknown(p["project"], "regions", p["region"])
        quotas = [
            {"metric": m, "limit": float(self.quota or 500), "usage": float(self._cpus(p["region"]))}
            for m in ("CPUS", "PREEMPTIBLE_CPUS")
        ]
        return {"name": p["region"], "status": "UP", "quotas": quotas}

    def _on_images_get(self, p: Mapping[str, str], body: Any) -> Any:
        if (p["project"], p["image"]) not in self.images:
            raise _unknown(p["project"], "global/images", p["image"])
        return self._image(p["project"], p["image"])

    def _on_images_getFromFamily(self, p: Mapping[str, str], body: Any) -> Any:
        for (project, name), (family, _, _) in self.images.items():
            if (project, family) == (p["project"], p["family"]):
                return self._image(project, name)
        raise _unknown(p["project"], "global/images/family", p["family"])

    def _image(self, project: str, name: str) -> Any:
        family, size, architecture = self.images[project, name]
        link = f"https://www.googleapis.com/compute/v1/projects/{project}/global/images/{name}"
        return {"name": name, "family": family, "diskSizeGb": str(size), "architecture": architecture, "selfLink": link}

    def _on_networks_get(self, p: Mapping[str, str], body: Any) -> Any:
        project, name = p["project"], p["network"]
        if (project, name) not in self.networks:
            raise _unknown(project, "global/networks", name)
        base = "https://www.googleapis.com/compute/v1/projects/"
        inside = [
            f"{base}{o}/regions/{r}/subnetworks/{s}"
            for (o, r, s), n in self.subnetworks.items()
            if (o, n) == (project, name)
        ]
        return {"name": name, "autoCreateSubnetworks": self.networks[project, name]["auto"], "subnetworks": inside}

    def _on_subnetworks_get(self, p: Mapping[str, str], body: Any) -> Any:
        key = (p["project"], p["region"], p["subnetwork"])
        if key not in self.subnetworks:
            raise _unknown(p["project"], f"regions/{p['region']}/subnetworks", p["subnetwork"])
        network = f"https://www.googleapis.com/compute/v1/projects/{key[0]}/global/networks/{self.subnetworks[key]}"
        return {"name": key[2], "network": network, "ipCidrRange": "10.142.0.0/20"}

    def _on_machineTypes_get(self, p: Mapping[str, str], body: Any) -> Any:
        found = re.fullmatch(r"(?:n1-|e2-|n2-)?custom-(\d+)-(\d+)", p["machineType"])
        if not found:
            raise _unknown(p["project"], f"zones/{p['zone']}/machineTypes", p["machineType"])
        return {"name": p["machineType"], "zone": p["zone"], "guestCpus": int(found[1]), "memoryMb": int(found[2])}

    def _on_machineTypes_aggregatedList(self, p: Mapping[str, str], body: Any) -> Any:
        items: list[tuple[str, Any]] = []
        for name, (cpus, memory, architecture, gpu, zones) in TYPES.items():
            extra = {"accelerators": [{"guestAcceleratorType": gpu[0], "guestAcceleratorCount": gpu[1]}]} if gpu else {}
            made = {"name": name, "guestCpus": cpus, "memoryMb": memory, "architecture": architecture, **extra}
            items += [(zone, {**made, "zone": zone}) for zone in zones if matches(made, p.get("filter"))]
        return self._pages(p, items, "machineTypes")

    def _pages(self, p: Mapping[str, str], items: list[tuple[str, Any]], key: str) -> Any:
        start, size = int(p.get("pageToken", 0)), min(self.page, int(p.get("maxResults", 500)))
        scopes: dict[str, Any] = {}
        for zone, item in items[start : start + size]:
            scopes.setdefault(f"zones/{zone}", {key: []})[key].append(item)
        nothing = {"code": "NO_RESULTS_ON_PAGE", "message": "There are no results for scope on this page."}
        for zone in ZONES:
            scopes.setdefault(f"zones/{zone}", {"warning": nothing})
        return {"items": scopes, **({"nextPageToken": str(start + size)} if start + size < len(items) else {})}

    # Firewall

    def _on_firewalls_list(self, p: Mapping[str, str], body: Any) -> Any:
        return {
            "items": [
                f
                for (project, _), f in self.firewalls.items()
                if project == p["project"] and matches(f, p.get("filter"))
            ]
        }

    def _on_firewalls_insert(self, p: Mapping[str, str], body: Any) -> Any:
        key = (p["project"], body["name"])
        if key in self.firewalls:
            raise Refused(
                409, "alreadyExists", f"The resource 'projects/{key[0]}/global/firewalls/{key[1]}' already exists"
            )
        if not NAME.fullmatch(body["name"]):
            raise invalid("resource.name", body["name"], "Must be a match of regex")
        families = {":" in network for network in body.get("sourceRanges", ())}
        if len(families) > 1:
            raise invalid("resource.sourceRanges", body["sourceRanges"], "IPv4 and IPv6 ranges cannot be combined.")
        if not body.get("sourceRanges") and not body.get("sourceTags"):
            raise Refused(400, "required", "Required: sourceRanges or sourceTags")
        project, name = body["network"].split("/")[1], body["network"].split("/")[-1]
        if (project, name) not in self.networks:
            raise _unknown(project, "global/networks", name)
        operation = self._operation("insert", p)
        if "error" not in operation:
            self.firewalls[key] = {**body, "creationTimestamp": _now()}
        return operation

    def _on_firewalls_delete(self, p: Mapping[str, str], body: Any) -> Any:
        if self.firewalls.pop((p["project"], p["firewall"]), None) is None:
            raise _unknown(p["project"], "global/firewalls", p["firewall"])
        return self._operation("delete", p)

    # Instances

    def _on_instances_bulkInsert(self, p: Mapping[str, str], body: Any) -> Any:
        return self._bulk(p, body, [p["zone"]])

    def _on_regionInstances_bulkInsert(self, p: Mapping[str, str], body: Any) -> Any:
        if body.get("locationPolicy", {}).get("targetShape") != "ANY":
            raise invalid("resource.locationPolicy.targetShape", "", "Must be ANY")
        return self._bulk(p, body, [z for z in ZONES if z.startswith(f"{p['region']}-")])

    def _bulk(self, p: Mapping[str, str], body: Any, zones: list[str]) -> Any:
        if p.get("requestId") in self.answered:
            return self._shown(self.answered[p["requestId"]])
        properties, names = body["instanceProperties"], list(body["perInstanceProperties"])
        if int(body["count"]) != len(names):
            raise invalid("resource.count", body["count"], "Must be the number of perInstanceProperties")
        self._check_properties(p, properties, zones)
        for name in names:
            if not NAME.fullmatch(name):
                raise invalid("resource.perInstanceProperties", name, "Must be a match of regex")
            if any(i["name"] == name for i in self._of(p)):
                path = f"projects/{p['project']}/zones/{zones[0]}/instances/{name}"
                raise Refused(409, "alreadyExists", f"The resource '{path}' already exists")
        spot = properties["scheduling"].get("provisioningModel") == "SPOT"
        placed: list[str] = []
        for zone in zones:
            if (
                zone not in TYPES.get(properties["machineType"], ((),) * 5)[4]
                and "custom" not in properties["machineType"]
            ):
                continue
            free = self.capacity.get((zone, properties["machineType"], spot), len(names))
            placed += [zone] * min(free, len(names) - len(placed))
        errors = []
        if len(placed) < len(names):
            place = f"projects/{p['project']}/zones/{zones[0]}"
            errors.append(
                (
                    "ZONE_RESOURCE_POOL_EXHAUSTED",
                    f"The zone '{place}' does not have enough resources available to fulfill the request.  "
                    "Try a different zone, or try again later.",
                )
            )
        each, region = self._cpus_of(properties["machineType"]), zones[0].rpartition("-")[0]
        if self.quota is not None and self._cpus(region) + each * len(placed) > self.quota:
            placed = placed[: max(0, (self.quota - self._cpus(region)) // each)]
            errors = [("QUOTA_EXCEEDED", f"Quota 'CPUS' exceeded.  Limit: {self.quota}.0 in region {region}.")]
        if len(placed) < int(body.get("minCount", body["count"])):
            errors.append(("VM_MIN_COUNT_NOT_REACHED", "Requested minimum count of VMs could not be created."))
            placed = []
        for zone in placed:
            if (zone, properties["machineType"], spot) in self.capacity:
                self.capacity[zone, properties["machineType"], spot] -= 1
        if fault := self._faulty("bulkInsert"):
            placed, errors = [], [fault]
        pairs = list(zip(names, placed, strict=False))
        made = [self._instance(p, properties, name, zone) for name, zone in pairs]
        return self._operation("bulkInsert", p, lambda: self._start(body, made), errors)

    def _start(self, body: Any, ids: list[str]) -> None:
        for instance in [self.instances[id] for id in ids if id in self.instances]:
            if instance["status"] == "STAGING":
                instance["status"] = "RUNNING"
                if self.on_run:
                    self.on_run(body, instance["name"])

    def _faulty(self, kind: str) -> tuple[str, str] | None:
        for fault in self.faults:
            if fault.code and fault.method.endswith(kind) and fault.times > 0:
                fault.times -= 1
                return fault.code, fault.message
        return None

    def _cpus_of(self, type: str) -> int:
        return TYPES[type][0] if type in TYPES else int(type.split("-")[-2])

    def _cpus(self, region: str) -> int:
        machines = self.instances.values()
        return sum(
            self._cpus_of(i["machineType"]) for i in machines if i["zone"].split("/")[-1].startswith(f"{region}-")
        )

    def _check_properties(self, p: Mapping[str, str], properties: Any, zones: list[str]) -> None:
        """What Google refuses although it fits the document."""
        at = "resource.instanceProperties"
        type = properties["machineType"]
        if "/" in type or ("custom" not in type and not any(z in TYPES.get(type, ((),) * 5)[4] for z in zones)):
            raise invalid(
                f"{at}.machineType", type, f"Machine type with name '{type}' does not exist in zone '{zones[0]}'."
            )
        if zones[0] not in ZONES:
            raise _unknown(p["project"], "zones", zones[0])
        for key, value in properties.get("labels", {}).items():
            if not LABEL_KEY.fullmatch(key) or not LABEL_VALUE.fullmatch(value) or value != value.lower():
                raise invalid(f"{at}.labels", f"{key}={value}", "Label keys and values must be lower-case ...")
        for tag in properties.get("tags", {}).get("items", ()):
            if not NAME.fullmatch(tag):
                raise invalid(f"{at}.tags.items", tag, "Must be a match of regex")
        for item in properties.get("metadata", {}).get("items", ()):
            if len(item["value"]) > 256 << 10:
                raise invalid(f"{at}.metadata.items", item["key"], "Metadata value exceeds maximum size: 262144")
        self._check_disk(properties["disks"], at)
        self._check_network(p["project"], properties["networkInterfaces"][0], zones[0].rpartition("-")[0], at)
        self._check_scheduling(properties, zones, at)

    def _check_disk(self, disks: Any, at: str) -> None:
        boot = disks[0]["initializeParams"]
        if boot["diskType"] not in DISKS:
            raise invalid(f"{at}.disks[0].initializeParams.diskType", boot["diskType"], "The disk type does not exist.")
        _, project, _, kind, *rest = boot["sourceImage"].split("/")
        known = {name for (owner, name) in self.images if owner == project}
        families = {family for (owner, _), (family, _, _) in self.images.items() if owner == project}
        if kind != "images" or rest[-1] not in (families if rest[0] == "family" else known):
            raise invalid(
                f"{at}.disks[0].initializeParams.sourceImage",
                boot["sourceImage"],
                "The referenced image resource cannot be found.",
            )

    def _check_network(self, project: str, interface: Any, region: str, at: str) -> None:
        _, owner, _, _, name = interface["network"].split("/")
        if (owner, name) not in self.networks:
            raise invalid(
                f"{at}.networkInterfaces[0].network",
                interface["network"],
                "The referenced network resource cannot be found.",
            )
        if "subnetwork" in interface:
            _, owner, _, where, _, subnet = interface["subnetwork"].split("/")
            if where != region or self.subnetworks.get((owner, where, subnet)) != name:
                raise invalid(
                    f"{at}.networkInterfaces[0].subnetwork",
                    interface["subnetwork"],
                    "The referenced subnetwork resource cannot be found.",
                )

    def _check_scheduling(self, properties: Any, zones: list[str], at: str) -> None:
        scheduling, gpus = properties["scheduling"], properties.get("guestAccelerators", [])
        for gpu in gpus:
            if not any(zone in GPUS.get(gpu["acceleratorType"], ()) for zone in zones):
                raise invalid(
                    f"{at}.guestAccelerators[0].acceleratorType",
                    gpu["acceleratorType"],
                    "The accelerator type does not exist.",
                )
            if not properties["machineType"].startswith("n1-"):
                raise invalid(f"{at}.guestAccelerators", "", "GPUs can be attached to N1 machine types only.")
        spot = scheduling.get("provisioningModel") == "SPOT"
        has_gpus = gpus or TYPES.get(properties["machineType"], (0, 0, "", None))[3]
        if (spot or has_gpus) and scheduling.get("onHostMaintenance") != "TERMINATE":
            why = (
                "Instances with guest accelerators do not support live migration."
                if has_gpus
                else "Scheduling must have onHostMaintenance TERMINATE for Spot VMs."
            )
            raise Refused(400, "invalid", why)
        if spot and scheduling.get("automaticRestart", True):
            raise Refused(400, "invalid", "Scheduling must have automaticRestart false for Spot VMs.")
        if "instanceTerminationAction" in scheduling and not spot and "maxRunDuration" not in scheduling:
            raise Refused(
                400,
                "invalid",
                "You cannot specify a termination action for a VM instance that has the standard provisioning model.",
            )

    def _instance(self, p: Mapping[str, str], properties: Any, name: str, zone: str) -> str:
        number = next(self._numbers)
        id = str(7_000_000_000_000_000_000 + number)
        base = f"https://www.googleapis.com/compute/v1/projects/{p['project']}"
        inside, outside = (
            self.address or f"10.142.{number // 250}.{number % 250 + 2}",
            self.address or f"34.23.{number // 250}.{number % 250 + 1}",
        )
        interface = {**properties["networkInterfaces"][0], "networkIP": inside}
        if "accessConfigs" in interface:
            interface["accessConfigs"] = [{**a, "natIP": outside} for a in interface["accessConfigs"]]
        self.instances[id] = {
            "kind": "compute#instance", "id": id, "name": name, "zone": f"{base}/zones/{zone}", "status": "STAGING",
            "creationTimestamp": _now(), "machineType": properties["machineType"],
            "labels": properties.get("labels", {}), "tags": properties.get("tags", {}),
            "metadata": properties.get("metadata", {}), "networkInterfaces": [interface],
            "scheduling": properties["scheduling"], "serviceAccounts": properties.get("serviceAccounts", []),
        }  # fmt: skip
        return id

    def _on_instances_aggregatedList(self, p: Mapping[str, str], body: Any) -> Any:
        items = [(i["zone"].rpartition("/")[2], i) for i in self._of(p) if matches(i, p.get("filter"))]
        return self._pages(p, items, "instances")

    def _of(self, p: Mapping[str, str]) -> list[dict[str, Any]]:
        return [i for i in self.instances.values() if f"/projects/{p['project']}/" in i["zone"]]

    def _find(self, p: Mapping[str, str]) -> dict[str, Any]:
        for i in self._of(p):
            if p["instance"] in (i["id"], i["name"]) and i["zone"].endswith(f"/{p['zone']}"):
                return i
        raise _unknown(p["project"], f"zones/{p['zone']}/instances", p["instance"])

    def _on_instances_get(self, p: Mapping[str, str], body: Any) -> Any:
        return self._find(p)

    def _on_instances_delete(self, p: Mapping[str, str], body: Any) -> Any:
        instance = self._find(p)
        operation = self._operation("delete", p, lambda: self.instances.pop(instance["id"], None))
        if instance["id"] in self.instances and "error" not in operation:
            instance["status"] = "STOPPING"
        if self.on_end:
            self.on_end(instance["name"])
        return operation

    def _on_instances_getSerialPortOutput(self, p: Mapping[str, str], body: Any) -> Any:
        instance = self._find(p)
        return {"contents": self.consoles.get(instance["name"], ""), "start": "0", "next": "0"}

    # Permissions

    def _authorize(self, name: str, p: Mapping[str, str], body: Any) -> None:
        if p["project"] in self.closed:
            permission, resource = next(needs(name, p, body))
            raise Refused(403, "forbidden", f"Required '{permission}' permission for '{resource}'")
        if self.permissions is None:
            return
        for permission, resource in needs(name, p, body):
            if permission not in self.permissions:
                if permission == "iam.serviceAccounts.actAs":
                    raise Refused(
                        403,
                        "SERVICE_ACCOUNT_ACCESS_DENIED",
                        f"The user does not have access to service account '{resource}'.  User: '{ACCOUNT}'.  "
                        "Ask a project owner to grant you the iam.serviceAccountUser role on the service account",
                    )
                raise Refused(403, "forbidden", f"Required '{permission}' permission for '{resource}'")

    def _manager(self, path: str, body: Any) -> tuple[int, str, bytes]:
        """https://cloud.google.com/resource-manager/reference/rest/v1/projects/testIamPermissions"""
        _, _, verb = path.removeprefix("/v1/projects/").partition(":")
        if verb == "testIamPermissions":
            wanted = body["permissions"]
            have = wanted if self.permissions is None else [each for each in wanted if each in self.permissions]
            return _json(200, {"permissions": have} if have else {})
        if verb == "getIamPolicy":
            if self.permissions is not None and "resourcemanager.projects.getIamPolicy" not in self.permissions:
                return _json(403, Refused(403, "forbidden", "The caller does not have permission").body())
            return _json(200, self.policy)
        return _json(404, Refused(404, "notFound", path).body())


def needs(name: str, p: Mapping[str, str], body: Any) -> Iterator[tuple[str, str]]:
    """The permissions of a call: https://cloud.google.com/compute/docs/reference/rest/v1 below "IAM Permissions"."""
    project = f"projects/{p['project']}"
    plain = {
        "firewalls.list": "compute.firewalls.list",
        "firewalls.delete": "compute.firewalls.delete",
        "globalOperations.wait": "compute.globalOperations.get",
        "instances.aggregatedList": "compute.instances.list",
        "instances.delete": "compute.instances.delete",
        "instances.get": "compute.instances.get",
        "instances.getSerialPortOutput": "compute.instances.getSerialPortOutput",
        "machineTypes.aggregatedList": "compute.machineTypes.list",
        "machineTypes.get": "compute.machineTypes.get",
        "networks.get": "compute.networks.get",
        "projects.get": "compute.projects.get",
        "projects.getXpnResources": "compute.projects.get",
        "regionOperations.wait": "compute.regionOperations.get",
        "regions.get": "compute.regions.get",
        "subnetworks.get": "compute.subnetworks.get",
        "zoneOperations.wait": "compute.zoneOperations.get",
    }
    if name in plain:
        yield plain[name], project
    elif name.startswith("images."):
        if p["project"] == PROJECT:  # others are public
            yield f"compute.{name}", project
    elif name == "firewalls.insert":
        yield "compute.firewalls.create", f"{project}/global/firewalls/{body['name']}"
        yield "compute.networks.updatePolicy", body["network"]
    elif name.endswith(".bulkInsert"):
        yield from _needs_of_machines(project, body["instanceProperties"])
    else:
        raise NotImplementedError(name)


def _needs_of_machines(project: str, properties: Any) -> Iterator[tuple[str, str]]:
    for verb in ("create", "setLabels", "setMetadata", "setTags"):
        yield f"compute.instances.{verb}", f"{project}/zones/z/instances/i"
    yield "compute.disks.create", f"{project}/zones/z/disks/i"
    yield "compute.disks.setLabels", f"{project}/zones/z/disks/i"
    interface = properties["networkInterfaces"][0]
    yield "compute.subnetworks.use", interface.get("subnetwork", interface["network"])
    if interface.get("accessConfigs"):
        yield "compute.subnetworks.useExternalIp", interface.get("subnetwork", interface["network"])
    if properties["disks"][0]["initializeParams"]["sourceImage"].startswith(f"{project}/"):
        yield "compute.images.useReadOnly", project
    for account in properties.get("serviceAccounts", ()):
        yield "compute.instances.setServiceAccount", f"{project}/zones/z/instances/i"
        yield "iam.serviceAccounts.actAs", account["email"]


def user_data(body: Any) -> str:
    """What cloud-init makes of an instance's metadata."""
    items = {i["key"]: i["value"] for i in body["instanceProperties"]["metadata"]["items"]}
    assert items["user-data-encoding"] == "base64"
    return gzip.decompress(base64.b64decode(items["user-data"])).decode()


def _now() -> str:
    return datetime.now(PACIFIC).isoformat(timespec="milliseconds")


def _unknown(project: str, kind: str, name: str) -> Refused:
    return Refused(404, "notFound", f"The resource 'projects/{project}/{kind}/{name}' was not found")


def _json(status: int, answer: Any) -> tuple[int, str, bytes]:
    return status, "application/json; charset=UTF-8", json.dumps(answer).encode()


def _handler(fake: Fake) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, kind, answer = fake.answer(self.command, self.path, self.headers, body)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
            self.wfile.flush()

        do_GET = do_POST = do_DELETE = _answer

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
