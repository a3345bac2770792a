"""An AWS that answers on this computer: moto's server behind a layer that closes the gaps between moto and AWS.

What moto does not do by itself, and AWS does: as many machines as there is capacity for, client tokens, 16 KiB of
user-data, unknown images and types, quotas, capacity by zone and type, rate limits, permissions with conditions, public
addresses that come later than the machine, answers that lag behind, console output, dependencies of security groups.
"""

from __future__ import annotations

import base64
import copy
import fnmatch
import hashlib
import json
import logging
import os
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any
from urllib.parse import parse_qsl, urlencode
from xml.etree import ElementTree

from moto.ec2 import utils as moto_utils
from moto.ec2.models import ec2_backends
from moto.ec2.models.amis import Ami
from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, INSTANCE_TYPES
from moto.ec2.models.tags import TagBackend
from moto.iam.models import iam_backends
from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

ACCOUNT, REGION = "123456789012", "us-east-1"
REGIONS = ("us-west-2", REGION)  # that are enabled for the account
IMAGES = {"amd64": ("ami-0000000000000a001", "x86_64"), "arm64": ("ami-0000000000000a002", "arm64")}
USER = f"arn:aws:iam::{ACCOUNT}:user/tester"
READ_ONLY = ("Describe", "Get", "List", "Decode")
# https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html: (size of the bucket, refill a second)
LIMITS = {"RunInstances": (5, 2), "TerminateInstances": (100, 5), "Describe": (100, 20), "whole": (50, 10), "": (50, 5)}
INSTANCES = (1000, 2)

Parameters = dict[str, str]


def _quick_tags(slow: Any) -> Any:
    """Moto looks at every tag of the account for those of one resource, which it wants for each in a list."""

    def describe_tags(backend: Any, filters: Any = None) -> Any:
        match (filters or {}).get("resource-id"):
            case [str(id)] if not set(id) & set("*?"):
                only, backend = backend, copy.copy(backend)
                backend.tags = {id: only.tags[id]} if id in only.tags else {}
        return slow(backend, filters)

    return describe_tags


TagBackend.describe_tags = _quick_tags(TagBackend.describe_tags)


def _pattern(value: str) -> str:
    """A filter as a pattern: a backslash takes any next character's meaning; moto lets it do so for two only."""
    parts = re.findall(r"\\(.)|([*?])|(.)", value, re.S)
    any_text = {"*": ".*", "?": "."}
    return "".join(any_text.get(wild) or re.escape(escaped or plain) for escaped, wild, plain in parts) + r"\Z"


moto_utils.simple_aws_filter_to_re = _pattern


class Refused(Exception):
    """What the layer answers instead of moto."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(code, message)
        self.code, self.message, self.status = code, message, status


class Bucket:
    def __init__(self, size: float, refill: float) -> None:
        self.size, self.refill, self.level, self.at = size, refill, float(size), time.monotonic()

    def take(self, tokens: float = 1) -> bool:
        now = time.monotonic()
        self.level, self.at = min(self.size, self.level + (now - self.at) * self.refill), now
        if self.level < tokens:
            return False
        self.level -= tokens
        return True


@dataclass
class Fault:
    """Answers to come: ``times`` refusals of one action, in one region or any."""

    action: str
    code: str
    message: str
    times: int = 1
    status: int = 400
    region: str = ""


@dataclass
class Fake:
    """One account in one region. The fields may be changed while it runs."""

    limits: bool = False
    lag: float = 0.0  # seconds until a new instance is shown, or known to any other call
    capacity: dict[tuple[str, str, bool], int] = field(default_factory=dict)  # by zone, type and spot; else enough
    quota: int | None = None  # vCPUs at a time
    policies: Sequence[Mapping[str, Any]] | None = None  # what the caller may do; None is everything
    address: str | None = None  # of every machine, in place of moto's random ones
    faults: list[Fault] = field(default_factory=list)
    consoles: Mapping[str, str] = field(default_factory=dict)
    calls: list[tuple[str, Parameters]] = field(default_factory=list)
    me: str = "203.0.113.7"
    # Gets each launch, its parameters and instance ids; may give what to put in place of moto's addresses.
    on_run: Callable[[Parameters, list[str]], Mapping[str, str] | None] | None = None
    on_end: Callable[[list[str]], None] | None = None

    def __post_init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.RLock()
        self._region = REGION  # of the call that is being answered
        self._answered: dict[str, tuple[Parameters, tuple[str, list[Any], bytes]]] = {}
        self._buckets: dict[str, Bucket] = {}
        self._instances = Bucket(*INSTANCES)
        self.reset()

    # For tests

    @property
    def backend(self) -> Any:
        return ec2_backends[ACCOUNT][self._region]

    def reset(self) -> None:
        """A fresh account: default VPC, Ubuntu's images, nothing else, and every field as it was at first."""
        self.limits, self.lag, self.quota, self.policies, self.address = False, 0.0, None, None, None
        self.capacity, self.faults, self.consoles, self.me = {}, [], {}, "203.0.113.7"
        self.on_run = self.on_end = None
        for backend in (*ec2_backends[ACCOUNT].values(), *iam_backends[ACCOUNT].values()):
            backend.reset()
        self._answered.clear()
        self.rest()
        for self._region in REGIONS:
            for id, architecture in IMAGES.values():
                self.add_image(id, architecture)

    def rest(self) -> None:
        """As if a long time had passed: no call is remembered, and every limit is full."""
        self.calls.clear()
        self._buckets.clear()
        self._instances = Bucket(*INSTANCES)

    def add_image(self, id: str, architecture: str = "x86_64", root: str = "/dev/sda1") -> None:
        self.backend.amis[id] = Ami(
            self.backend, id, name=id, architecture=architecture, root_device_name=root, root_device_type="ebs",
            virtualization_type="hvm", hypervisor="xen", public=True, region_name=f"{self._region}a",
        )  # fmt: skip

    def count(self) -> Counter[str]:
        return Counter(action for action, _ in self.calls)

    def writes(self) -> list[str]:
        return [action for action, _ in self.calls if not action.startswith(READ_ONLY)]

    def reads(self) -> list[str]:
        return [action for action, _ in self.calls if action.startswith(READ_ONLY)]

    def sent(self, action: str) -> list[Parameters]:
        return [parameters for name, parameters in self.calls if name == action]

    def ended(self, id: str) -> None:
        """As if this machine had switched itself off."""
        with self._lock:
            if id in {i.id for i in self.instances()}:
                self.backend.terminate_instances([id])

    def instances(self, *states: str) -> list[Any]:
        wanted = states or ("pending", "running")
        return [i for i in self.backend.all_instances() if i.state in wanted]

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Answers over HTTP; gives the address for AWS_ENDPOINT_URL."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=MotoRequestHandler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.port}"
        finally:
            server.shutdown()
            thread.join()

    # The layer

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/checkip":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [f"{self.me}\n".encode()]
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        _, _, region, service, *_ = environ.get("HTTP_AUTHORIZATION", f"//{REGION}//").split("/")
        as_json = "HTTP_X_AMZ_TARGET" in environ
        if as_json:
            action, parameters = environ["HTTP_X_AMZ_TARGET"].split(".")[-1], json.loads(body or b"{}")
        else:
            parameters = dict(parse_qsl(body.decode(), keep_blank_values=True))
            action = parameters.get("Action", "")
        try:
            with self._lock:
                self._region = region
                try:
                    status, headers, answer = self._answer(service, action, parameters, environ)
                finally:
                    self._region = REGION
        except Refused as refused:
            status, headers, answer = _error(refused, service, as_json)
        start_response(status, [(k, v) for k, v in headers if k.lower() != "content-length"])
        return [answer]

    def _answer(
        self, service: str, action: str, parameters: Parameters, environ: dict[str, Any]
    ) -> tuple[str, list[Any], bytes]:
        self.calls.append((action, parameters))
        for fault in self.faults:
            if fault.action == action and fault.times > 0 and fault.region in ("", self._region):
                fault.times -= 1
                raise Refused(fault.code, fault.message, fault.status)
        if service == "ec2":
            self._throttle(action, parameters)
        self._authorize(service, action, parameters)
        own = getattr(self, f"_on_{_snake(action)}", None)
        return own(parameters, environ) if own else self._pass(parameters, environ)

    def _pass(self, parameters: Any, environ: dict[str, Any]) -> tuple[str, list[Any], bytes]:
        """Moto's own answer."""
        as_json = "HTTP_X_AMZ_TARGET" in environ
        body = (json.dumps(parameters) if as_json else urlencode(parameters)).encode()
        got: list[Any] = []
        environ = {**environ, "wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        answer = b"".join(self._moto(environ, lambda status, headers, *_: got.extend((status, headers))))
        if self.address and not as_json:
            answer = re.sub(
                rb"<(ipAddress|privateIpAddress|publicIp)>[^<]*<", rb"<\1>%s<" % self.address.encode(), answer
            )
        return got[0], got[1], answer

    def _throttle(self, action: str, parameters: Parameters) -> None:
        if not self.limits:
            return
        kind = action if action in LIMITS else "Describe" if action.startswith(("Describe", "Get")) else ""
        if kind == "Describe" and not any(
            key.startswith(("Filter", "MaxResults")) or ".1" in key for key in parameters
        ):
            kind = "whole"
        enough = self._buckets.setdefault(kind, Bucket(*LIMITS[kind])).take()
        if enough and action == "RunInstances" and "DryRun" not in parameters:
            enough = self._instances.take(int(parameters["MaxCount"]))
        if not enough:
            raise Refused("RequestLimitExceeded", "Request limit exceeded.", 503)

    # Instances

    def _on_run_instances(self, parameters: Parameters, environ: dict[str, Any]) -> Any:
        if "DryRun" in parameters:
            return self._pass(parameters, environ)
        self._check_run(parameters)
        token = parameters.get("ClientToken", "")
        same = {k: v for k, v in parameters.items() if k != "ClientToken"}
        if token and token in self._answered:
            before, answer = self._answered[token]
            if before != same:
                message = (
                    "Arguments on this idempotent request are inconsistent with arguments used in previous request(s)."
                )
                raise Refused("IdempotentParameterMismatch", message)
            return answer
        count = self._available(parameters)
        status, headers, body = self._pass({**parameters, "MinCount": str(count), "MaxCount": str(count)}, environ)
        body = re.sub(rb"<ipAddress>[^<]*</ipAddress>", b"", body)  # a public address comes later
        body = re.sub(rb"<association>.*?</association>", b"", body, flags=re.S)
        if status.startswith("200"):
            if self.on_run:
                changed = self.on_run(parameters, re.findall(r"<instanceId>(i-[0-9a-f]+)<", body.decode()))
                for old, new in (changed or {}).items():
                    body = body.replace(f">{old}<".encode(), f">{new}<".encode())
            self._answered[token] = same, (status, headers, body)
        return status, headers, body

    def _check_run(self, parameters: Parameters) -> None:
        data = base64.b64decode(parameters.get("UserData", ""))
        if len(data) > 16 << 10:
            raise Refused("InvalidParameterValue", "User data is limited to 16384 bytes")
        image, type = parameters["ImageId"], parameters["InstanceType"]
        if image not in self.backend.amis:
            raise Refused("InvalidAMIID.NotFound", f"The image id '[{image}]' does not exist")
        if type not in INSTANCE_TYPES:
            message = f"Invalid value '{type}' for InstanceType."
            raise Refused("InvalidParameterValue", message)
        for group in _list(parameters, "NetworkInterface.1.SecurityGroupId"):
            if self.backend.get_security_group_from_id(group) is None:
                raise Refused("InvalidGroup.NotFound", f"The security group '{group}' does not exist")
        if int(parameters["MaxCount"]) < int(parameters["MinCount"]):
            raise Refused("InvalidParameterValue", "MinCount must not be more than MaxCount")
        zone = self._zone(parameters)
        offers = INSTANCE_TYPE_OFFERINGS["availability-zone"][self._region]
        if not any(o["InstanceType"] == type and o["Location"] == zone for o in offers):
            message = (
                f"Your requested instance type ({type}) is not supported in your requested Availability Zone ({zone})."
            )
            raise Refused("Unsupported", message)

    def _zone(self, parameters: Parameters) -> str:
        subnet = parameters.get("NetworkInterface.1.SubnetId") or parameters.get("SubnetId")
        if subnet is None:
            return parameters.get("Placement.AvailabilityZone", f"{REGION}a")
        for by_zone in self.backend.subnets.values():
            if subnet in by_zone:
                return str(by_zone[subnet].availability_zone)
        raise Refused("InvalidSubnetID.NotFound", f"The subnet ID '{subnet}' does not exist")

    def _available(self, parameters: Parameters) -> int:
        """How many of those that are asked for there are; refuses where it is less than MinCount."""
        wanted, least = int(parameters["MaxCount"]), int(parameters["MinCount"])
        type, zone = parameters["InstanceType"], self._zone(parameters)
        spot = parameters.get("InstanceMarketOptions.MarketType") == "spot"
        if self.quota is not None:
            each = INSTANCE_TYPES[type]["VCpuInfo"]["DefaultVCpus"]
            used = sum(INSTANCE_TYPES[i.instance_type]["VCpuInfo"]["DefaultVCpus"] for i in self.instances())
            if used + each * least > self.quota:
                message = f"You have requested more vCPU capacity than your current vCPU limit of {self.quota} allows"
                raise Refused("VcpuLimitExceeded", message)
            wanted = min(wanted, (self.quota - used) // each)
        place = (zone, type, spot)
        count = min(wanted, self.capacity.get(place, wanted))
        if count < least:
            message = (
                f"We currently do not have sufficient {type} capacity in the Availability Zone you requested ({zone})."
            )
            raise Refused("InsufficientInstanceCapacity", message, 500)
        if place in self.capacity:
            self.capacity[place] -= count
        return count

    def _young(self) -> set[str]:
        now = time.time()
        return {i.id for i in self.backend.all_instances() if now - i.launch_time.timestamp() < self.lag}

    def _on_describe_regions(self, parameters: Parameters, environ: dict[str, Any]) -> Any:
        named = {f"RegionName.{i}": region for i, region in enumerate(REGIONS, 1)}
        return self._pass({**parameters, **named}, environ)

    def _on_describe_instances(self, parameters: Parameters, environ: dict[str, Any]) -> Any:
        status, headers, body = self._pass(parameters, environ)
        return status, headers, _without(body, self._young()) if self.lag else body

    def _on_terminate_instances(self, parameters: Parameters, environ: dict[str, Any]) -> Any:
        young = self._young() if self.lag else set()
        known = {i.id for i in self.backend.all_instances()} - young
        unknown = [id for id in _list(parameters, "InstanceId") if id not in known]
        if unknown:
            several = ", ".join(unknown)
            text = f"The instance ID '{several}' does not exist"
            if len(unknown) > 1:
                text = f"The instance IDs '{several}' do not exist"
            raise Refused("InvalidInstanceID.NotFound", text)
        there = {i.id for i in self.instances("pending", "running", "stopping", "stopped")}
        ids = [id for id in _list(parameters, "InstanceId") if id in there]  # moto cannot terminate twice
        kept = {k: v for k, v in parameters.items() if not k.startswith("InstanceId.")}
        if self.on_end:
            self.on_end(ids)
        if ids:
            return self._pass({**kept, **{f"InstanceId.{i}": id for i, id in enumerate(ids, 1)}}, environ)
        answer = "<TerminateInstancesResponse><instancesSet/></TerminateInstancesResponse>"
        return "200 OK", [("Content-Type", "text/xml")], answer.encode()

    def _on_get_console_output(self, parameters: Parameters, environ: dict[str, Any]) -> Any:
        id = parameters["InstanceId"]
        if id not in {i.id for i in self.backend.all_instances()}:
            raise Refused("InvalidInstanceID.NotFound", f"The instance ID '{id}' does not exist")
        text = base64.b64encode(self.consoles.get(id, "").encode()).decode()
        answer = (
            f"<GetConsoleOutputResponse><instanceId>{id}</instanceId><output>{text}</output></GetConsoleOutputResponse>"
        )
        return "200 OK", [("Content-Type", "text/xml")], answer.encode()

    def _on_delete_security_group(self, parameters: Parameters, environ: dict[str, Any]) -> Any:
        id = parameters.get("GroupId")
        if any(id == group.id for i in self.instances() for nic in i.nics.values() for group in nic.group_set):
            raise Refused("DependencyViolation", f"resource {id} has a dependent object")
        return self._pass(parameters, environ)

    # Other services

    def _on_get_parameters(self, parameters: Any, environ: dict[str, Any]) -> Any:
        """Canonical's public parameters: the two newest releases."""
        found, unknown = [], []
        for name in parameters["Names"]:
            match = re.fullmatch(
                r"/aws/service/canonical/ubuntu/server/(26|24)\.04/stable/current/(\w+)/hvm/ebs-gp3/ami-id", name
            )
            value = IMAGES[match[2]][0] if match else None
            found += [{"Name": name, "Type": "String", "Value": value, "Version": 1}] if value else []
            unknown += [] if value else [name]
        return _json({"Parameters": found, "InvalidParameters": unknown})

    def _on_get_service_quota(self, parameters: Any, environ: dict[str, Any]) -> Any:
        quota = {"QuotaCode": parameters["QuotaCode"], "ServiceCode": "ec2", "Value": float(self.quota or 1280)}
        return _json({"Quota": quota})

    def _on_decode_authorization_message(self, parameters: Parameters, environ: dict[str, Any]) -> Any:
        message = base64.b64decode(parameters["EncodedMessage"]).decode()
        answer = (
            '<DecodeAuthorizationMessageResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
            f"<DecodeAuthorizationMessageResult><DecodedMessage>{_escape(message)}</DecodedMessage>"
            "</DecodeAuthorizationMessageResult></DecodeAuthorizationMessageResponse>"
        )
        return "200 OK", [("Content-Type", "text/xml")], answer.encode()

    # Permissions

    def _authorize(self, service: str, action: str, parameters: Any) -> None:
        if self.policies is None:
            return
        name = {"servicequotas": "servicequotas", "ssm": "ssm", "sts": "sts"}.get(service, "ec2") + f":{action}"
        if action == "GetCallerIdentity":  # needs no permission
            return
        for permission, resource, context in self._needs(name, parameters):
            if not any(_allows(s, permission, resource, context) for p in self.policies for s in p["Statement"]):
                self._deny(permission, resource)

    def _needs(self, name: str, parameters: Any) -> Iterator[tuple[str, str, dict[str, str]]]:
        """What a call needs: (permission, resource, condition keys).

        https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html
        """
        arn = f"arn:aws:ec2:{REGION}:{ACCOUNT}:"
        if name == "ssm:GetParameters":
            yield from ((name, f"arn:aws:ssm:{REGION}::parameter{n}", {}) for n in parameters["Names"])
            return
        tags = _request_tags(parameters) if not name.startswith("servicequotas") else {}
        action = name.partition(":")[2]
        for kind, given in tags.items():
            keys = {f"aws:RequestTag/{k}": v for k, v in given.items()}
            yield "ec2:CreateTags", f"{arn}{kind}/*", {**keys, "ec2:CreateAction": action}
        if action == "RunInstances":
            yield name, f"arn:aws:ec2:{REGION}::image/{parameters['ImageId']}", {}
            if subnet := parameters.get("NetworkInterface.1.SubnetId"):
                yield name, f"{arn}subnet/{subnet}", {}
            for group in _list(parameters, "NetworkInterface.1.SecurityGroupId"):
                yield name, f"{arn}security-group/{group}", {}
            if key := parameters.get("KeyName"):
                yield name, f"{arn}key-pair/{key}", {}
            if parameters.get("InstanceMarketOptions.MarketType") == "spot":
                yield name, f"{arn}spot-instances-request/*", {}
            for kind in ("instance", "volume", "network-interface"):
                yield name, f"{arn}{kind}/*", {f"aws:RequestTag/{k}": v for k, v in tags.get(kind, {}).items()}
            if "IamInstanceProfile.Name" in parameters or "IamInstanceProfile.Arn" in parameters:
                keys = {"iam:PassedToService": "ec2.amazonaws.com"}
                yield "iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/of-the-profile", keys
        elif action == "CreateSecurityGroup":
            given = tags.get("security-group", {})
            yield name, f"{arn}security-group/*", {f"aws:RequestTag/{k}": v for k, v in given.items()}
            yield name, f"{arn}vpc/{parameters['VpcId']}", {}
        elif ids := [
            *_list(parameters, "InstanceId"),
            *([parameters["InstanceId"]] if "InstanceId" in parameters else []),
        ]:
            if not action.startswith("Describe"):
                yield from ((name, f"{arn}instance/{id}", self._tags_of(id)) for id in ids)
        elif "GroupId" in parameters:
            yield name, f"{arn}security-group/{parameters['GroupId']}", self._tags_of(parameters["GroupId"])
            return
        if action.startswith("Describe") or name.startswith(("servicequotas", "sts")):
            yield name, "*", {}

    def _tags_of(self, id: str) -> dict[str, str]:
        return {f"aws:ResourceTag/{t['key']}": t["value"] for t in self.backend.describe_tags({"resource-id": [id]})}

    def _deny(self, permission: str, resource: str) -> None:
        context = {"allowed": False, "context": {"action": permission, "resource": resource}}
        encoded = base64.b64encode(json.dumps(context).encode()).decode()
        message = (
            f"You are not authorized to perform this operation. User: {USER} is not authorized to perform: {permission}"
            f" on resource: {resource}. Encoded authorization failure message: {encoded}"
        )
        raise Refused("UnauthorizedOperation", message, 403)


def _allows(statement: Mapping[str, Any], permission: str, resource: str, context: Mapping[str, str]) -> bool:
    """Whether an IAM statement of effect Allow matches; knows the operators that our policies use, and no other."""
    assert statement["Effect"] == "Allow"
    matches = fnmatch.fnmatchcase
    if not any(matches(permission, pattern) for pattern in _several(statement["Action"])):
        return False
    if not any(matches(resource, pattern) for pattern in _several(statement["Resource"])):
        return False
    for operator, wanted in statement.get("Condition", {}).items():
        for key, value in wanted.items():
            if operator == "Null":
                if (key in context) == (value == "true"):
                    return False
            elif operator == "StringEquals":
                if context.get(key) not in _several(value):
                    return False
            else:
                raise NotImplementedError(operator)
    return True


def _several(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _request_tags(parameters: Mapping[str, str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for key, kind in parameters.items():
        if match := re.fullmatch(r"TagSpecification\.(\d+)\.ResourceType", key):
            prefix = f"TagSpecification.{match[1]}.Tag."
            for name, value in parameters.items():
                if name.startswith(prefix) and name.endswith(".Key"):
                    found[kind][value] = parameters[f"{name[:-4]}.Value"]
    return found


def _list(parameters: Mapping[str, Any], name: str) -> list[str]:
    return [value for key, value in parameters.items() if re.fullmatch(rf"{re.escape(name)}\.\d+", key)]


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _json(answer: Any) -> tuple[str, list[Any], bytes]:
    return "200 OK", [("Content-Type", "application/x-amz-json-1.1")], json.dumps(answer).encode()


def _without(body: bytes, ids: set[str]) -> bytes:
    """DescribeInstances' answer without some instances."""
    root = ElementTree.fromstring(body)
    space = root.tag.rpartition("}")[0] + "}" if "}" in root.tag else ""
    if space:
        ElementTree.register_namespace("", space[1:-1])
    for instances in root.iter(f"{space}instancesSet"):
        for item in list(instances):
            if item.findtext(f"{space}instanceId") in ids:
                instances.remove(item)
    return bytes(ElementTree.tostring(root))


def _error(refused: Refused, service: str, as_json: bool) -> tuple[str, list[Any], bytes]:
    status = f"{refused.status} Refused"
    if as_json:
        body = json.dumps({"__type": refused.code, "message": refused.message})
        return status, [("Content-Type", "application/x-amz-json-1.1")], body.encode()
    error = f"<Error><Code>{refused.code}</Code><Message>{_escape(refused.message)}</Message></Error>"
    id = hashlib.sha256(os.urandom(8)).hexdigest()[:16]
    body = (
        f"<Response><Errors>{error}</Errors><RequestID>{id}</RequestID></Response>"
        if service == "ec2"
        else f"<ErrorResponse>{error}<RequestId>{id}</RequestId></ErrorResponse>"
    )
    return status, [("Content-Type", "text/xml")], body.encode()
