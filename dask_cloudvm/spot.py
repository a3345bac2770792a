"""Runs on a spot machine: hands over what its workers hold when the cloud announces that it takes the machine back.

Dask preloads it into each nanny, which no task can keep from looking, and into workers that have none. It travels to
the machine as text, so it uses the standard library only.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

BASE = os.environ.get("DASK_CLOUDVM_METADATA", "http://169.254.169.254")
CLOUD = "DASK_CLOUDVM_SPOT"
PAUSE = 2.0  # seconds between two looks
log = logging.getLogger("distributed.spot")
State = dict[str, str]  # what one watcher keeps from one look to the next
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would answer for another machine


def get(path: str, headers: Mapping[str, str], method: str = "GET", timeout: float = 10) -> tuple[str, Any]:
    """The text of an answer of the metadata service, and its headers."""
    request = urllib.request.Request(BASE + path, headers=dict(headers), method=method)
    with direct.open(request, timeout=timeout) as answer:
        return answer.read().decode(), answer.headers


def ec2(_: State) -> str:
    """https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html"""
    token, _ = get("/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    try:
        return get("/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})[0]
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return ""
        raise


def gcp(state: State) -> str:
    """https://cloud.google.com/compute/docs/instances/create-use-spot; the answer comes when there is news."""
    path = "/computeMetadata/v1/instance/preempted?wait_for_change=true&timeout_sec=60&last_etag="
    text, headers = get(path + state.get("etag", "NONE"), {"Metadata-Flavor": "Google"}, timeout=90)
    state["etag"] = headers["ETag"]
    return "preempted" if text.strip() == "TRUE" else ""


def azure(_: State) -> str:
    """https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events; the first answer may take minutes."""
    text, _ = get("/metadata/scheduledevents?api-version=2020-07-01", {"Metadata": "true"}, timeout=180)
    mine = [e for e in json.loads(text)["Events"] if socket.gethostname() in e["Resources"]]
    return ", ".join(event["EventType"] for event in mine if event["EventType"] != "Freeze")


CLOUDS: dict[str, Callable[[State], str]] = {
    "ec2": ec2,
    "gcp": gcp,
    "azure": azure,
}


def watch(look: Callable[[State], str], tell: Callable[[str], Any]) -> None:
    """Looks until there is a notice, and tells it."""
    failing, state = False, State()
    while True:
        try:
            if notice := look(state):
                tell(notice)
                return
            failing = False
        except Exception as error:
            if not failing:
                log.warning("Cannot ask for spot notices: %s", error)
            failing = True
        time.sleep(PAUSE)


async def leave(server: Any, notice: str) -> None:
    """Moves a worker's results to others; then its scheduler closes it, and with it the nanny, which makes no other."""
    log.warning("This machine will be taken away: %s", notice)
    with suppress(OSError):  # for status, which shows why the worker was lost
        await server.scheduler.log_event(topic="dask-cloudvm", msg={"worker": server.name, "notice": notice})
    while True:
        address = getattr(server, "worker_address", None) or server.address
        try:
            if await server.scheduler.retire_workers(workers=[address], close_workers=True, remove=True):
                return
        except OSError as error:
            log.warning("Cannot hand over: %s", error)
        await asyncio.sleep(PAUSE)  # nobody can take the results now; a replacement may come in time


def dask_setup(server: Any) -> None:
    """Called by Dask with a nanny or a worker."""
    cloud = os.environ[CLOUD]
    if not cloud:
        return  # this is a worker whose nanny watches
    if hasattr(server, "env"):
        server.env[CLOUD] = ""
    loop, look = asyncio.get_running_loop(), CLOUDS[cloud]

    def tell(notice: str) -> None:
        server.leaving = asyncio.run_coroutine_threadsafe(leave(server, notice), loop)

    threading.Thread(target=watch, args=(look, tell), name="spot-notice", daemon=True).start()
