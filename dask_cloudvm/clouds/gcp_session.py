"""The Compute Engine REST API for asyncio: google-auth's session in threads, errors translated, operations awaited.

https://cloud.google.com/compute/docs/reference/rest/v1
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from dask_cloudvm._version import __version__
from dask_cloudvm.clouds import gcp_errors
from dask_cloudvm.errors import CloudError
from dask_cloudvm.threads import in_thread

HOST = "https://compute.googleapis.com/compute/v1/"
OVERRIDE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE"  # as gcloud has it
MANAGER = "https://cloudresourcemanager.googleapis.com/"
MANAGER_OVERRIDE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDRESOURCEMANAGER"
SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
PATIENCE = 60.0  # seconds for a call that is throttled or fails in transit
PAUSE = 0.5  # seconds before such a call is made again; longer each time
CONNECT, READ, POLL = 10.0, 60.0, 20.0  # seconds; a long poll that takes longer is asked again
EARLY = 0.1  # seconds of rest where a long poll comes back without a result, as it may
PAGE = 500  # the most that Google gives at once
BATCH = 1000  # calls in one request: https://cloud.google.com/compute/docs/api/how-tos/batch
VENDOR = Path("/sys/class/dmi/id/product_name")
_P, _Z, _R = "projects/{project}/", "projects/{project}/zones/{zone}/", "projects/{project}/regions/{region}/"
METHODS = {
    "firewalls.delete": ("DELETE", _P + "global/firewalls/{firewall}"),
    "firewalls.insert": ("POST", _P + "global/firewalls"),
    "firewalls.list": ("GET", _P + "global/firewalls"),
    "globalOperations.wait": ("POST", _P + "global/operations/{operation}/wait"),
    "images.get": ("GET", _P + "global/images/{image}"),
    "images.getFromFamily": ("GET", _P + "global/images/family/{family}"),
    "instances.aggregatedList": ("GET", _P + "aggregated/instances"),
    "instances.bulkInsert": ("POST", _Z + "instances/bulkInsert"),
    "instances.delete": ("DELETE", _Z + "instances/{instance}"),
    "instances.get": ("GET", _Z + "instances/{instance}"),
    "instances.getSerialPortOutput": ("GET", _Z + "instances/{instance}/serialPort"),
    "machineTypes.aggregatedList": ("GET", _P + "aggregated/machineTypes"),
    "machineTypes.get": ("GET", _Z + "machineTypes/{machineType}"),
    "manager.getIamPolicy": ("POST", "projects/{project}:getIamPolicy"),
    "manager.testIamPermissions": ("POST", "projects/{project}:testIamPermissions"),
    "networks.get": ("GET", _P + "global/networks/{network}"),
    "projects.get": ("GET", "projects/{project}"),
    "projects.getXpnResources": ("GET", _P + "getXpnResources"),
    "regionInstances.bulkInsert": ("POST", _R + "instances/bulkInsert"),
    "regionOperations.wait": ("POST", _R + "operations/{operation}/wait"),
    "regions.get": ("GET", "projects/{project}/regions/{region}"),
    "subnetworks.get": ("GET", _R + "subnetworks/{subnetwork}"),
    "zoneOperations.wait": ("POST", _Z + "operations/{operation}/wait"),
}
Calls = Sequence[Mapping[str, Any]]


def looks_configured() -> bool:
    """Whether this computer may have Google credentials and a project, without asking the network."""
    try:
        if VENDOR.read_text().strip() == "Google Compute Engine":
            return True
    except OSError:
        pass
    folder = Path(os.environ.get("CLOUDSDK_CONFIG", "~/.config/gcloud")).expanduser()
    file = Path(os.environ.get("GOOGLE_APPLICATION_CREDENTIALS") or folder / "application_default_credentials.json")
    if not file.is_file():
        return False
    named = any(map(os.environ.get, ("GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT", "CLOUDSDK_CORE_PROJECT")))
    places = (file, *folder.glob("configurations/config_*"))
    return named or any(re.search(r'project(_id)?"?\s*[:=]', place.read_text("utf-8", "replace")) for place in places)


class Session:
    """One set of credentials and one project; ``key`` is a service account's, instead of the default credentials."""

    def __init__(self, project: str | None, key: Mapping[str, Any] | None = None) -> None:
        self._wanted, self._key = project, key
        self._lock = threading.Lock()
        self._http: Any = None
        self._base = f"{(os.environ.get(OVERRIDE) or HOST).rstrip('/')}/"
        self._manager = f"{(os.environ.get(MANAGER_OVERRIDE) or MANAGER).rstrip('/')}/v1/"

    async def project(self) -> str:
        """The project that is used. Raises CloudError where nothing says which."""
        await in_thread(self._authorized)
        if self._wanted:
            return self._wanted
        hint = "set cloudprovider.gcp.projectid or GOOGLE_CLOUD_PROJECT, or: gcloud config set project PROJECT"
        raise CloudError(doing="use Google Compute Engine", what="no project is chosen", hint=hint)

    async def account(self) -> str:
        """The e-mail address of the credentials where it is known."""
        http = await in_thread(self._authorized)
        return str(getattr(http.credentials, "service_account_email", "") or "")

    async def call(self, method: str, doing: str, **parameters: Any) -> Any:
        """One API call; ``method`` and parameters as the API names them, the body in ``resource``.

        Repeats what fails in passing. Raises CloudError, which has Google's reason as ``code``.
        """
        verb, url, body = self._request(method, {"project": await self.project(), **parameters})
        deadline, pause = time.monotonic() + PATIENCE, PAUSE
        while True:
            try:
                return await in_thread(self._send, verb, url, body, doing)
            except CloudError as error:
                if not gcp_errors.passing(error) or time.monotonic() + pause > deadline:
                    raise
                pause = await _rest(max(pause, error.facts.get("retry_after", 0)))

    async def pages(self, method: str, key: str, doing: str, **parameters: Any) -> list[Any]:
        """Everything below ``key`` in every page; of an aggregated list, in every zone."""
        found: list[Any] = []
        token: dict[str, str] = {}
        while True:
            answer = await self.call(method, doing, maxResults=PAGE, **parameters, **token)
            items = answer.get("items", answer.get(key, ()))
            scopes = items.values() if isinstance(items, Mapping) else [{key: items}]
            found += [each for scope in scopes for each in scope.get(key, ())]
            if not answer.get("nextPageToken"):
                return found
            token = {"pageToken": answer["nextPageToken"]}

    async def every(self, method: str, doing: str, calls: Calls) -> list[Any]:
        """Many calls of one method in as few requests as possible: an answer or a CloudError for each, in order."""
        project = await self.project()
        requests = [self._request(method, {"project": project, **each}) for each in calls]
        results: list[Any] = [None] * len(requests)
        left, deadline, pause = list(range(len(requests))), time.monotonic() + PATIENCE, PAUSE
        while left:
            for start in range(0, len(left), BATCH):
                part = left[start : start + BATCH]
                for i, answer in zip(part, await self._batch([requests[i] for i in part], doing), strict=True):
                    results[i] = answer
            left = [i for i in left if isinstance(results[i], CloudError) and gcp_errors.passing(results[i])]
            if time.monotonic() + pause > deadline:
                break
            pause = await _rest(pause) if left else pause
        return results

    async def finished(self, operation: Mapping[str, Any], doing: str, limit: float) -> Mapping[str, Any]:
        """An operation when it is done, or as it is after ``limit`` seconds. Raises CloudError only for the asking.

        https://cloud.google.com/compute/docs/reference/rest/v1/zoneOperations/wait
        """
        kind = next((k for k in ("zone", "region") if k in operation), "global")
        project = urlsplit(operation.get("selfLink", "")).path.partition("/projects/")[2].partition("/")[0]
        which = {"operation": operation["name"], **({"project": project} if project else {})}
        if kind != "global":
            which[kind] = operation[kind].rpartition("/")[2]
        deadline = time.monotonic() + limit
        while operation.get("status") != "DONE" and time.monotonic() < deadline:
            try:
                operation = await self.call(f"{kind}Operations.wait", doing, **which)
            except CloudError as error:
                if gcp_errors.code(error) != "ReadTimeout":
                    raise
            if operation.get("status") != "DONE":
                await asyncio.sleep(EARLY)
        return operation

    # In threads

    def _request(self, method: str, parameters: Mapping[str, Any]) -> tuple[str, str, bytes | None]:
        verb, template = METHODS[method]
        in_path = set(re.findall(r"{(\w+)}", template))
        path = template.format(**{k: quote(str(parameters[k]), safe="") for k in in_path})
        rest = {k: v for k, v in parameters.items() if k not in in_path and k != "resource" and v is not None}
        body = json.dumps(parameters["resource"]).encode() if "resource" in parameters else None
        base = self._manager if method.startswith("manager.") else self._base
        return verb, f"{base}{path}{'?' if rest else ''}{urlencode(rest)}", body

    def _send(self, verb: str, url: str, body: bytes | None, doing: str) -> Any:
        kind = {"Content-Type": "application/json"} if body else {}
        response = self._exchange(verb, url, body, kind, doing, POLL if url.endswith("/wait") else READ)
        return _read(response.status_code, response.headers, response.content, doing)

    async def _batch(self, requests: Sequence[tuple[str, str, bytes | None]], doing: str) -> list[Any]:
        """Calls without a body in one request; all of them, or none, are the error where the request fails."""
        try:
            return await in_thread(self._send_batch, requests, doing)
        except CloudError as error:
            return [error] * len(requests)

    def _send_batch(self, requests: Sequence[tuple[str, str, bytes | None]], doing: str) -> list[Any]:
        root = urlsplit(self._base)
        mark = f"dask-cloudvm-{random.getrandbits(64):x}"
        parts = []
        for i, (verb, url, _) in enumerate(requests):
            path = url.removeprefix(f"{root.scheme}://{root.netloc}")
            head = f"--{mark}\r\nContent-Type: application/http\r\nContent-ID: <{i}>\r\n\r\n"
            parts.append(f"{head}{verb} {path} HTTP/1.1\r\n\r\n\r\n")
        body = "".join([*parts, f"--{mark}--\r\n"]).encode()
        url = f"{root.scheme}://{root.netloc}/batch/compute/v1"
        response = self._exchange("POST", url, body, {"Content-Type": f"multipart/mixed; boundary={mark}"}, doing, READ)
        if response.status_code != 200:
            _read(response.status_code, response.headers, response.content, doing)
        return _parts(response.headers["Content-Type"], response.content, len(requests), doing)

    def _exchange(
        self, verb: str, url: str, body: bytes | None, headers: Mapping[str, str], doing: str, patience: float
    ) -> Any:
        import requests
        from google.auth.exceptions import GoogleAuthError, TransportError

        agent = {"User-Agent": f"dask-cloudvm/{__version__}", **headers}
        http = self._authorized()
        try:
            return http.request(verb, url, data=body, headers=agent, timeout=(CONNECT, patience))
        except requests.exceptions.ReadTimeout as error:
            kind = "ReadTimeout" if url.endswith("/wait") else "unreachable"
            raise _unreached(doing, url, error, kind) from None
        except requests.exceptions.RequestException as error:
            raise _unreached(doing, url, error, "unreachable") from None
        except TransportError as error:
            raise _unreached(doing, url, error, "unreachable") from None
        except GoogleAuthError as error:
            if error.retryable:
                raise _unreached(doing, url, error, "unreachable") from None
            raise _not_logged_in(doing, error) from None

    def _authorized(self) -> Any:
        with self._lock:
            if self._http is None:
                credentials, project = _credentials(self._key)
                from google.auth.transport.requests import AuthorizedSession

                self._wanted = self._wanted or project or getattr(credentials, "quota_project_id", None)
                self._http = AuthorizedSession(credentials)
            return self._http


async def _rest(pause: float) -> float:
    """Waits, and says how long to wait the next time."""
    await asyncio.sleep(pause * random.uniform(0.8, 1.2))
    return min(2 * pause, 10.0)


def _read(status: int, headers: Mapping[str, str], content: bytes, doing: str) -> Any:
    try:
        answer = json.loads(content or b"{}")
    except ValueError:
        answer = content[:300].decode("utf-8", "replace")
    if status < 400:
        return answer
    error = gcp_errors.refused(answer, status, doing)
    if str(headers.get("Retry-After", "")).isdigit():
        error.facts["retry_after"] = min(int(headers["Retry-After"]), 30)
    raise error


def _parts(content_type: str, content: bytes, count: int, doing: str) -> list[Any]:
    """The answers in a multipart body, by the numbers in their Content-ID."""
    from email.message import Message
    from email.parser import BytesParser

    found = BytesParser().parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + content)
    lost = CloudError(doing=doing, what="an answer is missing", hint="try again", code="backendError", status=503)
    answers: list[Any] = [lost] * count
    for part in found.get_payload():
        assert isinstance(part, Message)
        number = re.search(r"(\d+)>?$", part.get("Content-ID", ""))
        payload = part.get_payload(decode=True)
        head, _, rest = (payload if isinstance(payload, bytes) else b"").replace(b"\r\n", b"\n").partition(b"\n\n")
        status = re.match(rb"HTTP/[\d.]+ (\d+)", head)
        if number and status and int(number[1]) < count:
            try:
                answers[int(number[1])] = _read(int(status[1]), {}, rest, doing)
            except CloudError as error:
                answers[int(number[1])] = error
    return answers


def _credentials(key: Mapping[str, Any] | None) -> tuple[Any, str | None]:
    """https://google-auth.readthedocs.io/en/latest/reference/google.auth.html"""
    try:
        import google.auth
        import requests  # noqa: F401
        from google.auth.exceptions import GoogleAuthError
    except ImportError:
        hint = "install it by: pip install 'dask-cloudvm[gcp]'"
        raise CloudError(doing="use Google Compute Engine", what="google-auth is not installed", hint=hint) from None
    try:
        if key is None:
            credentials, project = google.auth.default(scopes=SCOPES)
            return credentials, project
        from google.oauth2 import service_account

        made = service_account.Credentials.from_service_account_info(dict(key), scopes=SCOPES)
        return made, key.get("project_id")
    except (GoogleAuthError, ValueError) as error:
        raise _not_logged_in("use Google Compute Engine", error) from None


def _not_logged_in(doing: str, error: Exception) -> CloudError:
    what = str(error.args[0] if error.args else error).strip().rstrip(".").replace("\n", " ")
    hint = "log in by gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS"
    return CloudError(doing=doing, what=what, hint=hint, code="authError")


def _unreached(doing: str, url: str, error: Exception, code: str) -> CloudError:
    what = f"no answer from {urlsplit(url).netloc} ({type(error).__name__})"
    hint = f"check the network, or {OVERRIDE}"
    return CloudError(doing=doing, what=what, hint=hint, code=code, status=0 if code == "ReadTimeout" else 503)
