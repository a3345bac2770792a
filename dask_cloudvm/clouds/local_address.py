"""Address and ports of the local cloud's scheduler."""

from __future__ import annotations

import socket

from dask_cloudvm.errors import CloudError


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
    """A port that is free, ``port`` where it is not 0 and can be had. Raises CloudError, which names ``option``."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            what = f"port {port} on {host} cannot be used: {(error.strerror or str(error)).lower()}"
            hint = f"change cloudprovider.local.{option}, or leave it out to get a free one"
            raise CloudError(doing="start the scheduler", what=what, hint=hint) from None
        found: int = probe.getsockname()[1]
        return found
