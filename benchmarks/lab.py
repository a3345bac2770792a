"""How long until a cluster on machines that boot has done its first task, beside the same machines started by hand.

python benchmarks/lab.py [--times N]

Needs what the lab needs; see tests/README.md. By hand means: a scheduler and four workers all start at the same moment
from a fixed user-data that holds nothing but Dask's own command, and the workers are told the scheduler's address.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import tempfile
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "clouds"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import distributed
from ec2_fake import Fake

from dask_cloudvm import EC2Cluster
from tests.clouds.conftest import aws_variables
from tests.lab.ec2_site import Site, seed
from tests.lab.lab import Lab
from tests.lab.metadata import EC2

WORKERS, BOUND = 4, 1.5
FIXED = """\
#cloud-config
runcmd:
  - systemd-run --unit=dask /opt/dask/bin/python -m distributed.cli.{command}
"""


def by_hand(lab: Lab) -> float:
    """Seconds from the first machine's start to the first result."""
    start = time.perf_counter()
    scheduler, *workers = [lab.address() for _ in range(1 + WORKERS)]
    boot(lab, scheduler, "dask_scheduler --host 0.0.0.0")
    for address in workers:
        boot(lab, address, f"dask_worker tcp://{scheduler}:8786")
    while True:
        try:
            with distributed.Client(f"tcp://{scheduler}:8786", timeout=1) as client:
                client.submit(int).result()
                return time.perf_counter() - start
        except OSError:
            time.sleep(0.05)


def boot(lab: Lab, address: str, command: str) -> None:
    data = gzip.compress(FIXED.format(command=command).encode())
    lab.start(address, seed(), EC2(f"i-{uuid.uuid4().hex[:17]}", 0, address, data), lambda: None)


def ours(lab: Lab, fake: Fake, url: str) -> float:
    """Seconds from the constructor's start to the first result."""
    fake.reset()
    os.environ.update(Site(lab, fake, aws_variables(url)).variables)
    options = {"runtime": "image", "n_workers": WORKERS, "report": lambda line: None}
    start = time.perf_counter()
    with EC2Cluster(f"bench-{uuid.uuid4().hex[:6]}", **options) as cluster, distributed.Client(cluster) as client:
        client.submit(int).result()
        return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=3)
    times = parser.parse_args().times
    fake = Fake()
    with tempfile.TemporaryDirectory() as folder, fake.serving() as url:
        os.environ |= {"XDG_STATE_HOME": folder, "HOME": folder}
        lab = Lab(Path(folder))
        try:
            hand, own = [], []
            for _ in range(times):
                hand.append(by_hand(lab))
                lab.forget()
                own.append(ours(lab, fake, url))
                lab.forget()
        finally:
            lab.close()
    ratio = min(own) / min(hand)
    print(f"first task on {WORKERS} workers: ours {min(own):.2f} s, by hand {min(hand):.2f} s, {ratio:.2f}x ({BOUND}x)")
    print(f"all: ours {', '.join(f'{s:.2f}' for s in own)}; by hand {', '.join(f'{s:.2f}' for s in hand)}")
    return int(ratio > BOUND)


if __name__ == "__main__":
    sys.exit(main())
