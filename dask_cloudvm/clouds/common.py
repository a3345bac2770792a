"""What clouds with a network and a firewall have in common: ports, this computer's address, the worker's class."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from typing import Any

from dask_cloudvm import schema
from dask_cloudvm.errors import CloudError
from dask_cloudvm.options import Options
from dask_cloudvm.threads import in_thread

PORT, DASHBOARD = 8786, 8787
CHECKIP = "https://checkip.amazonaws.com"
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

    try:
        with urllib.request.urlopen(os.environ.get("DASK_CLOUDVM_CHECKIP", CHECKIP), timeout=5) as answer:
            return str(ipaddress.ip_address(answer.read(100).decode("ascii").strip()))
    except (OSError, ValueError) as error:
        what = f"{CHECKIP} does not tell this computer's address ({error})"
        hint = "set the option firewall, such as firewall: {cidr: 203.0.113.7/32}"
        raise CloudError(doing="open the firewall for this computer", what=what, hint=hint) from None


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
