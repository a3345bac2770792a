"""Every call of a cluster's life gone wrong in every way, on every cloud: see fault_matrix.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fault_clouds import HOMES
from fault_matrix import Result
from fault_report import RESULTS

LONGEST = 1500.0  # seconds, on a computer that has much else to do


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """One process a cloud, all at the same time; each writes to a file, since nobody reads until it has ended."""
    folder = tmp_path_factory.mktemp("shards")
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("fault_matrix.py"))]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    running = {}
    for cloud in HOMES:
        with open(folder / cloud, "w") as out, open(folder / f"{cloud}.err", "w") as err:
            running[cloud] = subprocess.Popen([*command, cloud], env=env, stdout=out, stderr=err), folder / cloud
    yield running
    for process, _ in running.values():
        process.kill()
        process.wait()


@pytest.mark.timeout(LONGEST)
@pytest.mark.parametrize("cloud", HOMES)
def test_whatever_goes_wrong_nothing_leaks_and_nothing_hangs(cloud, shards):
    process, out = shards[cloud]
    code = process.wait()
    results = [Result.from_json(line) for line in out.read_text().splitlines()]
    RESULTS.extend(results)
    errors = out.with_suffix(".err").read_text()[-3000:]
    assert code == 0, errors
    failed = [f"{r.case}: {'; '.join(r.problems)}\n  it said: {r.said}" for r in results if r.problems]
    assert not failed, "\n".join([*failed, errors])
    reached = [r for r in results if r.outcome != "not reached"]
    assert len(reached) > 100 and {r.case.verb for r in reached} == {"up", "grow", "shrink", "from_name", "down"}
    assert {r.case.nth for r in results if r.outcome == "not reached"} <= {2}, "how often something is polled varies"
