"""What a cluster on Azure costs in calls and seconds, on a fake in a process of its own whose calls take 100 ms.

python benchmarks/azure_vms.py

Every call takes 0.1 s and every operation 2 s, about a tenth of what Azure takes. Exits 1 where a bound is broken.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dask_cloudvm import clouds, options
from dask_cloudvm import plan as planning
from dask_cloudvm.clouds.base import VM

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from plans import planned  # noqa: E402

CALL, OPERATION = 0.1, 2.0  # seconds
MOST_SECONDS = 10.0  # for a hundred machines whose operations end at once
MOST_BLOCKED = 0.05  # seconds for which the event loop is blocked
MOST_POLLS = 12  # looks at machines, however many these are
PLANS = {"--offline": 2.0, "--online": 4.0}  # beside importing what reads the options, Dask and jsonschema
MACHINE = "virtualMachines.createOrUpdate"
FAKE = f"""
import json, sys
sys.path.insert(0, {str(ROOT / "tests" / "clouds")!r})
from azure_fake import Fake
fake = Fake()
real = fake.answer
def answer(verb, url, headers, body):
    if not url.startswith("/bench/"):
        return real(verb, url, headers, body)
    told = json.loads(body)
    seen = json.dumps(fake.count()).encode()
    fake.calls.clear()
    if told.pop("reset", False):
        fake.reset()
    for name, value in told.items():
        setattr(fake, name, value)
    return 200, {{"Content-Type": "application/json"}}, seen
fake.answer = answer
with fake.serving() as url:
    print(url, flush=True)
    sys.stdin.read()
"""


class Fake:
    """The fake, seen from here."""

    def __init__(self, url: str) -> None:
        self.url = url

    def tell(self, **settings: Any) -> Counter[str]:
        """Changes it; the calls since it was last told something."""
        request = urllib.request.Request(f"{self.url}/bench/", json.dumps(settings).encode(), method="PUT")
        with urllib.request.urlopen(request) as answer:
            return Counter(json.load(answer))


def credentials(url: str, folder: str) -> None:
    """Those of a machine's identity, whose tokens come from the fake."""
    os.environ |= {
        "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential", "IDENTITY_ENDPOINT": f"{url}/token",
        "IDENTITY_HEADER": "secret", "DASK_CLOUDVM_AZURE_ENDPOINT": url, "DASK_CLOUDVM_CHECKIP": f"{url}/checkip",
        "XDG_STATE_HOME": folder, "PYTHONWARNINGS": "ignore",
    }  # fmt: skip


@contextmanager
def serving(folder: str) -> Iterator[Fake]:
    process = subprocess.Popen([sys.executable, "-c", FAKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    url = process.stdout.readline().strip()
    credentials(url, folder)
    try:
        yield Fake(url)
    finally:
        process.stdin.close()
        process.wait()


class Watchdog:
    """The longest time for which the event loop did nothing else."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.002)
            self.longest = max(self.longest, time.perf_counter() - before - 0.002)


async def cluster(n: int, fake: Fake, watchdog: Watchdog) -> tuple[Any, list[VM], float, Counter[str]]:
    """A scheduler and ``n`` workers, as ``up`` makes them; seconds and calls are those of the workers."""
    resolved = options.resolve(cloud="azure", keywords={"n_workers": n, "security": False, "region": "eastus"})
    cloud = clouds.make("azure", resolved.values)
    facts = await cloud.facts(None)
    made = planning.plan(resolved, cloud, facts, "bench", [], "3fa9c1", {})
    *first, workers = planning.requests(made, cloud, facts)
    vms = [vm for call in first for vm in await cloud.create(call)]
    fake.tell()
    watching = asyncio.create_task(watchdog.watch())
    start = time.perf_counter()
    vms += await cloud.create(workers)
    seconds = time.perf_counter() - start
    watching.cancel()
    return cloud, vms, seconds, fake.tell()


def counts(fake: Fake) -> Iterator[str]:
    """One row for each size; gives what is broken."""
    print("| workers | operations take | writes | looks at machines | other reads | seconds | loop blocked |")
    print("|---|---|---|---|---|---|---|")
    reads = set()
    for n, takes in ((1, OPERATION), (10, OPERATION), (100, OPERATION), (100, 0.0), (1000, OPERATION)):
        runs = []
        for _ in range(3 if n == 100 else 1):  # what another program on this computer delays is not counted
            fake.tell(reset=True, latency=CALL, takes=takes)
            fake.tell(page=5000)
            watchdog = Watchdog()
            runs.append((watchdog, asyncio.run(cluster(n, fake, watchdog))))
        watchdog, (_, vms, seconds, calls) = min(runs, key=lambda run: run[0].longest)
        writes, polls = calls.pop(MACHINE, 0), calls.pop("virtualMachines.list", 0)
        reads.add(sum(calls.values()))
        blocked = f"{1000 * watchdog.longest:.0f} ms"
        print(
            f"| {n} | {takes:g} s | {writes} | {polls} | {sum(calls.values())} | {seconds:.2f} | {blocked} |",
            flush=True,
        )
        if len(vms) != n + 1 or writes != n:
            yield f"{len(vms)} machines by {writes} writes for {n} workers"
        if polls > MOST_POLLS:
            yield f"{polls} looks for {n} workers"
        if n == 100 and not takes and seconds > MOST_SECONDS:
            yield f"100 machines take {seconds:.1f} s"
        if n <= 100 and watchdog.longest > MOST_BLOCKED:
            yield f"the event loop was blocked for {blocked} by {n} workers"
    if len(reads) > 1:
        yield f"the number of reads depends on that of workers: {sorted(reads)}"


def deleting(fake: Fake) -> Iterator[str]:
    fake.tell(reset=True, latency=0.0, takes=0.0)
    cloud, vms, _, _ = asyncio.run(cluster(100, fake, Watchdog()))
    fake.tell(latency=CALL, takes=OPERATION)
    start = time.perf_counter()
    asyncio.run(cloud.delete(vms))
    seconds, calls = time.perf_counter() - start, fake.tell()
    print(f"\ndeleting 101 machines: {seconds:.2f} s, {calls}")
    if calls != {"virtualMachines.delete": 101}:
        yield f"deleting 101 machines is {calls}"


def planning_alone(fake: Fake) -> Iterator[str]:
    fake.tell(reset=True)
    yield from planned("azure.yaml", "azure", PLANS, ("azure.core", "azure.identity"))


def main() -> int:
    broken: list[str] = []
    with tempfile.TemporaryDirectory() as folder, serving(folder) as fake:
        for part in (counts, deleting, planning_alone):
            broken += list(part(fake))
    for line in broken:
        print(f"BROKEN: {line}")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
