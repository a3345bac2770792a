"""The lab as a whole: machines with addresses on one bridge, and what they find there."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.lab import gateway, metadata, root
from tests.lab.machine import Machine, Seed
from tests.lab.metadata import Identity
from tests.lab.server import Server
from tests.lab.space import METADATA, WIRE, Space

FIRST = 10  # last number of the first machine's address


class Lab:
    """Raises Unavailable where machines cannot be started here. Close it: then nothing of it is left."""

    def __init__(self, logs: Path) -> None:
        self.root, self.logs = root.find(), logs
        self.space = Space()
        self.machines: dict[str, Machine] = {}  # by address
        self.identities: dict[str, Identity] = {}  # by address
        self.targets: dict[str, str] = {}  # URLs of the fakes by the names of the APIs
        self._servers: list[Server] = []
        self._numbers, self._started = itertools.count(FIRST), itertools.count()
        self._trusted, key = gateway.certificate(self.space.gateway)
        try:
            self.forget()
            for address in (METADATA, WIRE):
                self._serve(self.space.listen(address, 80), metadata.handler(self.identities))
            listening = gateway.secured(self.space.listen(self.space.gateway, 443), self._trusted, key, logs)
            self._serve(listening, gateway.handler(self.targets))
        except BaseException:
            self.close()
            raise

    def _serve(self, listening: socket.socket, handler: type[BaseHTTPRequestHandler]) -> None:
        self._servers.append(Server(listening, handler))

    def forget(self) -> None:
        """Switches everything off, and frees all addresses."""
        for machine in self.on():
            machine.kill()
        self.machines.clear()
        self.identities.clear()
        self.targets.clear()
        self._numbers = itertools.count(FIRST)
        names = {"127.0.0.1": "localhost", METADATA: "metadata.google.internal"}
        names[self.space.gateway] = " ".join(gateway.HOSTS)
        (self.space.folder / "hosts").write_text("".join(f"{ip} {name}\n" for ip, name in names.items()))

    @property
    def certificate(self) -> Path:
        """What to trust at the gateway."""
        return self.logs / gateway.FILE

    def address(self) -> str:
        """A new machine's."""
        return f"{self.space.prefix}.{next(self._numbers)}"

    def start(self, address: str, seed: Seed, identity: Identity, ended: Callable[[], None]) -> Machine:
        """Boots a machine that the metadata service knows as ``identity``."""
        self.identities[address] = identity
        seed = replace(seed, files={**seed.files, gateway.TRUSTED: self._trusted})
        number = next(self._started)
        name, log = f"m{number}", self.logs / f"{number}-{address}.log"
        machine = self.machines[address] = Machine(self.space, self.root, name, address, seed, log, ended)
        return machine

    def stop(self, address: str) -> None:
        """Tells a machine to shut down, as a cloud that deletes it, and does not wait for it."""
        threading.Thread(target=self.machines[address].stop).start()

    def on(self) -> list[Machine]:
        """The machines that have not been switched off."""
        return [machine for machine in self.machines.values() if not machine.off.is_set()]

    def close(self) -> None:
        """Switches everything off and removes it."""
        for server in self._servers:
            server.close()
        self.space.close()
