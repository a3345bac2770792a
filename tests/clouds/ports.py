"""Ports for schedulers of this computer, where all machines of a fake share one address."""

from __future__ import annotations

import itertools
import os
import socket
from contextlib import suppress

# Below those that the kernel gives to whoever asks for any: such a port would soon be somebody else's. Each process has
# a part of its own, since several of them run tests at the same time.
SIZE = 1000
FIRST = 10_000 + os.getpid() % 20 * SIZE
_next = itertools.cycle(range(FIRST, FIRST + SIZE))


def free_port() -> int:
    """One on which nobody listens, and another one each time."""
    for port in itertools.islice(_next, SIZE):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError(f"every port from {FIRST} to {FIRST + SIZE - 1} is taken")
