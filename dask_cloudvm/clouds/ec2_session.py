"""boto3 for asyncio: calls in threads, errors translated, one session and one client a service."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from dask_cloudvm import places
from dask_cloudvm._version import __version__
from dask_cloudvm.clouds import ec2_errors
from dask_cloudvm.errors import CloudError
from dask_cloudvm.threads import in_thread

T = TypeVar("T")
ATTEMPTS = 6  # of one call that is throttled or fails in transit; 15 s of pauses in all, on average
CONNECT, READ = 5.0, 60.0  # seconds to wait for a connection, and for an answer, before the call is made again
CONNECTIONS = 10
_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-[0-9]+")  # with which a zone begins
DECODE = "decode_authorization_message"
VENDOR = Path("/sys/class/dmi/id/sys_vendor")
HINTS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)


def looks_configured() -> bool:
    """Whether this computer may have AWS credentials, without asking the network."""
    files = (
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
    )
    return any(map(os.environ.get, HINTS)) or any(Path(f).expanduser().is_file() for f in files) or _on_ec2()


def _on_ec2() -> bool:
    try:
        return VENDOR.read_text().strip() == "Amazon EC2"
    except OSError:
        return False


class Session:
    """One boto3 session in one region; see https://boto3.amazonaws.com/v1/documentation/api/latest/guide/session.html"""

    def __init__(self, region: str | None) -> None:
        self._wanted = region
        self._lock = threading.Lock()
        self._session: Any = None
        self._clients: dict[str, Any] = {}

    async def call(self, service: str, operation: str, doing: str, **parameters: Any) -> Any:
        """One API call; ``operation`` as boto3 spells it. Raises CloudError, which has the API's ``code``."""
        return await in_thread(self.call_here, service, operation, doing, parameters)

    async def pages(self, operation: str, key: str, doing: str, **parameters: Any) -> list[Any]:
        """Everything below ``key`` in every page of an EC2 call."""
        found: list[Any] = []
        token: dict[str, str] = {}
        while True:
            answer = await self.call("ec2", operation, doing, **parameters, **token)
            found += answer.get(key, [])
            if not answer.get("NextToken"):
                return found
            token = {"NextToken": answer["NextToken"]}

    async def region(self) -> str:
        """The region that is used. Raises CloudError where nothing says which."""
        return await in_thread(self._region)

    def call_here(self, service: str, operation: str, doing: str, parameters: dict[str, Any]) -> Any:
        region = self._region()  # first, since it says so where boto3 is not installed
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        try:
            return getattr(self._client(service), operation)(**parameters)
        except (BotoCoreError, ClientError, ResponseParserError) as error:
            decode = None if operation == DECODE else self._decode  # else a refusal to decode would be decoded
            raise ec2_errors.translate(error, doing, region, decode) from None

    def _client(self, service: str) -> Any:
        region = self._region()
        with self._lock:
            if service not in self._clients:
                from botocore.config import Config

                config = Config(
                    retries={"mode": "standard", "max_attempts": ATTEMPTS},
                    user_agent_extra=f"dask-cloudvm/{__version__}",
                    max_pool_connections=CONNECTIONS,
                    connect_timeout=CONNECT,
                    read_timeout=READ,
                )
                client = self._session.client(service, region_name=region, config=config)
                client.meta.events.register_first("needs-retry.ec2.RunInstances", _do_not_insist)
                self._clients[service] = client
            return self._clients[service]

    def _region(self) -> str:
        with self._lock:
            if self._session is None:
                self._session = _new_session()
            if not self._wanted:
                self._wanted = self._session.region_name or os.environ.get("AWS_REGION") or _region_of_this_machine()
        if self._wanted:
            return self._wanted
        hint = "set cloudprovider.ec2.region, AWS_DEFAULT_REGION, or a region in ~/.aws/config"
        raise CloudError(doing="use EC2", what="no AWS region is chosen", hint=hint)

    def _decode(self, message: str) -> str:
        """The text behind an encoded authorization failure. Raises CloudError where that is not permitted either."""
        answer = self.call_here("sts", DECODE, "decode it", {"EncodedMessage": message})
        return str(answer["DecodedMessage"])


class Sessions:
    """The session of the region that is chosen, and where none is, those of the regions with clusters of this user."""

    def __init__(self, region: str | None) -> None:
        self.main = Session(region)
        self._chosen = region is not None
        self._others: dict[str, Session] = {}
        self.wide = False

    async def widen(self) -> None:
        """All regions of the account are looked in from now on, whatever is chosen or was used before."""
        answer = await self.main.call("ec2", "describe_regions", "list regions")
        main, self.wide = await self.main.region(), True
        self._others = {name: self._of(name) for r in answer["Regions"] if (name := r["RegionName"]) != main}

    async def elsewhere(self) -> list[Session]:
        """Sessions of the other regions to look in: a cluster can then be found without its profile."""
        if self.wide:
            return list(self._others.values())
        if self._chosen:
            return []
        main = await self.main.region()
        return [self._of(region) for region in await in_thread(places.known, "ec2", "region") if region != main]

    async def ask(self, question: Callable[[Session], Awaitable[T]]) -> tuple[list[T], dict[str, CloudError]]:
        """The answers of all regions to look in, and why others gave none. Raises CloudError where there is none."""
        asked = [self.main, *await self.elsewhere()]
        answers = await asyncio.gather(*map(question, asked), return_exceptions=True)
        found: list[T] = []
        failures: dict[str, CloudError] = {}
        for session, answer in zip(asked, answers, strict=True):
            if not isinstance(answer, BaseException):
                found.append(answer)
            elif isinstance(answer, CloudError) and len(asked) > 1:
                region = await session.region()
                failures[region] = ec2_errors.of_region(answer, region)
            else:
                raise answer
        if not found:
            raise next(iter(failures.values()))
        return found, failures

    async def of(self, zone: str | None) -> Session:
        """The session for a machine in ``zone``."""
        match = _REGION.match(zone or "")
        return self.main if not match or match[0] == await self.main.region() else self._of(match[0])

    def _of(self, region: str) -> Session:
        return self._others.setdefault(region, Session(region))


def _do_not_insist(response: Any, **_: Any) -> None:
    """AWS reports a lack of capacity as a fault of its own (500); boto would ask ten times instead of elsewhere."""
    if response is None:  # it did not come to an answer
        return
    http, parsed = response
    if parsed.get("Error", {}).get("Code") in ec2_errors.CAPACITY:
        http.status_code = 400


def _new_session() -> Any:
    try:
        import boto3
        from botocore.exceptions import ProfileNotFound
    except ImportError:
        hint = "install it by: pip install 'dask-cloudvm[ec2]'"
        raise CloudError(doing="use EC2", what="boto3 is not installed", hint=hint) from None
    try:
        return boto3.session.Session()
    except ProfileNotFound as error:
        raise CloudError(doing="use EC2", what=str(error), hint="change AWS_PROFILE or ~/.aws/config") from None


def _region_of_this_machine() -> str | None:
    if not _on_ec2():
        return None
    from botocore.utils import InstanceMetadataRegionFetcher

    region: str | None = InstanceMetadataRegionFetcher(timeout=1, num_attempts=2).retrieve_region()
    return region
