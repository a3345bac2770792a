"""Boots the machines of the fake as processes of this computer, from the very custom data of each machine.

All machines share the address 127.0.0.1.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import jinja2
import yaml
from azure_fake import Fake, user_data
from boot import start

from dask_cloudvm.userdata import FOLDER


def cloud_config(body: Any) -> Any:
    """What cloud-init makes of a machine's custom data: cloudinit/templater.py."""
    header, text = user_data(body).split("\n", 1)
    assert header == "## template: jinja" and text.startswith("#cloud-config\n")
    template = jinja2.Template(text, trim_blocks=True, extensions=["jinja2.ext.do"])
    hostname = body["properties"]["osProfile"]["computerName"]
    return yaml.safe_load(template.render(v1={"local_hostname": hostname}))


def files(body: Any) -> dict[str, str]:
    """The machine's files by name, without their folders."""
    return {f["path"].rpartition("/")[2]: f["content"] for f in cloud_config(body)["write_files"]}


class Boot:
    """Lets a fake start and end processes as its machines start and end."""

    def __init__(self, folder: Path, fake: Fake) -> None:
        self.folder, self.running = folder, dict[str, subprocess.Popen[bytes]]()
        fake.address, fake.on_run, fake.on_end = "127.0.0.1", self.run, self.end

    def run(self, body: Any, name: str) -> None:
        home = self.folder / name
        written = {file: text.replace(FOLDER, str(home)) for file, text in files(body).items()}
        self.running[name] = start(home, written)

    def end(self, name: str) -> None:
        if process := self.running.pop(name, None):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
