"""A machine's user-data: a cloud-config that installs what is missing and runs one systemd unit. Pure.

The text is the same for every machine of a request: it is a jinja template that takes the machine's name from the
cloud's instance metadata. What the user gave travels as JSON that the machine's launcher reads, never in a shell line.
When the unit ends, well or badly, the machine goes: so does one whose set-up failed.
"""

from __future__ import annotations

import gzip
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dask_cloudvm import bootstrap
from dask_cloudvm.errors import CloudError

FOLDER = "/etc/dask-cloudvm"
UNIT = "dask-cloudvm.service"
CONTAINER = "dask-cloudvm"
BOOT = 600.0  # seconds by which the scheduler's machine may be slower than a worker's
PYTHON = "python"  # the interpreter inside the image

Files = dict[str, str]


@dataclass(frozen=True)
class Setting:
    """What the machine is, as far as its set-up depends on it.

    ``name`` is jinja: statements that set ``name`` from the cloud's metadata. ``gone`` is a shell script that removes
    the machine on clouds where switching it off is not enough.
    """

    name: str
    gpu: bool = False
    gone: str = ""


def render(launch: bootstrap.Launch, options: Mapping[str, Any], setting: Setting) -> str:
    """The cloud-config of every machine that runs ``launch``; :func:`pack` makes it what the cloud gets."""
    files, command = RUNTIMES["docker"](launch, options, setting)
    if options["extra_bootstrap"]:
        files["extra"] = "".join(f"{line}\n" for line in options["extra_bootstrap"])
    if setting.gone and options["auto_shutdown"]:
        files["gone"] = setting.gone
    if scheduler := _scheduler(launch):
        command |= {"scheduler": scheduler, "patience": _patience(options)}
    files |= {**launch.files, "run": _RUN, "run.json": json.dumps(command)}
    config = {
        "write_files": [
            *(_file(f"{FOLDER}/{name}", text) for name, text in files.items()),
            {"path": f"/etc/systemd/system/{UNIT}", "permissions": "0644", "content": _unit(files, options)},
        ],
        "runcmd": [["systemctl", "daemon-reload"], ["systemctl", "start", "--no-block", UNIT]],
    }
    text = yaml.dump(config, Dumper=Dumper, sort_keys=False, width=float("inf"))
    text = _literally(text).replace(bootstrap.NAME, "{{ name }}").replace(bootstrap.DIR, FOLDER)
    return f"## template: jinja\n#cloud-config\n{setting.name}\n{text}"


def pack(text: str) -> bytes:
    """The bytes of a cloud-config as a cloud gets them, the same for the same text."""
    return gzip.compress(text.encode(), mtime=0)


def check_size(text: str, limit: int) -> None:
    """Raises CloudError where a machine's user-data is more than its cloud takes."""
    size = len(pack(text))
    if size > limit:
        raise CloudError(
            doing="set up the machines",
            what=f"their user-data has {size:,} bytes when compressed, {limit:,} are allowed",
            hint="shorten env_vars, extra_bootstrap or worker_options, or put the data into docker_image",
        )


def _scheduler(launch: bootstrap.Launch) -> list[Any] | None:
    """Host and port that a worker waits for: its nanny tries for half a minute only, and machines start unevenly."""
    for part in launch.argv:
        if address := re.fullmatch(r"[a-z]+://\[?([^]]+?)\]?:([0-9]+)", part):
            return [address[1], int(address[2])]
    return None


def _patience(options: Mapping[str, Any]) -> float:
    from dask.utils import parse_timedelta

    return float(parse_timedelta(options["death_timeout"] or "365 days")) + BOOT


class Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, so that a plan can be read."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


Dumper.add_representer(str, _text)


def _file(path: str, content: str) -> dict[str, str]:
    return {"path": path, "permissions": "0600", "content": content}


def _literally(text: str) -> str:
    """``text`` with whatever jinja would take for its own written so that it comes out as it is."""
    return re.sub(r"\{(?=[{%#])", '{{ "{" }}', text)


def _unit(files: Mapping[str, str], options: Mapping[str, Any]) -> str:
    """The one unit. Everything that can fail is in it, so that a machine that cannot work does not stay."""
    before = [name for name in ("install", "extra") if name in files]
    end = "poweroff" if options["auto_shutdown"] else "none"
    lines = [
        "[Unit]",
        "Description=Dask",
        "Wants=network-online.target",
        "After=network-online.target",
        f"SuccessAction={end}",
        f"FailureAction={end}",
        "",
        "[Service]",
        "Type=exec",
        "Environment=HOME=/root",
        f"WorkingDirectory={FOLDER}",
        *(f"ExecStartPre=/bin/bash -e {FOLDER}/{name}" for name in before),
        f"ExecStart=/usr/bin/python3 {FOLDER}/run",
        *([f"ExecStopPost=/bin/bash {FOLDER}/gone"] if "gone" in files else []),
        "TimeoutStartSec=1h",
        "StandardOutput=journal+console",
        "StandardError=journal+console",
    ]
    return "\n".join(lines) + "\n"


# The launcher: takes command and environment from JSON, which needs no quoting, and becomes the command.
_RUN = f"""\
import json, os, shutil, socket, subprocess, sys, time
with open("{FOLDER}/run.json") as file:
    run = json.load(file)
for attempt in range(3):
    if not run["first"] or subprocess.run(run["first"]).returncode == 0:
        break
    time.sleep(5 * (attempt + 1))
start = time.time()
while run.get("scheduler") and time.time() - start < run["patience"]:
    try:
        socket.create_connection(run["scheduler"], 5).close()
        break
    except OSError:
        time.sleep(1)
command = shutil.which(run["argv"][0]) or sys.exit(run["argv"][0] + " is not installed; set the option bootstrap")
os.execve(command, run["argv"], {{**os.environ, **run["env"]}})
"""


def _docker(launch: bootstrap.Launch, options: Mapping[str, Any], setting: Setting) -> tuple[Files, dict[str, Any]]:
    """``docker run``: variables come from a file, and from the launcher's own where the file cannot hold the value."""
    image = options["docker_image"]
    inherited = {key: value for key, value in launch.env.items() if "\n" in value or "\r" in value}
    argv = ["docker", "run", "--rm", "--name", CONTAINER, "--network", "host", "--user", "0:0", "--log-driver", "none"]
    argv += ["--volume", f"{FOLDER}:{FOLDER}:ro", *(["--gpus", "all"] if setting.gpu else [])]
    argv += ["--env-file", f"{FOLDER}/env", *(part for name in inherited for part in ("--env", name))]
    argv += [*shlex.split(options["docker_args"]), image, *launch.argv]
    files = {"env": "".join(f"{key}={value}\n" for key, value in launch.env.items() if key not in inherited)}
    if options["bootstrap"]:
        files["install"] = _install(setting.gpu)
    return files, {"first": ["docker", "pull", "--quiet", image], "argv": argv, "env": inherited}


Runtime = Callable[[bootstrap.Launch, Mapping[str, Any], Setting], tuple[Files, dict[str, Any]]]
RUNTIMES: dict[str, Runtime] = {"docker": _docker}


def _install(gpu: bool) -> str:
    return _APT + _INSTALL_DOCKER + (_INSTALL_DRIVER + _INSTALL_TOOLKIT if gpu else "")


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
_INSTALL_DOCKER = """\
if ! command -v docker; then
  get update
  get install -y --no-install-recommends docker.io ca-certificates
fi
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


def numbered(prefix: str, runs: Sequence[tuple[int, str, int]], index: str) -> str:
    """Jinja that sets ``name`` for a machine whose metadata has only its number among those of its request.

    ``runs`` are (index of the first machine, token, its number) in ascending order; ``index`` is a jinja expression.
    """
    if not runs:
        return f"{{% set name = {json.dumps(prefix)} %}}"
    return "\n".join(
        [
            f"{{% set i, n = {index}|int, namespace(name='') %}}",
            f"{{% for start, token, first in {[list(run) for run in runs]} if i >= start %}}",
            f"{{% set n.name = {prefix + '-'!r} ~ token ~ '-' ~ (first + i - start) %}}",
            "{% endfor %}",
            "{% set name = n.name %}",
        ]
    )


_NAMING = re.compile(r"\A(## template: jinja\n#cloud-config\n)((?:\{%.*%\}\n)+)")


def renamed(text: str, naming: str) -> str:
    """A rendered cloud-config for other machines that are to run the same."""
    return _NAMING.sub(lambda match: f"{match[1]}{naming}\n", text, count=1)
