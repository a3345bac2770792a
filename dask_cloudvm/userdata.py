"""A machine's user-data: a cloud-config that installs what is missing and runs one systemd unit. Pure.

The text is the same for every machine of a request: it is a jinja template that takes the machine's name from the
cloud's instance metadata. What the user gave travels as JSON that the machine's launcher reads, never in a shell line.
When the unit ends, well or badly, the machine goes: so does one whose set-up failed, and one that is rebooted.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dask_cloudvm import bootstrap, runtimes
from dask_cloudvm.errors import CloudError

FOLDER, PYTHON = runtimes.FOLDER, runtimes.PYTHON
UNIT = "dask-cloudvm.service"
# cloud-init's own folder of an instance stays over a reboot; a machine made of a disk's snapshot has another.
ONCE = "/var/lib/cloud/instance/dask-cloudvm"
# Ubuntu restarts services whose libraries were updated; where the unit ends, the machine does.
NEEDRESTART = "$nrconf{override_rc}{qr(^dask-cloudvm)} = 0;\n"
DOCKER = "/etc/systemd/system/docker.service.d/proxies.conf"  # it is dockerd that pulls images
PROXY = re.compile("(all|ftp|http|https|no)_proxy", re.IGNORECASE)
ENVIRONMENT = f"EnvironmentFile={FOLDER}/proxies"
BOOT = 600.0  # seconds by which the scheduler's machine may be slower than a worker's


@dataclass(frozen=True)
class Setting:
    """What the machine is, as far as its set-up depends on it.

    ``name`` is jinja: statements that set ``name`` from the cloud's metadata. ``gone`` is a shell script that removes
    the machine on clouds where switching it off is not enough. ``notice`` is the cloud whose notice a spot machine
    watches; empty for other machines.
    """

    name: str
    gpu: bool = False
    gone: str = ""
    notice: str = ""


def render(launch: bootstrap.Launch, options: Mapping[str, Any], setting: Setting) -> str:
    """The cloud-config of every machine that runs ``launch``; :func:`pack` makes it what the cloud gets."""
    if setting.notice:
        launch = bootstrap.watching(launch, setting.notice)
    files, command = runtimes.RUNTIMES[options["runtime"]](launch, options, setting.gpu)
    if options["extra_bootstrap"]:
        files["extra"] = "".join(f"{line}\n" for line in options["extra_bootstrap"])
    if setting.gone and options["auto_shutdown"]:
        files["gone"] = setting.gone
    if proxies := _proxies(launch):
        files["proxies"] = proxies
    if scheduler := _scheduler(launch):
        command |= {"scheduler": scheduler, "patience": _patience(options)}
    files |= {**launch.files, "run": runtimes.RUN, "run.json": json.dumps(command)}
    config = {
        "write_files": [
            *(_file(f"{FOLDER}/{name}", text) for name, text in files.items()),
            {"path": f"/etc/systemd/system/{UNIT}", "permissions": "0644", "content": _unit(files, options)},
            *([_file(DOCKER, f"[Service]\n{ENVIRONMENT}\n")] if proxies and options["runtime"] == "docker" else []),
            _file("/etc/needrestart/conf.d/dask-cloudvm.conf", NEEDRESTART),
        ],
        "runcmd": _commands(options),
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
            hint="shorten env_vars, extra_bootstrap, worker_options or packages, or put the data into the image",
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


def _proxies(launch: bootstrap.Launch) -> str:
    """The proxies that the user gives Dask, in systemd's form, for what is done before Dask is there.

    The names are in small letters, since apt knows no others.
    """
    given = sorted(item for item in launch.env.items() if PROXY.fullmatch(item[0]))  # small letters are the last
    found = {
        key.lower(): re.sub(r'(["\\$`])', r"\\\1", value) for key, value in given if runtimes.LINE.fullmatch(value)
    }
    return "".join(f'{key}="{value}"\n' for key, value in found.items())


def _directly(proxies: str) -> str:
    """The start of a command that is to ask the metadata service: a proxy would answer for another machine."""
    names = re.findall("^([a-z_]+)=", proxies, re.MULTILINE)
    return f"/usr/bin/env {' '.join(f'-u {name}' for name in names)} " if names else ""


def _commands(options: Mapping[str, Any]) -> list[list[str]]:
    """What cloud-init runs once. The unit is there again after a reboot, to end the machine where it may."""
    rebooted = [["mkdir", ONCE], ["systemctl", "enable", UNIT]] if options["auto_shutdown"] else []
    return [["systemctl", "daemon-reload"], *rebooted, ["systemctl", "start", "--no-block", UNIT]]


def _unit(files: Mapping[str, str], options: Mapping[str, Any]) -> str:
    """The one unit. Everything that can fail is in it, so that a machine that cannot work does not stay."""
    steps = {"install": "/bin/bash -e", "extra": "/bin/bash -e", "login": "/usr/bin/python3"}
    goes = options["auto_shutdown"]
    end = "poweroff" if goes else "none"
    gone = f"{_directly(files.get('proxies', ''))}/bin/bash {FOLDER}/gone"
    lines = [
        "[Unit]",
        "Description=Dask",
        "Wants=network-online.target",
        "After=network-online.target",
        f"SuccessAction={end}",
        f"FailureAction={end}",
        *([f"ConditionPathExists={ONCE}", "RefuseManualStop=yes"] if goes else []),
        "",
        "[Service]",
        "Type=exec",
        "Environment=HOME=/root",
        "WorkingDirectory=/root",
        "LimitNOFILE=524288",
        *([ENVIRONMENT] if "proxies" in files else []),
        "OOMPolicy=continue",  # a nanny starts its worker again
        *([f"ExecStartPre=/bin/mkdir {ONCE}/started"] if goes else []),  # fails after a reboot
        *(f"ExecStartPre={program} {FOLDER}/{name}" for name, program in steps.items() if name in files),
        f"ExecStart=/usr/bin/python3 {FOLDER}/run",
        *([f"ExecStopPost={gone}", "TimeoutStopSec=15min"] if "gone" in files else []),
        "TimeoutStartSec=1h",
        "StandardOutput=journal+console",
        "StandardError=journal+console",
        *(["", "[Install]", "WantedBy=multi-user.target"] if goes else []),
    ]
    return "\n".join(lines) + "\n"


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
