"""Azure Resource Manager's REST API for asyncio: azure-core's pipeline in threads, operations awaited.

https://learn.microsoft.com/en-us/rest/api/azure/
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from dask_cloudvm._version import __version__
from dask_cloudvm.clouds import azure_errors
from dask_cloudvm.clouds.azure_versions import version
from dask_cloudvm.errors import CloudError, CloudVMError
from dask_cloudvm.threads import in_pool

OVERRIDE = "DASK_CLOUDVM_AZURE_ENDPOINT"  # another Resource Manager, such as that of Azure Stack
# Of AZURE_AUTHORITY_HOST, which azure-identity reads, the Resource Manager that belongs to it.
ENDPOINTS = {
    "login.microsoftonline.us": "https://management.usgovcloudapi.net",
    "login.chinacloudapi.cn": "https://management.chinacloudapi.cn",
}
PUBLIC = "https://management.azure.com"
CONCURRENT = 16  # calls at once; Azure refuses more than 10 writes a second for long, and each takes a second or two
CONNECT, READ = 10.0, 60.0  # seconds
RETRIES = 8  # of a call that is throttled or fails in transit; Retry-After says when, or pauses that double
PAUSE = 0.8  # seconds, the first of these
WAIT = 300.0  # seconds, the longest that Azure may ask for before a call is tried again
LOOK = 1.0, 5.0  # seconds between two looks at an operation: the first, and the longest
CHASSIS = Path("/sys/class/dmi/id/chassis_asset_tag"), "7783-7084-3265-9085-8269-3286-77"  # of every machine on Azure
VARIABLES = ("AZURE_SUBSCRIPTION_ID", "AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE", "IDENTITY_ENDPOINT")
T = TypeVar("T")


def looks_configured() -> bool:
    """Whether this computer may have Azure credentials and a subscription, without asking the network."""
    if any(map(os.environ.get, VARIABLES)) or _profile():
        return True
    try:
        return CHASSIS[0].read_text().strip() == CHASSIS[1]
    except OSError:
        return False


def _profile() -> list[Mapping[str, Any]]:
    """The subscriptions that ``az login`` noted."""
    folder = Path(os.environ.get("AZURE_CONFIG_DIR", "~/.azure")).expanduser()
    try:
        found: list[Mapping[str, Any]] = json.loads((folder / "azureProfile.json").read_text("utf-8-sig"))[
            "subscriptions"
        ]
    except (OSError, ValueError, KeyError):
        return []
    return found


@dataclass(frozen=True)
class Answer:
    """What a call gave: ``body`` is None where there was none."""

    status: int
    headers: Mapping[str, str]
    body: Any


class Session:
    """One set of credentials, those of azure-identity's DefaultAzureCredential, and one subscription."""

    def __init__(self, subscription: str | None) -> None:
        self._wanted = subscription
        self._lock = threading.Lock()
        self._pipeline: Any = None
        self._pool = ThreadPoolExecutor(CONCURRENT, thread_name_prefix="azure")
        authority = os.environ.get("AZURE_AUTHORITY_HOST", "").removeprefix("https://").strip("/")
        self.endpoint = (os.environ.get(OVERRIDE) or ENDPOINTS.get(authority, PUBLIC)).rstrip("/")

    async def subscription(self) -> str:
        """The id of the subscription that is used. Raises CloudError where nothing says which.

        https://learn.microsoft.com/en-us/rest/api/resources/subscriptions/list
        """
        self._wanted = self._wanted or os.environ.get("AZURE_SUBSCRIPTION_ID")
        if not self._wanted:
            listed = await self.pages("/subscriptions", "find the subscription")
            self._wanted = _only([each for each in listed if each.get("state", "Enabled") in ("Enabled", "Warned")])
        return self._wanted

    async def root(self) -> str:
        """``/subscriptions/ID``"""
        return f"/subscriptions/{await self.subscription()}"

    async def call(
        self,
        verb: str,
        path: str,
        doing: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One API call below the endpoint. Raises CloudError, which has Azure's reason as ``code``."""
        url = path if "?" in path else f"{path}?api-version={version(path)}"
        return await in_pool(self._pool, self._send, verb, f"{self.endpoint}{url}", doing, body, query, headers)

    async def get(self, path: str, doing: str, **query: str) -> Any:
        """The body of a GET."""
        return (await self.call("GET", path, doing, query=query)).body

    async def find(self, path: str, doing: str, **query: str) -> Any:
        """The body of a GET, None where there is no such thing."""
        try:
            return await self.get(path, doing, **query)
        except CloudError as error:
            if azure_errors.gone(error):
                return None
            raise

    async def pages(self, path: str, doing: str, query: Mapping[str, str] | None = None) -> list[Any]:
        """Everything in every page of a list."""
        answer = (await self.call("GET", path, doing, query=query)).body
        found: list[Any] = list(answer.get("value", ()))
        while link := answer.get("nextLink"):
            answer = (await self._followed(link, doing)).body or {}
            found += answer.get("value", ())
        return found

    async def finished(self, answer: Answer, doing: str, limit: float) -> CloudError | None:
        """Waits for the end of what a call began; why it failed, None where it did not. Raises CloudError.

        https://learn.microsoft.com/en-us/azure/azure-resource-manager/management/async-operations
        """
        deadline, pause = time.monotonic() + limit, LOOK[0]
        while link := operation_of(answer):
            looked = await self._followed(link, doing)
            done = looked.body or {}
            if (status := str(done.get("status", "")).lower()) in ("succeeded", "failed", "canceled"):
                return None if status == "succeeded" else azure_errors.of_operation(done, doing)
            if time.monotonic() > deadline:
                what = f"it is not done after {limit:g} seconds"
                return CloudError(doing=doing, what=what, hint="try again; the portal's activity log tells more")
            await asyncio.sleep(max(pause, min(retry_after(looked.headers), LOOK[1])))
            pause = min(1.5 * pause, LOOK[1])
        return None

    async def outcome(self, link: str, doing: str) -> CloudError | None:
        """Why an operation failed, None where it did not, or not yet. Raises CloudError."""
        done = (await self._followed(link, doing)).body or {}
        failed = str(done.get("status", "")).lower() in ("failed", "canceled")
        return azure_errors.of_operation(done, doing) if failed else None

    async def each(self, items: Sequence[T], work: Callable[[T], Awaitable[None]]) -> list[CloudVMError]:
        """Does ``work`` for all items, some at once; what went wrong."""
        free = asyncio.Semaphore(CONCURRENT)

        async def one(item: T) -> CloudVMError | None:
            async with free:
                try:
                    await work(item)
                except CloudVMError as error:
                    return error
            return None

        return [error for error in await asyncio.gather(*map(one, items)) if error]

    async def text(self, url: str, doing: str) -> str:
        """What an address holds that needs no token, such as a log in Azure's storage."""
        return await in_pool(self._pool, self._fetch, url, doing)

    async def account(self) -> str:
        """Who the token is for, as far as it tells."""
        return await in_pool(self._pool, self._claims)

    # In threads

    async def _followed(self, link: str, doing: str) -> Answer:
        """An address that Azure gave; the token goes to Azure only."""
        if origin(link) != origin(self.endpoint):
            raise CloudError(doing=doing, what=f"Azure points to another host ({urlsplit(link).netloc})", hint=_NETWORK)
        return await in_pool(self._pool, self._send, "GET", link, doing)

    def _send(
        self,
        verb: str,
        url: str,
        doing: str,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        from azure.core.exceptions import AzureError, ClientAuthenticationError
        from azure.core.rest import HttpRequest

        request = HttpRequest(verb, url, params={}, headers=dict(headers or {}), json=body)
        if query:
            request.url += "&" + "&".join(f"{key}={_quoted(value)}" for key, value in query.items())
        try:
            # A token may go in clear to this very computer only, where a fake of Azure runs.
            local = urlsplit(self.endpoint).hostname in ("127.0.0.1", "localhost")
            response = self._made().run(request, enforce_https=not local).http_response
        except ClientAuthenticationError as error:
            raise azure_errors.not_logged_in(doing, error) from None
        except AzureError as error:
            raise _unreached(doing, url, error) from None
        text = response.text()
        try:
            answer = json.loads(text) if text else None
        except ValueError:
            answer = text[:300]
        received = {k.lower(): v for k, v in response.headers.items()}
        if response.status_code >= 400:
            raise azure_errors.refused(answer, response.status_code, doing, retry_after(received))
        return Answer(response.status_code, received, answer)

    def _fetch(self, url: str, doing: str) -> str:
        import urllib.request

        try:
            with urllib.request.urlopen(url, timeout=READ) as answer:
                return str(answer.read().decode("utf-8", "replace"))
        except OSError as error:
            raise _unreached(doing, url, error) from None

    def _claims(self) -> str:
        import base64

        from azure.core.exceptions import ClientAuthenticationError

        self._made()
        try:
            token = self._credential.get_token(f"{self.endpoint}/.default").token
        except ClientAuthenticationError as error:
            raise azure_errors.not_logged_in("use Azure", error) from None
        try:
            claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
        except (IndexError, ValueError):
            return ""
        return str(claims.get("upn") or claims.get("appid") or claims.get("oid") or "")

    def _made(self) -> Any:
        with self._lock:
            if self._pipeline is None:
                self._credential = _credential()
                self._pipeline = _pipeline(self._credential, f"{self.endpoint}/.default")
            return self._pipeline


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port of an address, the same however it is written."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:  # none that there is
        port = -1
    return parts.scheme, parts.hostname or "", port or {"http": 80, "https": 443}.get(parts.scheme)


def operation_of(answer: Answer) -> str | None:
    """Where to ask about what a call began: https://aka.ms/azure-async-operations"""
    return answer.headers.get("azure-asyncoperation")


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds to wait, 0 where headers with lower-case names do not say."""
    said = headers.get("retry-after", "")
    return float(said) if said.isdigit() else 0.0


def _quoted(value: str) -> str:
    from urllib.parse import quote

    return quote(value, safe="")


def _credential() -> Any:
    """https://learn.microsoft.com/en-us/python/api/azure-identity/azure.identity.defaultazurecredential"""
    try:
        from azure.identity import DefaultAzureCredential
    except ImportError:
        hint = "install it by: pip install 'dask-cloudvm[azure]'"
        raise CloudError(doing="use Azure", what="azure-identity is not installed", hint=hint) from None
    logging.getLogger("azure.identity").addHandler(logging.NullHandler())  # a failure is an error of ours, said once
    return DefaultAzureCredential(connection_timeout=CONNECT, read_timeout=READ, retry_backoff_factor=PAUSE)


def _pipeline(credential: Any, scope: str) -> Any:
    """https://learn.microsoft.com/en-us/python/api/overview/azure/core-readme"""
    import requests
    from azure.core.pipeline import Pipeline, policies
    from azure.core.pipeline.transport import RequestsTransport

    http = requests.Session()
    http.mount("https://", requests.adapters.HTTPAdapter(pool_maxsize=CONCURRENT))
    http.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=CONCURRENT))

    class Retries(policies.RetryPolicy[Any, Any]):
        """Gives up where Azure asks for more patience than anybody has who watches a program stand still."""

        def is_retry(self, settings: Any, response: Any) -> bool:
            return (self.get_retry_after(response) or 0) <= WAIT and bool(super().is_retry(settings, response))

    retries = Retries(retry_total=RETRIES, retry_status=RETRIES, retry_backoff_factor=PAUSE)
    chain: list[Any] = [
        policies.RequestIdPolicy(),
        policies.UserAgentPolicy(user_agent=f"dask-cloudvm/{__version__}"),
        policies.RedirectPolicy.no_redirects(),
        retries,
        policies.BearerTokenCredentialPolicy(credential, scope),
    ]
    transport = RequestsTransport(session=http, session_owner=False, connection_timeout=CONNECT, read_timeout=READ)
    return Pipeline(transport, policies=chain)


def _only(subscriptions: list[Any]) -> str:
    """The only one, or of several the one that ``az account set`` chose."""
    chosen = {each.get("id") for each in _profile() if each.get("isDefault")}
    ids = [str(each["subscriptionId"]) for each in subscriptions]
    found = ids if len(ids) == 1 else [id for id in ids if id in chosen]
    if found:
        return found[0]
    names = ", ".join(f"{each.get('displayName', '')} ({each['subscriptionId']})" for each in subscriptions[:5])
    what = f"there are {len(ids)} subscriptions: {names}" if ids else "there is no subscription that you may use"
    hint = "set subscription_id or AZURE_SUBSCRIPTION_ID" if ids else "log in to another tenant, or ask for access"
    raise CloudError(doing="choose the subscription", what=what, hint=hint)


_NETWORK = f"check the network, or {OVERRIDE}"


def _unreached(doing: str, url: str, error: Exception) -> CloudError:
    what = f"no answer from {urlsplit(url).netloc} ({type(error).__name__})"
    return CloudError(doing=doing, what=what, hint=_NETWORK, code="unreachable", status=503)
