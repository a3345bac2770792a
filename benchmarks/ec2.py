"""What a cluster on EC2 costs in API calls and seconds, beside dask-cloudprovider's EC2Cluster on the same fake AWS.

python benchmarks/ec2.py [--upstream PYTHON]

PYTHON is an interpreter with ``dask-cloudprovider[aws]``; by default one is made with uv. The fake enforces the rate
limits that AWS documents. Its machines do not boot; a scheduler of this computer answers in place of theirs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "clouds"))

from ec2_fake import IMAGES, READ_ONLY, Fake

OURS = """
import sys
from dask_cloudvm import EC2Cluster
n, port, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
cluster = EC2Cluster(name, n_workers=n, scheduler_options={"port": port}, security=False, machine_type="m7i.large",
                     shutdown_on_close=False, report=lambda line: None)
cluster.close()
"""
UPSTREAM = """
import sys
from dask_cloudprovider.aws import EC2Cluster
n, port, group = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
EC2Cluster(n_workers=n, scheduler_options={"port": port}, security=False, region="us-east-1", ami=sys.argv[4],
           scheduler_instance_type="m7i.large", worker_instance_type="m7i.large", security_groups=[group])
"""
PLAN = """
import time
from dask_cloudvm import clouds, options
from dask_cloudvm import plan as planning
resolved = options.resolve(cloud="ec2", keywords={"n_workers": 1000})
cloud = clouds.make("ec2", resolved.values)
start = time.perf_counter()
made = planning.plan(resolved, cloud, cloud.offline(), "bench", [], "3fa9c1", planning.placeholders())
planning.render(made, planning.requests(made, cloud, cloud.offline()))
print(time.perf_counter() - start)
"""
LONGEST = 600.0


@contextlib.contextmanager
def scheduler() -> Iterator[int]:
    """The port of a Dask scheduler of this computer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", str(port), "--no-dashboard"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.05)
        yield port
        process.terminate()


def run(fake: Fake, n: int, *command: str) -> tuple[float, list[str]]:
    """Seconds from the first call to the last machine, and the calls until then."""
    there = len(fake.instances())
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    start = time.monotonic()
    first = None
    try:
        while len(fake.instances()) <= there + n:
            first = first or (time.monotonic() if fake.calls else None)
            if time.monotonic() - start > LONGEST:
                raise SystemExit(f"{len(fake.instances())} of {n + 1} machines after {LONGEST:g} s: {command[-3:]}")
            time.sleep(0.01)
        calls = [action for action, _ in fake.calls]
        return time.monotonic() - (first or start), calls
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30 if "dask_cloudvm" in command[2] else 0)
        process.kill()
        process.wait()


def upstream_python() -> str:
    folder = Path(tempfile.mkdtemp(prefix="upstream-"))
    subprocess.run(["uv", "venv", "--quiet", folder], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run(["uv", "pip", "install", "--quiet", "--python", python, "dask-cloudprovider[aws]"], check=True)
    return python


def fresh(fake: Fake) -> str:
    """A fresh account under AWS's limits; gives a security group of it."""
    fake.reset()
    fake.limits, fake.address = True, "127.0.0.1"
    return str(next(iter(fake.backend.describe_security_groups())).id)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upstream", help="an interpreter with dask-cloudprovider[aws]")
    upstream = parser.parse_args().upstream or upstream_python()
    broken, fake = [], Fake()
    with fake.serving() as url, scheduler() as port, tempfile.TemporaryDirectory() as state:
        os.environ |= {
            "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "PYTHONWARNINGS": "ignore",
            "AWS_DEFAULT_REGION": "us-east-1", "DASK_CLOUDVM_CHECKIP": f"{url}/checkip", "XDG_STATE_HOME": state,
        }  # fmt: skip
        print("| workers | ours: writes | reads | seconds | dask-cloudprovider: calls | seconds | ratio |")
        print("|---|---|---|---|---|---|---|", flush=True)
        reads_seen = set()
        for n in (1, 10, 100, 1000):
            fresh(fake)
            _, first = run(fake, 0, sys.executable, "-c", OURS, "0", str(port), "first")
            fake.rest()
            seconds, calls = run(fake, n, sys.executable, "-c", OURS, str(n), str(port), "bench")
            writes = [c for c in calls if not c.startswith(READ_ONLY)]
            reads = calls[: len(calls) - calls[::-1].index("RunInstances")]
            reads = [c for c in reads if c.startswith(READ_ONLY)]
            reads_seen.add(len(reads))
            theirs = ("", "", "")
            if n in (10, 100):
                group = fresh(fake)
                command = (upstream, "-c", UPSTREAM, str(n), str(port), group, IMAGES["amd64"][0])
                slow, slow_calls = run(fake, n, *command)
                theirs = (str(len(slow_calls)), f"{slow:.2f}", f"{slow / seconds:.1f}x")
                if n == 100 and slow < 10 * seconds:
                    broken.append("less than 10 times quicker than dask-cloudprovider at 100 workers")
            print(f"| {n} | {len(writes)} | {len(reads)} | {seconds:.2f} | {' | '.join(theirs)} |", flush=True)
            if writes != ["RunInstances"] * 2:
                broken.append(f"{len(writes)} writes for {n} workers: {writes}")
            if n == 100 and seconds > 5:
                broken.append(f"100 workers were requested in {seconds:.1f} s, not 5")
        if len(reads_seen) > 1:
            broken.append(f"the number of reads depends on that of workers: {sorted(reads_seen)}")
    plan = float(subprocess.run([sys.executable, "-c", PLAN], check=True, capture_output=True, text=True).stdout)
    print(f"\nthe plan for 1,000 workers renders in {plan * 1000:.0f} ms")
    if plan > 1:
        broken.append("the plan for 1,000 workers takes more than a second")
    extra = [c for c in first if not c.startswith((*READ_ONLY, "RunInstances"))]
    print(f"the first cluster of an account with a firewall setting makes {len(extra)} calls more: {', '.join(extra)}")
    for line in broken:
        print(f"BROKEN: {line}")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
