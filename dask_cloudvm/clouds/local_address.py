"""Address and ports of the local cloud's scheduler."""

from __future__ import annotations

import random
import socket

from dask_cloudvm.errors import CloudError

QUIET = range(10_000, 32_768)  # ports that programs ask for by number; above them are those that anyone gets


def address_of(interface: str | None) -> str:
    """Where machines listen: on one network interface, or on none but this computer's own. Raises CloudError."""
    if interface is None:
        return "127.0.0.1"
    import psutil

    known = psutil.net_if_addrs()
    addresses = [a.address for a in known.get(interface, ()) if a.family == socket.AF_INET]
    if not addresses:
        what = f"there is no network interface {interface!r} with an IPv4 address; there is {', '.join(sorted(known))}"
        raise CloudError(doing="choose an address", what=what, hint="change cloudprovider.local.interface")
    return addresses[0]


def free_port(host: str, port: int, option: str) -> int:
    """A port that is free, ``port`` where it is not 0. Raises CloudError, which names ``option``.

    The kernel would choose from those that it also gives to workers, which start at the same time as the scheduler.
    """
    candidates = [port] if port else random.sample(QUIET, 20)
    for candidate in candidates:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
                return candidate
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
    what = f"port {candidates[-1]} on {host} cannot be used: {reason}"
    hint = f"change cloudprovider.local.{option}, or leave it out to get a free one"
    raise CloudError(doing="start the scheduler", what=what, hint=hint)
