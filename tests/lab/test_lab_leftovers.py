"""Nothing of a lab is left, however the process that had it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.root import CACHE
from tests.lab.space import CGROUP, remove_stale

BOOT = """
import sys, tempfile, time
from pathlib import Path
from tests.lab.lab import Lab
from tests.lab.machine import Seed
from tests.lab.metadata import EC2

lab = Lab(Path(tempfile.mkdtemp()))
address = lab.address()
machine = lab.start(address, Seed("datasource_list: [None]\\n"), EC2("i-1", 0, address, b""), lambda: None)
print(machine.init, flush=True)
try:
    time.sleep(1000)
finally:
    lab.close()
"""


def links() -> str:
    return subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout


def left(pid: int) -> list[str]:
    """Traces of the lab of a process."""
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if line.startswith("lab ")]
    found = [line for line in links().splitlines() if line.startswith(f"lab{pid}")]
    return mounts + found


def groups(pid: int) -> list[Path]:
    return list(Path("/sys/fs/cgroup").glob(f"**/{CGROUP}{pid}"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_nothing_is_left(lab, how):
    environment = {**os.environ, "XDG_CACHE_HOME": str(CACHE.parent), "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", BOOT], stdout=subprocess.PIPE, text=True, env=environment)
    init = int(process.stdout.readline())
    assert left(process.pid) and groups(process.pid)
    process.send_signal(how)
    process.wait(timeout=30)
    end = time.monotonic() + 30
    while os.path.exists(f"/proc/{init}") or left(process.pid):
        assert time.monotonic() < end, left(process.pid)
        time.sleep(0.1)
    if how == signal.SIGKILL:
        assert groups(process.pid)
        remove_stale()  # as the next lab does
    assert not groups(process.pid)
