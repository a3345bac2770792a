"""Starts what a machine of a fake would run, as a process of this computer: all machines share its address."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dask_cloudvm.userdata import FOLDER


def start(home: Path, written: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Writes the machine's files to ``home`` and runs its command, or the one that docker would run in the image."""
    home.mkdir()
    for name, text in written.items():
        (home / name).write_text(text)
    run = json.loads(written["run.json"])
    argv = run["argv"]
    if argv[0] == "docker":
        argv = argv[argv.index(run["first"][-1]) + 1 :]  # what follows the image
    command = [sys.executable if part == "python" else part for part in argv]
    variables = dict(line.split("=", 1) for line in written.get("env", "").splitlines())
    env = {**os.environ, **variables, **run["env"]}
    env["PATH"] = f"{run.get('path', '')}:{env['PATH']}"
    with open(home / "console", "wb") as log:
        return subprocess.Popen(command, cwd=home, env=env, stdout=log, stderr=log, start_new_session=True)


class Boot(ABC):
    """Lets a fake whose machines have names start and end processes as its machines start and end."""

    def __init__(self, folder: Path, fake: Any) -> None:
        self.folder, self.running = folder, dict[str, subprocess.Popen[bytes]]()
        fake.address, fake.on_run, fake.on_end = "127.0.0.1", self.run, self.end

    @abstractmethod
    def files(self, body: Any, name: str) -> dict[str, str]:
        """The files of the machine of this name, by name, without their folders."""

    def run(self, body: Any, name: str) -> None:
        home = self.folder / name
        written = {file: text.replace(FOLDER, str(home)) for file, text in self.files(body, name).items()}
        self.running[name] = start(home, written)

    def end(self, name: str) -> None:
        if process := self.running.pop(name, None):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
