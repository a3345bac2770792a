"""Starts what a machine of a fake would run, as a process of this computer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


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
