"""What clouds with a network and a firewall have in common: ports, this computer's address, the worker's class."""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from dask_cloudvm import schema
from dask_cloudvm.errors import CloudError
from dask_cloudvm.options import Options
from dask_cloudvm.threads import in_thread

PORT, DASHBOARD = 8786, 8787
CHECKIP = "https://checkip.amazonaws.com"
ATTEMPTS, PATIENCE, PAUSE = 3, 5.0, 0.5  # to ask it: how often, seconds for an answer, seconds in between
NANNY, CUDA = "dask.distributed.Nanny", "dask_cuda.CUDAWorker"


def listed(value: Any) -> list[Any]:
    """An option that may be null, one value or several, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def per_role(cloud: str, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of each role."""
    return {role: Options(cloud, values, {}).for_role(role) for role in schema.ROLES}


def port(values: Mapping[str, Any]) -> int:
    """The scheduler's port."""
    return int(values["scheduler_options"].get("port") or PORT)


def open_ports(values: Mapping[str, Any]) -> list[int]:
    """The firewall's ports; where they are the default, the scheduler's own port takes the place of 8786."""
    ports = values["firewall"].get("ports", [PORT, DASHBOARD])
    return sorted({port(values), DASHBOARD} if list(ports) == [PORT, DASHBOARD] else set(ports))


async def networks(values: Mapping[str, Any], private: bool) -> list[str]:
    """The firewall's networks, sorted; ``private`` is whether machines see this computer's own address."""
    cidrs = listed(values["firewall"].get("cidr", "me"))
    me = await in_thread(own_address if private else public_address) if "me" in cidrs else ""
    return sorted({str(ipaddress.ip_network(me if c == "me" else c, strict=False)) for c in cidrs})


def public_address() -> str:
    """This computer's address as the internet sees it. Raises CloudError."""
    import urllib.request

    for attempt in range(ATTEMPTS):
        time.sleep(attempt * PAUSE)
        try:
            with urllib.request.urlopen(os.environ.get("DASK_CLOUDVM_CHECKIP", CHECKIP), timeout=PATIENCE) as answer:
                return str(ipaddress.ip_address(answer.read(100).decode("ascii").strip()))
        except (OSError, ValueError, HTTPException) as error:
            failure = error
    what = f"{CHECKIP} does not tell this computer's address ({failure})"
    hint = "set the option firewall, such as firewall: {cidr: 203.0.113.7/32}"
    raise CloudError(doing="open the firewall for this computer", what=what, hint=hint)


def own_address() -> str:
    """This computer's address in its own network, from which private machines see it. Raises CloudError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))  # sends nothing: it only asks for a route
            return str(probe.getsockname()[0])
        except OSError as error:
            hint = "set the option firewall, such as firewall: {cidr: 10.0.0.0/8}"
            raise CloudError(doing="open the firewall for this computer", what=str(error), hint=hint) from None


def worker_class(options: Mapping[str, Any], gpus: int | None) -> str:
    """The class that workers run: dask-cuda's where there are GPUs and none is chosen; ``gpus`` may be unknown."""
    chosen = str(options["worker_class"])
    if chosen != NANNY or gpus == 0:
        return chosen
    return f"<{CUDA} where the machine has GPUs, else {NANNY}>" if gpus is None else CUDA


def difference(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What turns ``first`` into ``other``; None takes a key away."""
    found: dict[str, Any] = {}
    for key in [*first, *(key for key in other if key not in first)]:
        a, b = first.get(key), other.get(key)
        if a != b:
            found[key] = difference(a, b) if isinstance(a, Mapping) and isinstance(b, Mapping) else b
    return found


def changed(body: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """``body`` with what :func:`difference` found."""
    together = {**body, **{key: _one(body.get(key), value) for key, value in change.items()}}
    return {key: value for key, value in together.items() if value is not None}


def _one(old: Any, new: Any) -> Any:
    return changed(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else new
