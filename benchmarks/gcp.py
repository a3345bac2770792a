"""What a cluster on Compute Engine costs in calls and seconds, on a fake that takes time for calls and operations.

python benchmarks/gcp.py

Every call takes 0.05 s and every operation 0.5 s, about a tenth of what Google takes. Exits 1 where a bound is broken.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dask_cloudvm import clouds, options
from dask_cloudvm import plan as planning
from dask_cloudvm.clouds.base import VM

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "clouds")]

from gcp_fake import ACCOUNT, PROJECT, Fake  # noqa: E402
from plans import planned  # noqa: E402

CALL, OPERATION = 0.05, 0.5  # seconds
MOST_TIMES = 3.0  # deleting a hundred, beside deleting one
PLANS = {"--offline": 1.5, "--online": 2.5}  # beside importing what reads the options, Dask and jsonschema


def credentials(url: str, folder: str) -> None:
    """Those of a service account whose tokens come from the fake."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    pem = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key = {"type": "service_account", "project_id": PROJECT, "private_key_id": "1", "private_key": pem.decode()}
    key |= {"client_email": ACCOUNT, "client_id": "1", "token_uri": f"{url}/token"}
    path = Path(folder) / "key.json"
    path.write_text(json.dumps(key))
    os.environ |= {
        "GOOGLE_APPLICATION_CREDENTIALS": str(path), "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{url}/compute/v1/",
        "NO_GCE_CHECK": "true", "HTTPS_PROXY": "http://127.0.0.1:9", "DASK_CLOUDVM_CHECKIP": f"{url}/checkip",
        "XDG_STATE_HOME": folder, "PYTHONWARNINGS": "ignore",
    }  # fmt: skip


async def cluster(n: int, **keywords: Any) -> tuple[Any, list[VM]]:
    """A scheduler and ``n`` workers, as ``up`` makes them."""
    resolved = options.resolve(cloud="gcp", keywords={"n_workers": n, "security": False, **keywords})
    cloud = clouds.make("gcp", resolved.values)
    facts = await cloud.facts(None)
    made = planning.plan(resolved, cloud, facts, "bench", [], "3fa9c1", {})
    return cloud, [vm for call in planning.requests(made, cloud, facts) for vm in await cloud.create(call)]


def counts(fake: Fake) -> Iterator[str]:
    """One row for each size; gives what is broken."""
    print("| workers | zones that have some | writes for machines | reads | seconds |\n|---|---|---|---|---|")
    seen = set()
    for n, zones in ((1, 1), (10, 1), (100, 1), (1000, 1), (100, 3)):
        fake.reset()
        fake.latency, fake.takes = CALL, OPERATION
        names = ["us-east1-b", "us-east1-c", "us-east1-d"][:zones]
        if zones > 1:
            fake.capacity = {(zone, "e2-standard-2", False): n // zones for zone in names[:-1]}
        start = time.perf_counter()
        _, vms = asyncio.run(cluster(n, zone=names))
        seconds = time.perf_counter() - start
        writes = [w for w in fake.writes() if "nsert" in w and "firewall" not in w]
        reads = [r for r in fake.reads() if r != "instances.aggregatedList"]
        seen.add(len(reads))
        print(f"| {n} | {zones} | 1 + {len(writes) - 1} | {len(reads)} | {seconds:.2f} |", flush=True)
        if len(vms) != n + 1 or len(writes) != 1 + zones:
            yield f"{len(vms)} machines by {len(writes)} writes for {n} workers in {zones} zones"
    if len(seen) > 1:
        yield f"the number of reads depends on that of workers: {sorted(seen)}"


def deleting(fake: Fake) -> Iterator[str]:
    took = {}
    for n in (1, 100):
        fake.reset()
        cloud, vms = asyncio.run(cluster(100))
        fake.latency, fake.takes = CALL, OPERATION
        start = time.perf_counter()
        asyncio.run(cloud.delete(vms[:n]))
        took[n] = time.perf_counter() - start
    ratio = took[100] / took[1]
    print(
        f"\ndeleting 1 machine: {took[1]:.3f} s; 100 machines: {took[100]:.3f} s, {ratio:.1f}x (bound {MOST_TIMES:g}x)"
    )
    if ratio > MOST_TIMES:
        yield f"deleting 100 machines takes {ratio:.1f} times as long as deleting one"


def planning_alone(fake: Fake) -> Iterator[str]:
    fake.reset()
    yield from planned("gcp.yaml", "google", PLANS, ("google.auth", "google.oauth2"))


def main() -> int:
    broken, fake = [], Fake()
    with fake.serving() as url, tempfile.TemporaryDirectory() as folder:
        credentials(url, folder)
        for part in (counts, deleting, planning_alone):
            broken += list(part(fake))
    for line in broken:
        print(f"BROKEN: {line}")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
