"""Stands between launchers and a fake cloud, notes every call, and lets one of them go wrong in a chosen way.

It knows nothing of any cloud: what a call is named, and what a refusal looks like, it is told.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from tools import Server, serving

REFUSED = ("throttling", "500", "denied", "quota")  # the cloud says no
BEFORE = (*REFUSED, "reset", "kill before")  # faults that keep the call from taking effect
AFTER = ("time-out", "lost answer", "kill after")
SIGNALS = {"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}  # the call is answered all the same
FAULTS = (*BEFORE, *AFTER, *SIGNALS)
OWN = ("content-length", "transfer-encoding", "connection")  # headers of a connection, not of an answer
LASTING = ("denied", "quota")  # neither goes away by asking again


@dataclass(frozen=True)
class Call:
    """One request as a launcher sent it."""

    verb: str
    path: str
    headers: dict[str, str]
    body: bytes


Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Fault:
    """What shall happen to the ``nth`` call of ``operation``, and where it lasts to all that follow."""

    operation: str
    nth: int
    kind: str
    launcher: int = 0  # to be killed
    seen: int = 0
    fired: int = 0
    released: threading.Event = field(default_factory=threading.Event)  # lets calls that never answer go

    def meets(self, operation: str) -> bool:
        """Counts a call, and says whether it is to go wrong."""
        self.seen += operation == self.operation
        due = self.seen >= self.nth if self.kind in LASTING else self.seen == self.nth and not self.fired
        if operation != self.operation or not due:
            return False
        self.fired += 1
        return True

    def signal(self, number: int) -> None:
        while not self.launcher:  # it is just being told
            time.sleep(0.001)
        os.kill(self.launcher, number)


class Proxy:
    """``name`` gives a call its operation's name, ``refuse`` the cloud's answer for one of REFUSED."""

    def __init__(self, target: str, name: Callable[[Call], str], refuse: Callable[[Call, str, str], Answer]) -> None:
        self.target, self.name, self.refuse = urlsplit(target).netloc, name, refuse
        self.calls: list[str] = []
        self.fault: Fault | None = None
        self.before: Callable[[str, int], None] = lambda operation, nth: None  # called for each call, before it
        self._lock = threading.Lock()

    def count(self) -> Counter[str]:
        return Counter(self.calls)

    def serving(self) -> AbstractContextManager[str]:
        return serving(_handler(self), _Server)

    @contextmanager
    def going_wrong(self, fault: Fault | None) -> Iterator[None]:
        self.fault = fault
        try:
            yield
        finally:
            self.fault = None
            if fault:
                fault.released.set()

    def take(self, call: Call) -> tuple[str, Fault | None]:
        operation = self.name(call)
        with self._lock:
            self.calls.append(operation)
            nth = self.calls.count(operation)
            fault = self.fault if self.fault and self.fault.meets(operation) else None
        self.before(operation, nth)
        return operation, fault


class _Server(Server):
    request_queue_size = 100

    def handle_error(self, request: object, client_address: object) -> None:
        """A launcher that is killed closes its connections."""


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            self.beyond = http.client.HTTPConnection(proxy.target)

        def finish(self) -> None:
            self.beyond.close()
            with suppress(OSError):
                super().finish()

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            call = Call(self.command, self.path, dict(self.headers.items()), body)
            operation, fault = proxy.take(call)
            if fault is not None and fault.kind in SIGNALS:
                return self._interrupt(call, fault)
            if fault is None:
                return self._send(*self._forward(call))
            if fault.kind in REFUSED:
                return self._send(*proxy.refuse(call, operation, fault.kind))
            if fault.kind in AFTER:
                self._forward(call)
            if fault.kind == "time-out":
                fault.released.wait(60)
            elif fault.kind.startswith("kill"):
                fault.signal(signal.SIGKILL)
            elif fault.kind == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR) if fault.kind != "reset" else self.connection.close()

        do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = do_HEAD = _answer

        def _interrupt(self, call: Call, fault: Fault) -> None:
            """Ctrl-C before the call takes effect, SIGTERM between that and its answer."""
            answer = self._forward(call) if fault.kind == "SIGTERM" else None
            fault.signal(SIGNALS[fault.kind])
            time.sleep(0.05)
            self._send(*(answer or self._forward(call)))

        def _forward(self, call: Call) -> Answer:
            self.beyond.request(call.verb, call.path, call.body or None, call.headers)
            response = self.beyond.getresponse()
            return response.status, dict(response.getheaders()), response.read()

        def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response_only(status)
            kept = {
                k: v
                for k, v in headers.items()
                if k.lower() not in ("content-length", "transfer-encoding", "connection")
            }
            for key, value in {**kept, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    return Handler
