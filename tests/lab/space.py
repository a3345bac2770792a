"""The lab's own mounts, network and processes, which the kernel takes away with the process that made them.

A holder process is the first of a PID namespace, and owns a mount and a network namespace. It ends when the pipe to
whoever started it closes, however that one ended; then the kernel kills what runs in its namespaces, and with the last
of it the mounts and the network are gone. The machines' bridge is in there, so that 169.254.169.254 is never this
computer's; one virtual cable leads to it, and goes with its other end. Only cgroups outlive a killed process: they
have its number in their name, and whoever comes next removes them.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.lab.root import TOOLS, Unavailable

NETWORKS = [f"10.203.{n}" for n in range(1, 255)]  # of which the lab takes the first that is free here
FOLDER = "/mnt"  # inside, where a memory file system of the lab's own is
METADATA = "169.254.169.254"
WIRE = "168.63.129.16"  # Azure's other one, which only cloud-init's datasource needs
CGROUP = "dask-cloudvm-lab-"
CONTROLLERS = {"name=systemd", "memory", "cpu", "pids"}
CLONE_NEWNET = 0x40000000


class Space:
    """What the machines of one lab live in. ``prefix`` is the first three numbers of their addresses."""

    def __init__(self) -> None:
        check()
        remove_stale()
        self._holder = _hold()
        try:
            self.pid = _child(self._holder.pid)
            self.run("mount", "-t", "tmpfs", "-o", "mode=0755", "lab", FOLDER)
            self.prefix = self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> str:
        """The bridge inside, its addresses, and the cable from here to it."""
        name, prefix = _cable(), _free_network()
        _ip(f"link add {name} type veth peer name cable netns {self.pid}")
        for line in (
            "link add br0 type bridge",
            "link set br0 type bridge forward_delay 0",
            f"address add {prefix}.1/24 dev br0",
            f"address add {METADATA}/32 dev br0",
            f"address add {WIRE}/32 dev br0",
            "link set br0 up",
            "link set lo up",
            "link set cable master br0 up",
        ):
            self.run("ip", *line.split())
        _ip(f"address add {prefix}.254/24 dev {name}")
        _ip(f"link set {name} up")
        return prefix

    @property
    def folder(self) -> Path:
        """The lab's file system inside, seen from here."""
        return Path(f"/proc/{self.pid}/root{FOLDER}")

    @property
    def gateway(self) -> str:
        """The bridge's address, by which machines reach what :meth:`listen` listens on, and nothing else."""
        return f"{self.prefix}.1"

    def enter(self, *command: str) -> list[str]:
        """The command line that runs ``command`` inside."""
        return ["nsenter", f"--target={self.pid}", "--mount", "--net", "--pid", "--", *command]

    def run(self, *command: str) -> str:
        """Runs a command inside and returns what it prints. Raises RuntimeError."""
        return _run(*self.enter(*command))

    def listen(self, host: str, port: int) -> socket.socket:
        """A listening socket in the machines' network that this process serves."""
        made: list[socket.socket] = []

        def make() -> None:  # in a thread of its own, for a thread's network is what changes
            with open(f"/proc/{self.pid}/ns/net") as network:
                if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.create_server((host, port)))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]

    @contextmanager
    def cgroup(self, name: str) -> Iterator[list[Path]]:
        """A control group in each hierarchy, gone afterwards; every process in it is to have ended by then."""
        made = [top / f"{CGROUP}{os.getpid()}" / name for top in _hierarchies()]
        try:
            for folder in made:
                folder.mkdir(parents=True)
            yield made
        finally:
            for folder in made:
                _remove_cgroup(folder)

    def close(self) -> None:
        """Ends every process inside, and removes all of it."""
        assert self._holder.stdin
        self._holder.stdin.close()
        self._holder.wait()
        with suppress(RuntimeError):  # the kernel removes it too, but in its own time
            _ip(f"link delete {_cable()}")
        for folder in _cgroups(f"{CGROUP}{os.getpid()}"):
            _remove_cgroup(folder)


def check() -> None:
    """Raises Unavailable where machines cannot be started here, saying why."""
    if os.uname().sysname != "Linux" or os.geteuid() != 0:
        raise Unavailable("the lab starts machines by systemd-nspawn, which needs Linux and root")
    if missing := [tool for tool in (*TOOLS, "unshare", "mount") if not shutil.which(tool)]:
        raise Unavailable(f"the lab needs {', '.join(missing)}, which 'make lab' installs")
    trial = "mount -t tmpfs lab /mnt && cd /mnt && mkdir a b c d && mount -t overlay -o lowerdir=a,upperdir=b,workdir=c"
    trial += " lab d && ip link add br0 type bridge && ip link add one type veth peer name two"
    try:
        _run("unshare", "--mount", "--net", "--pid", "--fork", "sh", "-c", trial)
        for top in _hierarchies():
            (top / f"{CGROUP}{os.getpid()}").mkdir()
            (top / f"{CGROUP}{os.getpid()}").rmdir()
    except (OSError, RuntimeError) as error:
        raise Unavailable(f"this computer does not let the lab have mounts, networks and cgroups: {error}") from None


def _hold() -> subprocess.Popen[bytes]:
    own = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return subprocess.Popen([*own, "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


def _child(pid: int) -> int:
    """The one child of a process, when it has replaced itself by its program."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with suppress(OSError, ValueError):
            child = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
            if Path(f"/proc/{child}/comm").read_text().strip() == "cat":
                return child
        time.sleep(0.01)
    raise RuntimeError("the lab's namespaces were not made")


def _cable() -> str:
    """The name of this end of the cable."""
    return f"lab{os.getpid()}"


def _free_network() -> str:
    """The first of NETWORKS that no route or address of this computer overlaps."""
    routes = json.loads(_ip("-json -4 route show table all"))
    taken = {str(route["dst"]).rpartition(".")[0] for route in routes}
    return next(prefix for prefix in NETWORKS if prefix not in taken)


def _ip(command: str) -> str:
    return _run("ip", *command.split())


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _hierarchies() -> list[Path]:
    """Where the control groups are mounted that systemd uses in a machine."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    found = [Path(m[1]) for m in mounts if m[2] == "cgroup2" or (m[2] == "cgroup" and CONTROLLERS & {*m[3].split(",")})]
    return [path for path in found if path.is_relative_to("/sys/fs/cgroup")]


def _remove_cgroup(folder: Path) -> None:
    for inner, _, _ in os.walk(folder, topdown=False):
        for _ in range(100):
            try:
                os.rmdir(inner)
                break
            except FileNotFoundError:
                break
            except OSError:  # a process in it has just been killed
                time.sleep(0.05)


def remove_stale() -> None:
    """Removes the control groups of labs that were killed."""
    for folder in _cgroups(f"{CGROUP}*"):
        if not os.path.exists(f"/proc/{folder.name.removeprefix(CGROUP)}"):
            _remove_cgroup(folder)


def _cgroups(pattern: str) -> list[Path]:
    """Those of labs in every hierarchy: Docker makes them in more than systemd does."""
    top = Path("/sys/fs/cgroup")
    return [*top.glob(pattern), *top.glob(f"*/{pattern}")]
