"""What tests on the fakes share: ports, servers, the command line."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Below those that the kernel gives to whoever asks for any: such a port would soon be somebody else's. Each process has
# a part of its own, since several of them run tests at the same time.
SIZE = 1000
FIRST = 10_000 + os.getpid() % 20 * SIZE
_next = itertools.cycle(range(FIRST, FIRST + SIZE))


def free_port() -> int:
    """One on which nobody listens, and another one each time: all machines of a fake share one address."""
    for port in itertools.islice(_next, SIZE):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError(f"every port from {FIRST} to {FIRST + SIZE - 1} is taken")


class Server(ThreadingHTTPServer):
    daemon_threads = True


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], server: type[Server] = Server) -> Iterator[str]:
    """Gives the address at which ``handler`` answers meanwhile."""
    running = server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def cli(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The command line as a process of its own."""
    command = [sys.executable, "-m", "dask_cloudvm", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert not check or done.returncode == 0, done.stderr
    return done
