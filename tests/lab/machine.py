"""One machine of the lab: the shared root below a layer of its own, booted by systemd-nspawn."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tests.lab.root import FIRMWARE
from tests.lab.space import FOLDER, Space

NETWORK = """\
auto lo host0
iface lo inet loopback
iface host0 inet static
 address %s/24
 gateway %s
"""
CONFIGURATION = """\
network: {config: disabled}
locale: false
no_ssh_fingerprints: true
"""
REBOOTED = 133  # what systemd-nspawn exits with for its service to start it again
ORDERLY = 20.0  # seconds for a machine to stop when it is told to


@dataclass(frozen=True)
class Seed:
    """What a cloud puts into a machine before it boots.

    ``firmware`` is what the firmware says of the machine, ``files`` are those on a disk that the cloud attaches, and
    ``configuration`` is cloud-init's in the cloud's images.
    """

    configuration: str
    firmware: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


class Machine:
    """A machine that boots. ``ended`` is called once, when it is off for whatever reason."""

    def __init__(
        self, space: Space, root: Path, name: str, address: str, seed: Seed, log: Path, ended: Callable[[], None]
    ) -> None:
        self.space, self.name, self.address, self.log = space, name, address, log
        self._ended, self.running, self.off = ended, threading.Event(), threading.Event()
        (space.folder / name).mkdir()
        for folder in ("upper", "work", "root"):
            (space.folder / name / folder).mkdir(mode=0o755)
        self._write(seed)
        layers = f"lowerdir={root},upperdir={FOLDER}/{name}/upper,workdir={FOLDER}/{name}/work"
        space.run("mount", "-t", "overlay", "-o", layers, "lab", f"{FOLDER}/{name}/root")
        threading.Thread(target=self._live, daemon=True).start()

    def _write(self, seed: Seed) -> None:
        lease = f'interface "host0"; fixed-address {self.address}; option subnet-mask 255.255.255.0'
        files = {
            f"{FIRMWARE}/lease": f"lease {{ {lease}; option routers {self.space.gateway}; }}\n".encode(),
            "/etc/network/interfaces": (NETWORK % (self.address, self.space.gateway)).encode(),
            "/etc/resolv.conf": b"nameserver 127.0.0.1\n",  # nobody: names that are known are in /etc/hosts
            "/etc/cloud/cloud.cfg.d/99-lab.cfg": (CONFIGURATION + seed.configuration).encode(),
            **{f"{FIRMWARE}/{key}": value.encode() for key, value in seed.firmware.items()},
            **seed.files,
        }
        for path, data in files.items():
            file = self.space.folder / self.name / "upper" / path[1:]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)

    def _live(self) -> None:
        """From the first process to the last."""
        with self.space.cgroup(self.name) as groups:
            enter = "".join(f"echo 0 >{group}/cgroup.procs\n" for group in groups)
            command = ["sh", "-ec", f'{enter} exec "$@"', "sh", *self._nspawn()]
            with open(self.log, "wb") as log:
                while self._boot(command, log) == REBOOTED:
                    _kill_all(groups)
            _kill_all(groups)
        with suppress(RuntimeError):  # where the whole lab is gone
            self.space.run("umount", f"{FOLDER}/{self.name}/root")
            self.space.run("rm", "-rf", f"{FOLDER}/{self.name}")
        self.off.set()
        self._ended()

    def _boot(self, command: list[str], log: BinaryIO) -> int:
        """From switching on to a reboot or off."""
        self._process = subprocess.Popen(
            self.space.enter(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        self.running.set()
        return self._process.wait()

    def _nspawn(self) -> list[str]:
        plain = "--quiet --boot --settings=no --register=no --keep-unit --console=read-only --link-journal=no"
        return [
            "systemd-nspawn", *plain.split(), "--resolv-conf=off", "--timezone=off", "--network-bridge=br0",
            f"--machine={self.name}", f"--directory={FOLDER}/{self.name}/root", f"--bind-ro={FOLDER}/hosts:/etc/hosts",
        ]  # fmt: skip

    def stop(self) -> None:
        """Tells the machine to shut down, as a cloud does, and switches it off where it does not."""
        self._signal(signal.SIGTERM)
        if not self.off.wait(ORDERLY):
            self.kill()

    def kill(self) -> None:
        """As if its power failed."""
        self._signal(signal.SIGKILL)
        self.off.wait(ORDERLY)

    def _signal(self, number: int) -> None:
        with suppress(OSError, IndexError):  # where it has just ended
            os.kill(self._nspawn_process(), number)

    def _nspawn_process(self) -> int:
        self.running.wait(ORDERLY)
        return _children(self._process.pid)[0]

    @property
    def init(self) -> int:
        """The number that the machine's first process has here."""
        end = time.monotonic() + ORDERLY
        while time.monotonic() < end:
            with suppress(OSError, IndexError):
                for child in _children(self._nspawn_process()):
                    if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                        return child
            time.sleep(0.05)
        raise RuntimeError(f"machine {self.name} is not up")

    def run(self, *command: str, check: bool = True) -> str:
        """Runs a command on the machine as root and returns what it prints."""
        inside = ["nsenter", f"--target={self.init}", "--all", "--root", "--wdns=/", "--", *command]
        done = subprocess.run(inside, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    @property
    def console(self) -> str:
        """What it has written to its console so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _kill_all(groups: list[Path]) -> None:
    """Ends what a machine leaves behind: all of it, where it was systemd-nspawn that was killed."""
    end = time.monotonic() + ORDERLY
    while time.monotonic() < end:
        folders = [Path(inner) for group in groups for inner, _, _ in os.walk(group)]  # some may vanish meanwhile
        pids = {int(pid) for folder in folders for pid in _numbers(folder / "cgroup.procs")}
        if not pids:
            return
        for pid in pids - {0}:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _numbers(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
