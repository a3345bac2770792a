"""How long a user waits for dask-cloudvm, beside what is nearest to it, in one table; exits 1 where a bound is broken.

python benchmarks/launch.py

Both sides of a row take turns on the same machine, and the quickest of several runs counts on each side.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROFILE = str(Path(__file__).parents[1] / "config" / "local.yaml")
COMMAND = [sys.executable, "-m", "dask_cloudvm"]
HEAVY = ("distributed", "pandas", "bokeh", "boto3", "botocore", "google.auth", "azure.core", "cryptography")

IMPORTS = f"""
import json, sys
from dask_cloudvm.cli import cli
cli(["validate", {PROFILE!r}], standalone_mode=False)
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
RESOLVE = f"""
import time
import dask.config
from dask_cloudvm import options, schema
schema.validator("local", "name")
started = time.perf_counter()
options.resolve({PROFILE!r})
print(time.perf_counter() - started)
"""
LOCAL_CLUSTER = """
import time
from distributed import LocalCluster
started = time.perf_counter()
cluster = LocalCluster(n_workers=4, processes=True, threads_per_worker=1)
cluster.wait_for_workers(4)
print(time.perf_counter() - started, flush=True)
cluster.close()
"""
LOCAL_VM_CLUSTER = """
import time
from dask_cloudvm import LocalVMCluster
started = time.perf_counter()
cluster = LocalVMCluster(n_workers=4, nthreads=1, report=lambda line: None)
cluster.ready()
print(time.perf_counter() - started, flush=True)
cluster.close()
"""


@dataclass(frozen=True)
class Row:
    """One line of the table: seconds of both sides, and the largest ratio or the most seconds allowed."""

    what: str
    ours: float
    peer: float | None = None
    most_times: float | None = None
    most_seconds: float | None = None

    @property
    def broken(self) -> bool:
        too_slow = self.most_seconds is not None and self.ours > self.most_seconds
        return too_slow or bool(self.peer and self.most_times and self.ours > self.most_times * self.peer)

    def cells(self) -> tuple[str, ...]:
        bound = f"{self.most_times:g}x" if self.most_times else f"{self.most_seconds:g} s"
        ratio, peer = (f"{self.ours / self.peer:.2f}x", _time(self.peer)) if self.peer else ("", "")
        return self.what, _time(self.ours), peer, ratio, f"{bound}{' BROKEN' if self.broken else ''}"


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"


def run(*command: str) -> float:
    """Seconds that a whole process takes."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def until_result(*command: str) -> float:
    """Seconds from the start of a process to its first line on standard output."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        took = time.perf_counter() - started
        process.stdout.read()
    if process.returncode or not line:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return took


def printed(code: str) -> str:
    """The last line that a new Python process prints."""
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.splitlines()[-1]


def take_turns(times: int, *sides: Callable[[], float]) -> list[float]:
    """The least of each side."""
    for side in sides:
        side()  # once for nothing: files come into the cache, and bytecode is written
    return [min(each) for each in zip(*([side() for side in sides] for _ in range(times)), strict=True)]


def up() -> float:
    took = until_result(*COMMAND, "up", PROFILE, "--name", "benchmark")
    subprocess.run([*COMMAND, "down", "benchmark"], check=True, stdout=subprocess.DEVNULL)
    return took


def rows() -> Iterator[Row]:
    help_, click = take_turns(7, lambda: run(*COMMAND, "--help"), lambda: run(sys.executable, "-c", "import click"))
    yield Row("`dask-cloudvm --help` / `import click`", help_, click, most_times=3)
    [validate] = take_turns(5, lambda: run(*COMMAND, "validate", PROFILE))
    yield Row("`dask-cloudvm validate`", validate, most_seconds=0.5)
    [resolve] = take_turns(5, lambda: float(printed(RESOLVE)))
    yield Row("`resolve()`, the first one after imports", resolve, most_seconds=0.02)
    ours, peer = take_turns(3, up, lambda: until_result(sys.executable, "-c", LOCAL_CLUSTER))
    yield Row("`up`, 4 workers / a script with `LocalCluster`", ours, peer, most_times=2.5)
    ours, peer = take_turns(3, lambda: float(printed(LOCAL_VM_CLUSTER)), lambda: float(printed(LOCAL_CLUSTER)))
    yield Row("`LocalVMCluster`, 4 workers / `LocalCluster`", ours, peer, most_times=2.5)


def main() -> int:
    broken = False
    print("| what | ours | peer | ratio | bound |\n|---|---|---|---|---|")
    for row in rows():
        broken |= row.broken
        print(f"| {' | '.join(row.cells())} |", flush=True)
    if imported := json.loads(printed(IMPORTS)):
        broken = True
        print(f"BROKEN: validate imports {', '.join(imported)}")
    return int(broken)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_STATE_HOME"] = folder  # a place of its own for the clusters, whatever else runs here
        os.environ["PYTHONWARNINGS"] = "ignore"
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # it would measure Python's compiler
        sys.exit(main())
