"""What a machine learns about itself at 169.254.169.254, as each cloud tells it."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

Answer = tuple[int, dict[str, str], bytes]
NOT_FOUND: Answer = (404, {}, b"Not Found")


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


class Identity(Protocol):
    """One machine to its metadata service."""

    def answer(self, asked: Asked) -> Answer: ...


def text(value: str, **headers: str) -> Answer:
    return 200, {"Content-Type": "text/plain", **headers}, value.encode()


def as_json(value: Any, **headers: str) -> Answer:
    return 200, {"Content-Type": "application/json", **headers}, json.dumps(value).encode()


@dataclass
class EC2:
    """https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-categories.html, with IMDSv2 required."""

    id: str
    index: int
    address: str
    user_data: bytes
    type: str = "m7i.large"
    zone: str = "us-east-1a"
    notice: dict[str, str] | None = None  # as in /latest/meta-data/spot/instance-action
    tokens: set[str] = field(default_factory=set)

    def answer(self, asked: Asked) -> Answer:
        _, version, kind, *rest = asked.path.split("/")
        if asked.method == "PUT" and asked.path == "/latest/api/token":
            if "X-aws-ec2-metadata-token-ttl-seconds" not in asked.headers:
                return 400, {}, b""
            token = secrets.token_urlsafe()
            self.tokens.add(token)
            return text(token)
        if asked.headers.get("X-aws-ec2-metadata-token") not in self.tokens:
            return 401, {}, b""
        if version not in ("latest", "2021-03-23", "2009-04-04"):
            return NOT_FOUND
        if kind == "user-data":
            return 200, {"Content-Type": "application/octet-stream"}, self.user_data
        if kind == "dynamic":
            tree: Any = {"instance-identity": {"document": json.dumps(self._document())}}
        else:
            tree = self._tree()
        return _leaf(tree, rest)

    def _document(self) -> dict[str, str]:
        return {"instanceId": self.id, "region": self.zone[:-1], "availabilityZone": self.zone}

    def _tree(self) -> dict[str, Any]:
        return {
            "ami-launch-index": str(self.index),
            "instance-id": self.id,
            "instance-type": self.type,
            "local-hostname": f"ip-{self.address.replace('.', '-')}.ec2.internal",
            "local-ipv4": self.address,
            "placement": {"availability-zone": self.zone, "region": self.zone[:-1]},
            **({"spot": {"instance-action": json.dumps(self.notice)}} if self.notice else {}),
        }


def _leaf(tree: Any, path: list[str]) -> Answer:
    """A value, or the names below a folder, which ends in a slash."""
    for part in filter(None, path):
        if not isinstance(tree, dict) or part not in tree:
            return NOT_FOUND
        tree = tree[part]
    if isinstance(tree, str):
        return text(tree)
    return text("\n".join(f"{key}/" if isinstance(value, dict) else key for key, value in tree.items()))


class GCP:
    """https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys"""

    def __init__(self, instance: Mapping[str, Any], attributes: Mapping[str, str], project: str) -> None:
        self.instance, self.attributes, self.project = instance, attributes, project
        self._preempted, self._changed = False, threading.Condition()

    def preempt(self) -> None:
        """The notice that a spot machine gets half a minute before its end."""
        with self._changed:
            self._preempted = True
            self._changed.notify_all()

    def answer(self, asked: Asked) -> Answer:
        if asked.headers.get("Metadata-Flavor") != "Google":
            return 403, {}, b"Missing Metadata-Flavor:Google header."
        zone = self.instance["zone"].rpartition("/")[2]
        plain = {
            "instance/id": self.instance["id"],
            "instance/zone": f"projects/123/zones/{zone}",
            "instance/name": self.instance["name"],
            "instance/hostname": f"{self.instance['name']}.{zone}.c.{self.project}.internal",
            "project/project-id": self.project,
        }
        known = {
            "instance/attributes": self.attributes,
            "project/attributes": {},
            "instance/service-accounts/default/token": {"access_token": "a-token", "expires_in": 3600},
        }
        path = asked.path.removeprefix("/computeMetadata/v1/").rstrip("/")
        flavor = {"Metadata-Flavor": "Google"}
        if path == "instance/preempted":
            if asked.query.get("wait_for_change") == "true":
                self._wait(asked.query)
            return text(str(self._preempted).upper(), ETag=self._etag(), **flavor)
        if path in plain:
            return text(plain[path], **flavor)
        return as_json(known[path], **flavor) if path in known else NOT_FOUND

    def _etag(self) -> str:
        return f"{hash((self.instance['id'], self._preempted)):x}"

    def _wait(self, query: Mapping[str, str]) -> None:
        """https://cloud.google.com/compute/docs/metadata/querying-metadata#waitforchange"""
        last = query.get("last_etag") or self._etag()
        with self._changed:
            seconds = float(query["timeout_sec"]) if "timeout_sec" in query else None
            self._changed.wait_for(lambda: self._etag() != last, seconds)


GOAL = """\
<?xml version="1.0" encoding="utf-8"?>
<GoalState>
  <Version>2012-11-30</Version>
  <Incarnation>1</Incarnation>
  <Machine><ExpectedState>Started</ExpectedState></Machine>
  <Container>
    <ContainerId>c</ContainerId>
    <RoleInstanceList><RoleInstance><InstanceId>i</InstanceId></RoleInstance></RoleInstanceList>
  </Container>
</GoalState>
"""


@dataclass
class Azure:
    """https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service, and the wire server."""

    id: str
    name: str
    user: str
    token: str
    preempted: bool = False

    def answer(self, asked: Asked) -> Answer:
        if asked.path.startswith("/machine"):  # the wire server: ready or not
            return 200, {"Content-Type": "text/xml"}, GOAL.encode() if asked.method == "GET" else b""
        if asked.headers.get("Metadata") != "true" or "api-version" not in asked.query:
            return 400, {}, b"Bad request"
        system = {"computerName": self.name, "adminUsername": self.user, "disablePasswordAuthentication": "true"}
        compute = {"resourceId": self.id, "name": self.name, "osProfile": system}
        known: dict[str, Any] = {
            "/metadata/instance": {"compute": compute, "network": {"interface": []}},
            "/metadata/instance/compute": compute,
            "/metadata/identity/oauth2/token": {"access_token": self.token, "expires_in": "3600"},
            "/metadata/scheduledevents": {
                "DocumentIncarnation": 1,
                "Events": [self._event()] if self.preempted else [],
            },
        }
        return as_json(known[asked.path]) if asked.path in known else NOT_FOUND

    def _event(self) -> dict[str, Any]:
        kind = {"EventType": "Preempt", "ResourceType": "VirtualMachine", "EventStatus": "Scheduled"}
        return {"EventId": "e", **kind, "Resources": [self.name], "NotBefore": "Mon, 19 Sep 2016 18:29:47 GMT"}


def handler(identities: Mapping[str, Identity]) -> type[BaseHTTPRequestHandler]:
    """Answers each machine by the address that it asks from."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            identity = identities.get(self.client_address[0])
            asked = Asked(self.command, url.path, query, self.headers)
            status, headers, body = identity.answer(asked) if identity else NOT_FOUND
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        do_GET = do_PUT = do_POST = do_HEAD = _answer

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
