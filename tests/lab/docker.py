"""A real Docker daemon in the lab: the distribution's own programs, and an image made of the machines' root."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tests.lab.root import CACHE, PYTHON, Unavailable
from tests.lab.space import CGROUP, FOLDER, Space

PROGRAMS = CACHE / "docker"  # unpacked, not installed: nothing of it runs on this computer but in the lab
PACKAGES = ("docker.io", "containerd", "runc")
IMAGE = "lab:1"
SOCKET = f"unix://{FOLDER}/docker.sock"


def fetch() -> None:
    """Gets Debian's or Ubuntu's own packages where they are missing. Raises Unavailable."""
    if PROGRAMS.is_dir():
        return
    unfinished = CACHE / "docker-unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        subprocess.run(["apt-get", "download", "-q", *PACKAGES], cwd=unfinished, check=True, capture_output=True)
        for package in unfinished.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, unfinished], check=True)
            package.unlink()
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"Docker's packages could not be had: {error}") from None
    os.rename(unfinished, PROGRAMS)


class Docker:
    """The daemon, with the image loaded. It ends with its space. Raises Unavailable."""

    def __init__(self, space: Space, root: Path, log: Path) -> None:
        if not PROGRAMS.is_dir():
            raise Unavailable("Docker's packages are not there; run 'make lab'")
        self.space, self.log = space, log
        self.environment = ["env", f"PATH={PROGRAMS}/usr/bin:{PROGRAMS}/usr/sbin:{os.environ['PATH']}"]
        self.environment.append(f"DOCKER_HOST={SOCKET}")
        own = f"--data-root={FOLDER}/docker --exec-root={FOLDER}/run --pidfile={FOLDER}/docker.pid --host={SOCKET}"
        plain = "--iptables=false --ip6tables=false --bridge=none --storage-driver=vfs"
        group = f"--cgroup-parent=/{CGROUP}{os.getpid()}/docker"
        with open(log, "wb") as file:
            command = self.enter("dockerd", *own.split(), *plain.split(), group)
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
        self._wait()
        path = f"ENV PATH={PYTHON}/bin:/usr/bin:/bin"
        archive = f"tar -C {root} -c opt usr bin sbin lib lib64 | docker import --change '{path}' - {IMAGE}"
        self.run("sh", "-c", archive)

    def _wait(self) -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with suppress(subprocess.CalledProcessError):
                self.run("docker", "version")
                return
            time.sleep(0.2)
        raise Unavailable(f"no Docker daemon starts here: {self.log.read_text(errors='replace')[-500:]}")

    def enter(self, *command: str) -> list[str]:
        """The command line that runs ``command`` where the daemon is."""
        return self.space.enter(*self.environment, *command)

    def run(self, *command: str) -> str:
        return subprocess.run(self.enter(*command), check=True, capture_output=True, text=True).stdout
