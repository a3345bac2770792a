"""The clouds as the fault matrix knows them: a fake, names of calls, refusals in the cloud's own words, what is left.

A cloud takes part by a subclass of :class:`Home` and a line in ``HOMES``.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, str(Path(__file__).parents[1] / "clouds"))

import dask
from fault_machines import QUIET, Machines, named
from fault_proxy import Answer, Call, Proxy

CHECKIP, TOKEN = "checkip", "token"


class Home(ABC):
    """One fake cloud whose machines run in this process, behind a proxy where calls go wrong."""

    name: ClassVar[str]
    fake: Any
    options: ClassVar[dict[str, Any]] = {}  # of its clusters
    limited: ClassVar[set[str]]  # operations that a quota can refuse
    makes: ClassVar[str]  # the operation that makes machines
    bulk: ClassVar[bool] = True  # many of them by one call
    lists: ClassVar[str]  # that lists them
    writes: ClassVar[tuple[str, ...]]  # beginnings and ends of the names of operations that change something

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machines = Machines(self.end)
        self.proxy: Proxy

    @contextmanager
    def serving(self) -> Iterator[dict[str, str]]:
        """Gives what a launcher needs in its environment."""
        with self.fake.serving() as url:
            self.proxy = Proxy(url, self.operation, self.refuse)
            with self.proxy.serving() as address:
                yield {"DASK_CLOUDVM_CHECKIP": f"{address}/checkip", **self.environment(address)}
        self.machines.stop()

    def fresh(self) -> None:
        """An empty account."""
        dask.config.set(QUIET)
        self.proxy.before = lambda operation, nth: None
        for id in list(self.machines.running):
            self.machines.end(id)
        self.fake.reset()
        self.fake.address = "127.0.0.1"
        self.proxy.calls.clear()
        self.boot()

    def changes(self, operation: str) -> bool:
        """Whether a call has an effect; without one it is all the same whether it failed before or after it."""
        return operation.startswith(self.writes) or operation.endswith(self.writes)

    @abstractmethod
    def environment(self, address: str) -> dict[str, str]: ...

    @abstractmethod
    def boot(self) -> None:
        """Lets the fake's machines run."""

    @abstractmethod
    def end(self, id: str) -> None:
        """A machine has switched itself off."""

    @abstractmethod
    def operation(self, call: Call) -> str: ...

    @abstractmethod
    def refuse(self, call: Call, operation: str, kind: str) -> Answer: ...

    @abstractmethod
    def there(self) -> list[str]:
        """Names of all machines, once for each that has the name."""

    @abstractmethod
    def leftovers(self) -> list[str]:
        """Whatever is still there and costs money, machine or not."""


def text(status: int, said: str, kind: str = "text/plain") -> Answer:
    return status, {"Content-Type": kind}, said.encode()


class EC2(Home):
    name = "ec2"
    makes, lists = "RunInstances", "DescribeInstances"
    writes = ("Run", "Create", "Authorize", "Terminate")
    limited = {"RunInstances", "CreateSecurityGroup", "AuthorizeSecurityGroupIngress"}
    refusals = {
        "throttling": ("RequestLimitExceeded", "Request limit exceeded.", 503),
        "500": ("InternalError", "An internal error has occurred", 500),
        "denied": ("UnauthorizedOperation", "You are not authorized to perform this operation.", 403),
        "RunInstances": ("VcpuLimitExceeded", "You have requested more vCPU capacity than your limit of 0 allows", 400),
        "CreateSecurityGroup": ("SecurityGroupLimitExceeded", "The maximum number of groups has been reached.", 400),
        "AuthorizeSecurityGroupIngress": ("RulesPerSecurityGroupLimitExceeded", "The maximum has been reached.", 400),
    }  # fmt: skip

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from ec2_fake import Fake

        self.fake = Fake()
        self._names: dict[str, str] = {}  # as the machines call themselves

    def environment(self, address: str) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def boot(self) -> None:
        from ec2_boot import files

        def run(parameters: Any, ids: list[str]) -> None:
            for index, id in enumerate(ids):
                written = files(parameters, index)
                self._names[id] = named(written)
                self.machines.run(id, written)

        self.fake.on_run, self.fake.on_end = run, lambda ids: [self.machines.end(id) for id in ids]

    def end(self, id: str) -> None:
        with self.fake._lock:
            if id in {i.id for i in self.fake.instances()}:
                self.fake.backend.terminate_instances([id])

    def operation(self, call: Call) -> str:
        if call.path == "/checkip":
            return CHECKIP
        target = call.headers.get("X-Amz-Target")
        return target.rpartition(".")[2] if target else parse_qs(call.body.decode())["Action"][0]

    def refuse(self, call: Call, operation: str, kind: str) -> Answer:
        from ec2_fake import Refused, _error

        code, message, status = self.refusals[operation if kind == "quota" else kind]
        if operation == CHECKIP:
            return text(status, message)
        as_json = "X-Amz-Target" in call.headers
        if as_json:
            code = {"throttling": "ThrottlingException", "denied": "AccessDeniedException"}.get(kind, code)
            status = 500 if kind == "500" else 400
        answered, headers, body = _error(Refused(code, message, status), "ec2", as_json)
        return int(answered.split()[0]), dict(headers), body

    def there(self) -> list[str]:
        return sorted(self._names[i.id] for i in self.fake.instances("pending", "running", "stopping", "stopped"))

    def leftovers(self) -> list[str]:
        backend = self.fake.backend
        return [*self.there(), *backend.volumes, *backend.enis, *backend.addresses]


class GCP(Home):
    name = "gcp"
    makes, lists = "instances.bulkInsert", "instances.aggregatedList"
    writes = ("insert", "bulkInsert", "delete")
    limited = {"instances.bulkInsert", "firewalls.insert"}
    refusals = {
        "throttling": (403, "rateLimitExceeded", "Rate Limit Exceeded"),
        "500": (500, "internalError", "Internal error. Please try again."),
        "denied": (403, "forbidden", "Required 'compute.something' permission for 'projects/my-project'"),
        "quota": (403, "quotaExceeded", "Quota 'CPUS' exceeded.  Limit: 0.0 in region us-east1."),
    }

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from gcp_fake import Fake

        self.fake = Fake()

    def environment(self, address: str) -> dict[str, str]:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa
        from gcp_fake import ACCOUNT, PROJECT

        pem = rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        key = {"type": "service_account", "project_id": PROJECT, "private_key_id": "1", "private_key": pem.decode()}
        key |= {"client_email": ACCOUNT, "client_id": "1", "token_uri": f"{address}/token"}
        path = self.folder / "key.json"
        path.write_text(json.dumps(key))
        return {
            "GOOGLE_APPLICATION_CREDENTIALS": str(path),
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{address}/compute/v1/",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDRESOURCEMANAGER": f"{address}/",
            "NO_GCE_CHECK": "true",
            "HTTPS_PROXY": "http://127.0.0.1:9",  # google-auth asks iamcredentials.googleapis.com in the background
        }

    def boot(self) -> None:
        from gcp_boot import files

        self.fake.on_run = lambda body, name: self.machines.run(name, files(body, name))
        self.fake.on_end = self.machines.end

    def end(self, id: str) -> None:
        with self.fake._lock:
            for number, instance in list(self.fake.instances.items()):
                if instance["name"] == id:
                    del self.fake.instances[number]

    def operation(self, call: Call) -> str:
        from gcp_fake import API, find

        path = urlsplit(call.path).path
        if path in ("/checkip", "/token"):
            return path[1:]
        if path.startswith("/batch"):
            verb, url, _ = call.body.decode().partition("\r\n\r\n")[2].split("\r\n")[0].split(" ")
            return f"batch of {find(verb, url.removeprefix(API))[0]}"
        return find(call.verb, path.removeprefix(API))[0]

    def refuse(self, call: Call, operation: str, kind: str) -> Answer:
        from gcp_fake import Refused

        status, reason, message = self.refusals[kind]
        if operation == CHECKIP:
            return text(status, message)
        if operation == TOKEN:
            failed = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
            passing = {"error": "internal_failure", "error_description": "Backend Error"}
            said = (400, failed) if kind == "denied" else (503 if kind == "throttling" else 500, passing)
            return text(said[0], json.dumps(said[1]), "application/json")
        return text(status, json.dumps(Refused(status, reason, message).body()), "application/json")

    def there(self) -> list[str]:
        alive = ("PROVISIONING", "STAGING", "RUNNING")
        return sorted(i["name"] for i in list(self.fake.instances.values()) if i["status"] in alive)

    def leftovers(self) -> list[str]:
        """Disks and addresses are parts of the instance there: every one of them says so in the request."""
        for _, body in self.fake.sent():
            assert all(disk["autoDelete"] for disk in body["instanceProperties"]["disks"])
        self.fake._advance()
        return [i["name"] for i in self.fake.instances.values()]


class Azure(Home):
    name = "azure"
    makes, lists = "virtualMachines.createOrUpdate", "virtualMachines.listAll"
    writes = ("createOrUpdate", "delete")
    bulk = False
    options = {"region": "eastus"}
    limited = {"virtualMachines.createOrUpdate"}
    refusals = {
        "throttling": (429, "TooManyRequests", "The request is being throttled."),
        "500": (500, "InternalServerError", "Encountered internal server error."),
        "denied": (403, "AuthorizationFailed", "The client 'x' does not have authorization to perform action 'y'"),
        "quota": (409, "OperationNotAllowed", "Operation could not be completed as it results in exceeding quota."),
    }

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from azure_fake import Fake

        self.fake = Fake()

    def environment(self, address: str) -> dict[str, str]:
        return {
            "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
            "IDENTITY_ENDPOINT": f"{address}/token",
            "IDENTITY_HEADER": "secret",
            "DASK_CLOUDVM_AZURE_ENDPOINT": address,
        }

    def boot(self) -> None:
        from azure_boot import files

        self.fake.on_run = lambda body, name: self.machines.run(name, files(body))
        self.fake.on_end = self.machines.end

    def end(self, id: str) -> None:
        """As the machine's own script does it."""
        with self.fake._lock:
            for machine in self.fake.there().values():
                if machine["name"] == id:
                    _, _, _, _, group, *_ = machine["id"].split("/")
                    p = {"subscriptionId": machine["id"].split("/")[2], "resourceGroupName": group, "vmName": id}
                    self.fake._on_virtualMachines_delete({**p, "base": "", "api-version": ""}, None, {}, None)

    def operation(self, call: Call) -> str:
        from azure_contract import find

        path = urlsplit(call.path).path
        return path[1:] if path in ("/checkip", "/token") else find(call.verb, path)[0]

    def refuse(self, call: Call, operation: str, kind: str) -> Answer:
        from azure_contract import Refused

        status, code, message = self.refusals[kind]
        if operation == CHECKIP:
            return text(status, message)
        said = {"error": "invalid_request", "error_description": message}
        said = said if operation == TOKEN else Refused(status, code, message).body()
        return text(status, json.dumps(said), "application/json")

    def there(self) -> list[str]:
        return sorted(self.fake.there())

    def leftovers(self) -> list[str]:
        return self.fake.leftovers()


HOMES: dict[str, type[Home]] = {home.name: home for home in (EC2, GCP, Azure)}
