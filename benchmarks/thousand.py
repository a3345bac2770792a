"""What the launcher itself costs with a thousand workers: memory, processor time, calls; on each cloud's fake.

python benchmarks/thousand.py [--workers N] [--upstream PYTHON | --no-upstream]

The machines do not boot. A scheduler in this process has, for each, a connection of its own that says it is the worker,
so that ``up`` waits for all of them as it would for real ones. Every verb is a process of its own, as a user runs it.
PYTHON is an interpreter with ``dask-cloudprovider[aws]``; by default one is made with uv.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests" / "clouds")]

import azure_boot  # noqa: E402
import azure_fake  # noqa: E402
import azure_vms  # noqa: E402
import ec2  # noqa: E402
import ec2_boot  # noqa: E402
import ec2_fake  # noqa: E402
import gcp  # noqa: E402
import gcp_boot  # noqa: E402
import gcp_fake  # noqa: E402
from distributed import Scheduler, Worker  # noqa: E402
from distributed.comm import connect  # noqa: E402
from distributed.core import Server  # noqa: E402
from distributed.versions import get_versions  # noqa: E402

MEMORY, PROCESSOR = 300, 10.0  # bounds: MB, seconds of processor time, of each verb
LIST = 2.0  # seconds for ls, without those of the fake
FEW = 10
LONGEST = 900.0  # seconds for the peer


class Workers:
    """A scheduler in a thread of its own, and connections to it that stand for workers."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.scheduler = self.run(self._start())
        self.port = int(self.scheduler.address.rpartition(":")[2])
        self._comms: list[Any] = []

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(600)

    async def _start(self) -> Scheduler:
        scheduler = await Scheduler(host="127.0.0.1", port=0, dashboard=False)
        async with Worker(scheduler.address) as real:
            self.metrics = await real.get_metrics()
        self.server = Server({"versions": get_versions})  # what launchers ask a worker that has joined
        await self.server.listen("tcp://0.0.0.0:0")
        return scheduler

    def join(self, names: list[str]) -> None:
        asyncio.run_coroutine_threadsafe(self._join(names), self.loop)

    async def _join(self, names: list[str]) -> None:
        versions = get_versions()
        for name in names:
            comm = await connect(self.scheduler.address)
            n = len(self._comms)
            address = f"tcp://127.{1 + (n >> 16)}.{n >> 8 & 255}.{n & 255}:{self.server.port}"
            self._comms.append(comm)
            about = {
                "op": "register-worker", "reply": False, "address": address, "status": "running", "nthreads": 2,
                "name": name, "now": time.time(), "resources": {}, "memory_limit": 8 << 30, "local_directory": "/tmp",
                "services": {"dashboard": 8787}, "nanny": None, "pid": 1, "versions": versions, "metrics": self.metrics,
                "extra": {}, "stimulus_id": "join", "server_id": name,
            }  # fmt: skip
            await comm.write(about, serializers=["msgpack"])
            await comm.read()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self.server.close())
        self.run(self.scheduler.close())
        self.loop.call_soon_threadsafe(self.loop.stop)


# A process counts the memory of the one that it was forked from as its own: so a small one forks what is measured.
MEASURE = """
import json, os, subprocess, sys, time
start = time.monotonic()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, status]))
"""


def measured(*command: str) -> tuple[float, float, float]:
    """Seconds, seconds of processor time and the largest memory in MB of a command that must succeed."""
    done = subprocess.run([sys.executable, "-S", "-c", MEASURE, *command], capture_output=True, text=True, check=True)
    seconds, processor, memory, status = json.loads(done.stdout)
    if status:
        raise SystemExit(f"{command}: exit {os.waitstatus_to_exitcode(status)}\n{done.stderr}")
    return seconds, processor, memory


class Timed:
    """Counts the seconds that a fake takes to answer."""

    busy = 0.0

    def timed(self, answer: Callable[..., Any], *arguments: Any) -> Any:
        start = time.monotonic()
        try:
            return answer(*arguments)
        finally:
            self.busy += time.monotonic() - start


class EC2(Timed, ec2_fake.Fake):
    def __call__(self, *arguments: Any) -> Any:
        return self.timed(super().__call__, *arguments)


class GCP(Timed, gcp_fake.Fake):
    def answer(self, *arguments: Any) -> Any:
        return self.timed(super().answer, *arguments)


class Azure(Timed, azure_fake.Fake):
    def answer(self, *arguments: Any) -> Any:
        return self.timed(super().answer, *arguments)


def life(cloud: str, n: int, fake: Any, workers: Workers, there: Callable[[], int]) -> Iterator[str]:
    """``up``, ``ls``, ``scale``, ``down``: a row each, and what breaks a bound."""
    sets = ["security=false", f"scheduler_options={{port: {workers.port}}}"]
    options = [part for each in sets for part in ("--set", each)]
    verbs: dict[str, tuple[list[str], int]] = {
        f"up, {n} workers": (
            ["up", f"{HERE.parent}/config/{cloud}.yaml", "--name", "big", f"--n-workers={n}", *options],
            n + 1,
        ),
        "ls": (["ls", "--cloud", cloud], n + 1),
        f"scale to {FEW}": (["scale", "big", str(FEW), "--cloud", cloud], FEW + 1),
        "down": (["down", "big", "--cloud", cloud], 0),
    }
    for verb, (arguments, machines) in verbs.items():
        fake.calls.clear()
        fake.busy = 0.0
        seconds, processor, memory = measured(sys.executable, "-m", "dask_cloudvm", *arguments)
        row = f"{len(fake.calls)} | {seconds:.1f} | {fake.busy:.1f} | {processor:.1f} | {memory:.0f} |"
        print(f"| {cloud} | {verb} | {row}", flush=True)
        if there() != machines:
            yield f"{cloud}: {there()} machines after {verb}, not {machines}"
        if processor > PROCESSOR:
            yield f"{cloud}: {verb} takes {processor:.1f} s of processor time, not {PROCESSOR:g}"
        if memory > MEMORY:
            yield f"{cloud}: {verb} takes {memory:.0f} MB, not {MEMORY}"
        if verb == "ls" and seconds - fake.busy > LIST:
            yield f"{cloud}: ls takes {seconds - fake.busy:.1f} s, not {LIST:g}"


def names(files: Mapping[str, str]) -> list[str]:
    """The worker that a machine with these files would run; none on the scheduler's."""
    return [json.loads(files["worker.json"])["opts"]["name"]] if "worker.json" in files else []


def on_ec2(n: int, upstream: str | None) -> Iterator[str]:
    with Workers() as workers, tempfile.TemporaryDirectory() as state:
        fake = EC2()
        with fake.serving() as url:
            os.environ |= {
                "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
                "AWS_DEFAULT_REGION": "us-east-1", "DASK_CLOUDVM_CHECKIP": f"{url}/checkip", "XDG_STATE_HOME": state,
            }  # fmt: skip
            fake.address = "127.0.0.1"
            fake.on_run = lambda parameters, ids: workers.join(
                [name for index in range(len(ids)) for name in names(ec2_boot.files(parameters, index))]
            )
            yield from life("ec2", n, fake, workers, lambda: len(fake.instances()))
            if upstream:
                fake.reset()
                fake.address = "127.0.0.1"
                peer(fake, n, workers, upstream)


def on_gcp(n: int, upstream: str | None) -> Iterator[str]:
    with Workers() as workers, tempfile.TemporaryDirectory() as state:
        fake = GCP()
        with fake.serving() as url:
            gcp.credentials(url, state)
            fake.address = "127.0.0.1"
            fake.on_run = lambda body, name: workers.join(names(gcp_boot.files(body, name)))
            yield from life("gcp", n, fake, workers, lambda: len(fake.there()))


def on_azure(n: int, upstream: str | None) -> Iterator[str]:
    with Workers() as workers, tempfile.TemporaryDirectory() as state:
        fake = Azure()
        with fake.serving() as url:
            azure_vms.credentials(url, state)
            fake.address = "127.0.0.1"
            fake.on_run = lambda body, name: workers.join(names(azure_boot.files(body)))
            yield from life("azure", n, fake, workers, lambda: len(fake.there()))


def peer(fake: EC2, n: int, workers: Workers, python: str) -> None:
    """dask-cloudprovider, until it has asked for the last machine; its machines get no worker."""
    fake.busy = 0.0
    group = next(iter(fake.backend.describe_security_groups())).id
    program = [python, "-c", ec2.UPSTREAM, str(n), str(workers.port), group, ec2_fake.IMAGES["amd64"][0]]
    command = [sys.executable, "-S", "-c", MEASURE, *program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        start = time.monotonic()
        while len(fake.instances()) <= n and process.poll() is None and time.monotonic() < start + LONGEST:
            time.sleep(0.1)
        calls, there = len(fake.calls), len(fake.instances())
        subprocess.run(["pkill", "-KILL", "-P", str(process.pid)], check=False)
        seconds, processor, memory, _ = json.loads(process.communicate()[0])
    what = f"constructor, {there - 1} workers"
    row = f"{calls} | {seconds:.1f} | {fake.busy:.1f} | {processor:.1f} | {memory:.0f} |"
    print(f"| dask-cloudprovider | {what} | {row}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--upstream", help="an interpreter with dask-cloudprovider[aws]")
    parser.add_argument("--no-upstream", action="store_true")
    given = parser.parse_args()
    upstream = None if given.no_upstream else given.upstream or ec2.upstream_python()
    logging.disable()
    warnings.simplefilter("ignore")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    print("| cloud | verb | calls | seconds | of which the fake | of processor time | MB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    broken = [line for on in (on_ec2, on_gcp, on_azure) for line in on(given.workers, upstream)]
    for line in broken:
        print(f"BROKEN: {line}")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
