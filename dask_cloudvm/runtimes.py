"""The ways to get Dask on a machine: what is installed there and the command that then runs. Pure.

Each is a function in ``RUNTIMES``, by the name that the option ``runtime`` has for it. It gives the machine's files and
what the launcher reads from ``run.json``: ``first``, a command to run before, tried three times, and ``needed``, what
to say where nothing can go on without it; ``argv``; ``env``, which holds what must not be in an argument; ``path``,
folders of programs to look in first; ``hint``, what to change where a command is missing.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from dask_cloudvm import bootstrap, registry

FOLDER = "/etc/dask-cloudvm"
CONTAINER = "dask-cloudvm"
UV = "/opt/dask-cloudvm-uv"  # where uv is installed on a machine that has none
PYTHON = "python"  # the interpreter that has Dask, whichever that is

LINE = re.compile(r"[^\r\n]{,8000}")  # what Docker's env file can hold: one line, of less than 64 KiB with the name

Files = dict[str, str]
Command = dict[str, Any]

# The launcher: takes command and environment from JSON, which needs no quoting, and becomes the command. A command to
# run before is ended by timeout(1), for that ends what the command has started, too.
RUN = f"""\
import json, os, shutil, socket, subprocess, sys, time
with open("{FOLDER}/run.json") as file:
    run = json.load(file)
env = {{**os.environ, **run["env"]}}
env["PATH"] = ":".join(filter(None, [run.get("path"), env.get("PATH", os.defpath)]))
for pause in 5, 10, 0:
    if not run["first"] or subprocess.run(["timeout", "-k9", "1800", *run["first"]], env=env).returncode == 0:
        break
    time.sleep(pause)
else:
    if run.get("needed"):
        sys.exit(run["needed"])
start = time.time()
while run.get("scheduler") and time.time() - start < run["patience"]:
    try:
        socket.create_connection(run["scheduler"], 5).close()
        break
    except OSError:
        time.sleep(1)
command = shutil.which(run["argv"][0], path=env["PATH"]) or sys.exit(run["argv"][0] + " is missing; " + run["hint"])
os.execve(command, run["argv"], env)
"""


def _docker(launch: bootstrap.Launch, options: Mapping[str, Any], gpu: bool) -> tuple[Files, Command]:
    """``docker run``: variables come from a file, and from the launcher's own where the file cannot hold the value."""
    image = options["docker_image"]
    inherited = {key: value for key, value in launch.env.items() if LINE.fullmatch(value) is None}
    argv = ["docker", "run", "--rm", "--name", CONTAINER, "--network", "host", "--user", "0:0", "--log-driver", "none"]
    argv += ["--ulimit", "nofile=524288:524288"]  # as the unit has; of several, Docker takes the last
    argv += ["--volume", f"{FOLDER}:{FOLDER}:ro", *(["--gpus", "all"] if gpu else [])]
    argv += ["--env-file", f"{FOLDER}/env", *(part for name in inherited for part in ("--env", name))]
    argv += [*shlex.split(options["docker_args"]), image, *launch.argv]
    files = {"env": "".join(f"{key}={value}\n" for key, value in launch.env.items() if key not in inherited)}
    if options["bootstrap"]:
        files["install"] = _APT + _INSTALL_DOCKER + (_INSTALL_DRIVER + _INSTALL_TOOLKIT if gpu else "")
    if how := registry.login(image):
        files["login"] = bootstrap.travelling(registry, "main", how.__name__)
    hint = "set the option bootstrap, or install it by extra_bootstrap"
    return files, {"first": ["docker", "pull", "--quiet", image], "argv": argv, "env": inherited, "hint": hint}


def _image(launch: bootstrap.Launch, options: Mapping[str, Any], gpu: bool) -> tuple[Files, Command]:
    """The Python environment that the machine's image has: nothing is installed but a missing GPU driver."""
    programs = f"{options['environment']}/bin"
    argv = [f"{programs}/{PYTHON}" if part == PYTHON else part for part in launch.argv]
    files = {"install": _APT + _INSTALL_DRIVER} if gpu and options["bootstrap"] else {}
    hint = "set the option environment to where the machine's image has Python and Dask"
    return files, {"first": [], "argv": argv, "env": dict(launch.env), "path": programs, "hint": hint}


def _uv(launch: bootstrap.Launch, options: Mapping[str, Any], gpu: bool) -> tuple[Files, Command]:
    """A Python environment made on the machine from ``packages``; see environment.py for what is in them.

    It is made with the variables of ``env_vars``, so that those of uv and pip tell of private indexes.
    """
    files, command = _image(launch, options, gpu)
    files["requirements.txt"] = "".join(f"{line}\n" for line in options["packages"] or ())
    install = (_APT + _INSTALL_UV) if options["bootstrap"] else ""
    exact = " --no-deps" if options["sync"] else ""
    made = {"folder": options["environment"], "python": options["python"], "files": FOLDER, "exact": exact}
    files["build"] = install + _BUILD.format(**made)
    hint = "change packages, requirements, python, or env_vars such as UV_INDEX_URL"
    return files, {
        **command,
        "first": ["/bin/bash", "-e", f"{FOLDER}/build"],
        "needed": f"The Python environment could not be made, see above; {hint}",
        "path": f"{command['path']}:{UV}/bin",
        "hint": hint,
    }


Runtime = Callable[[bootstrap.Launch, Mapping[str, Any], bool], tuple[Files, Command]]
RUNTIMES: dict[str, Runtime] = {"docker": _docker, "uv": _uv, "image": _image}


_APT = """\
export DEBIAN_FRONTEND=noninteractive
get() {  # again and again, for other programs of a machine that just boots hold apt's locks
  for pause in 5 10 20 40 0; do
    apt-get -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 "$@" && return
    sleep $pause
  done
  return 1
}
"""
# Debian 13 has the command in a package of its own. An update of any of the others would end the container.
_INSTALL_DOCKER = """\
if ! command -v docker; then
  get update
  get install -y --no-install-recommends docker.io ca-certificates
  command -v docker || get install -y --no-install-recommends docker-cli
fi
for package in docker.io containerd runc; do
  apt-mark hold $package || true
done
"""
# From the same index as the packages, which may be the only one that a machine reaches.
_INSTALL_UV = f"""\
if grep -q 'git+' {FOLDER}/requirements.txt && ! command -v git; then
  get update
  get install -y --no-install-recommends git ca-certificates
fi
if ! command -v uv; then
  python3 -c 'import ensurepip' || {{ get update; get install -y --no-install-recommends python3-venv; }}
  python3 -m venv {UV}
  index=${{UV_DEFAULT_INDEX:-$UV_INDEX_URL}}
  if [ "$index" ]; then export PIP_INDEX_URL=${{PIP_INDEX_URL:-$index}}; fi
  {UV}/bin/pip install --quiet --disable-pip-version-check uv
fi
"""
_BUILD = """\
if ! [ -x {folder}/bin/python ]; then
  uv venv --quiet --python {python} {folder}
fi
uv pip install --quiet --python {folder}/bin/python --requirements {files}/requirements.txt{exact}
"""
# https://documentation.ubuntu.com/server/how-to/graphics/install-nvidia-drivers/
_INSTALL_DRIVER = """\
if ! test -e /proc/driver/nvidia/version; then
  get update
  get install -y --no-install-recommends ubuntu-drivers-common
  ubuntu-drivers install --gpgpu
  modprobe nvidia
  modprobe nvidia-uvm
fi
"""
# https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html
_INSTALL_TOOLKIT = """\
if ! command -v nvidia-ctk; then
  get install -y --no-install-recommends curl ca-certificates
  from=https://nvidia.github.io/libnvidia-container
  key=/etc/apt/keyrings/nvidia-container-toolkit.asc
  mkdir -p /etc/apt/keyrings
  curl -fsSL --retry 5 -o $key $from/gpgkey
  echo "deb [signed-by=$key] $from/stable/deb/$(dpkg --print-architecture) /" \\
    > /etc/apt/sources.list.d/nvidia-container-toolkit.list
  get update
  get install -y --no-install-recommends nvidia-container-toolkit
fi
nvidia-ctk runtime configure --runtime=docker
systemctl restart docker
"""
