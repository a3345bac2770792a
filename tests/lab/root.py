"""The root file system that every machine of the lab starts from: built once, cached under a hash of its recipe.

``python -m tests.lab.root`` builds it where it is missing and prints its path. With ``--if-possible``, what is in the
way is said, and is no failure.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import uv

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dask-cloudvm-lab"
KEEP = 14 * 86400.0  # seconds since its last use after which a root of another recipe is removed
TOOLS = {"mmdebstrap": "mmdebstrap", "systemd-nspawn": "systemd-container", "ip": "iproute2", "nsenter": "util-linux"}
SYSTEM = (
    "systemd,systemd-sysv,dbus,udev,cloud-init,locales,python3,python3-venv,iproute2,ca-certificates,ifupdown,netbase,"
    "sudo,curl,procps,libpam-systemd"
)
# What machines of an image with Dask have, in the releases of the environment that runs the tests.
PACKAGES = ("dask", "distributed", "bokeh", "numpy")
PYTHON = "/opt/dask"
# The lab's machines have no firmware. What a cloud's would say is in a file, where cloud-init's datasources look first.
FIRMWARE = "/etc/lab-firmware"
DMI = f"""

def read_dmi_data(key):
    try:
        with open("{FIRMWARE}/" + key) as file:
            return file.read()
    except FileNotFoundError:
        return None
"""
# The lab's bridge has no DHCP either: what a machine would be told is in a file as well.
DHCLIENT = f"""\
#!/bin/sh
while [ $# -gt 0 ]; do
  case $1 in -lf) lease=$2;; -pf) pid=$2;; esac
  shift
done
cp {FIRMWARE}/lease "$lease"
sleep 1000 >/dev/null 2>&1 &
echo $! > "$pid"
"""
# Of an address that is there already, kernels since 6.3 say so in other words than cloud-init 22 knows.
EXISTS = ('"File exists" not in str(e.stderr)', '"exists" not in str(e.stderr).replace("already assigned", "exists")')


class Unavailable(Exception):
    """Why there can be no lab here, and what to do about it."""


def path() -> Path:
    """Where the root of the present recipe is, or would be."""
    return CACHE / _digest()


def find() -> Path:
    """The root of the present recipe. Raises Unavailable."""
    if not (root := path()).is_dir():
        raise Unavailable("the lab's root file system is not built; run 'make lab'")
    os.utime(root)
    return root


def build() -> Path:
    """Builds the root where it is missing, and what it needs. Raises Unavailable."""
    if os.geteuid() != 0:
        raise Unavailable("the lab starts machines by systemd-nspawn, which only root can")
    _install_tools()
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path().is_dir():
            _build(CACHE / "unfinished")
        _remove_old()
    return path()


def _install_tools() -> None:
    missing = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise Unavailable(f"there is no {', '.join(missing)} here, and no apt-get to install it by")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
    if subprocess.run(install, env=environment, stdout=sys.stderr).returncode:
        _run("apt-get", "update", "-q", env=environment)
        _run(*install, env=environment)


def _build(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    print(f"Building the lab's root file system in {CACHE}", file=sys.stderr)
    start = time.monotonic()
    _run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={SYSTEM}", _suite(), root, *_sources())
    cloud_init = root / "usr/lib/python3/dist-packages/cloudinit"
    with open(cloud_init / "dmi.py", "a") as module:
        module.write(DMI)
    network = (cloud_init / "net/ephemeral.py").read_text()
    (cloud_init / "net/ephemeral.py").write_text(network.replace(*EXISTS))
    (root / "usr/sbin/dhclient").write_text(DHCLIENT)
    _run("chroot", root, "python3", "-m", "venv", "--without-pip", PYTHON)
    [library] = (root / PYTHON[1:] / "lib").glob("python*")
    if library.name != f"python{_minor()}":
        raise Unavailable(f"the lab would have {library.name} where the tests have {_minor()}: Dask needs them equal")
    pins = [f"{name}=={version}" for name, version in _versions().items()]
    target = ["--target", library / "site-packages", "--python", sys.executable, "--link-mode", "copy"]
    _run(uv.find_uv_bin(), "pip", "install", "--quiet", *target, *pins)
    _run("chroot", root, f"{PYTHON}/bin/python", "-m", "compileall", "-q", PYTHON, env={**os.environ, "LC_ALL": "C"})
    os.rename(root, path())
    print(f"Built in {time.monotonic() - start:.0f} s", file=sys.stderr)


def _remove_old() -> None:
    for root in CACHE.iterdir():
        if root.is_dir() and root != path() and time.time() - root.stat().st_mtime > KEEP:
            shutil.rmtree(root)


def _run(*command: str | Path, env: Mapping[str, str] | None = None) -> None:
    try:
        subprocess.run(command, check=True, env=env, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"the lab's root file system could not be built: {error}") from None


def _suite() -> str:
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    if "VERSION_CODENAME" not in release:
        raise Unavailable("the lab is built by mmdebstrap from this system's own packages: it is no Debian or Ubuntu")
    return release["VERSION_CODENAME"].strip('"')


def _sources() -> list[str]:
    """The system's own sources, without any that were added; none leaves the choice to mmdebstrap."""
    known = ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list.d/ubuntu.sources")
    return [source for source in known if os.path.exists(source)]


def _minor() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _versions() -> dict[str, str]:
    """The packages and all that they need, with the releases that are installed here."""
    from packaging.requirements import Requirement

    found: dict[str, str] = {}
    todo = list(PACKAGES)
    while todo:
        if (name := todo.pop()) not in found:
            there = metadata.distribution(name)
            found[name] = there.version
            wanted = [Requirement(line) for line in there.requires or ()]
            todo += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return dict(sorted(found.items()))


def _digest() -> str:
    recipe = [inspect.getsource(_build), SYSTEM, PYTHON, DMI, DHCLIENT, EXISTS, _suite(), _minor(), _versions()]
    return hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]


def main() -> int:
    from tests.lab.docker import fetch

    try:
        print(build())
        fetch()
    except Unavailable as error:
        print(f"No lab: {error}", file=sys.stderr)
        return 0 if "--if-possible" in sys.argv else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
