"""Boots the machines of the fake as processes of this computer, from the very user-data of each launch.

What cloud-init, systemd and docker would do is reduced to: render the template for the machine, write its files, run
the command that docker would run in the image. All machines share the address 127.0.0.1.
"""

from __future__ import annotations

import base64
import gzip
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import jinja2
import yaml
from boot import start
from ec2_fake import Fake, Parameters

from dask_cloudvm.userdata import FOLDER


def cloud_config(parameters: Parameters, index: int) -> Any:
    """What cloud-init makes of a launch's user-data on the machine with this index: cloudinit/templater.py."""
    text = gzip.decompress(base64.b64decode(parameters["UserData"])).decode()
    header, body = text.split("\n", 1)
    assert header == "## template: jinja" and body.startswith("#cloud-config\n")
    template = jinja2.Template(body, trim_blocks=True, extensions=["jinja2.ext.do"])
    return yaml.safe_load(template.render(ds={"meta_data": {"ami_launch_index": str(index)}}))


def files(parameters: Parameters, index: int = 0) -> dict[str, str]:
    """The machine's files by name, without their folders."""
    return {f["path"].rpartition("/")[2]: f["content"] for f in cloud_config(parameters, index)["write_files"]}


class Boot:
    """Give ``boot.run`` and ``boot.end`` to a fake as ``on_run`` and ``on_end``."""

    def __init__(self, folder: Path, fake: Fake) -> None:
        self.folder, self.running = folder, dict[str, subprocess.Popen[bytes]]()
        fake.address, fake.on_run, fake.on_end = "127.0.0.1", self.run, self.end

    def run(self, parameters: Parameters, ids: list[str]) -> None:
        for index, id in enumerate(ids):
            home = self.folder / id
            written = {name: text.replace(FOLDER, str(home)) for name, text in files(parameters, index).items()}
            self.running[id] = start(home, written)

    def end(self, ids: list[str]) -> None:
        for id in ids:
            if process := self.running.pop(id, None):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
