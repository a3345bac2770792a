"""Life under stress on each cloud: others act at the same moment, somebody never comes back, a computer sleeps."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from fault_clouds import HOMES
from fault_matrix import LIMIT, NAME, WORKERS, Matrix, matrix

from dask_cloudvm.errors import NameTaken

SCHEDULER = f"{NAME}-scheduler"


@pytest.fixture(scope="module", params=HOMES)
def cloud(request):
    before = dict(os.environ)
    with matrix(request.param) as it:
        yield it
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def it(cloud):
    """A fresh account, which is empty again in the end."""
    cloud.begin()
    yield cloud
    if cloud.there():
        assert run(cloud, "down") == (0, "")
    assert cloud.home.leftovers() == []


def run(it: Matrix, verb: str) -> tuple[int, str]:
    launch = it.start(verb)
    return launch.wait(LIMIT), launch.stderr


def until(condition, seconds: float = LIMIT) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def workers(it: Matrix) -> set[str]:
    return set(it.there()) - {SCHEDULER}


def errors(text: str) -> list[str]:
    assert "Traceback" not in text
    return [line for line in text.splitlines() if line.startswith("error: ")]


def whole(it: Matrix, n: int = WORKERS) -> bool:
    """Whether there is one cluster of ``n`` workers and nothing else; lost workers are noticed a little late."""
    found = workers(it)
    until(lambda: it.home.machines.joined() <= found, 10)
    return len(it.there()) == n + 1 and len(found) == n and found == it.home.machines.joined()


@pytest.mark.parametrize("computers", [1, 2])
def test_two_launchers_make_a_cluster_of_one_name_at_the_same_moment(it, computers):
    gate = threading.Barrier(2)
    it.home.proxy.before = lambda operation, nth: gate.wait(20) if operation == it.home.makes and nth <= 2 else None
    states = [f"{it.state}-{i % computers}" for i in range(2)]
    ups = [("dask-cloudvm", "up", str(profile)) for profile in (it.profile, it.describe("other.yaml"))]
    launches = [it.launchers.start(*up, XDG_STATE_HOME=state) for up, state in zip(ups, states, strict=True)]
    codes = [launch.wait(LIMIT) for launch in launches]
    assert sorted(codes) == [0, 1], [launch.stderr for launch in launches]
    [error] = errors(launches[codes.index(1)].stderr)
    assert error == f"error: {NameTaken(name=NAME)}"
    assert whole(it), (it.there(), it.home.machines.joined())
    if computers == 1:
        again = it.launchers.run(*ups[codes.index(0)], XDG_STATE_HOME=states[0])
        assert again.code == 0 and whole(it), again.stderr


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("moment", ["makes", "looks"])
def test_down_while_up_runs(it, moment, nth):
    operation = it.home.makes if moment == "makes" else it.home.lists
    downs = []

    def interfere(name: str, count: int) -> None:
        if name == operation and count == nth + (moment == "looks"):
            it.home.proxy.before = lambda operation, nth: None
            downs.append(run(it, "down"))

    it.home.proxy.before = interfere
    up = it.start("up")
    code = up.wait(LIMIT)
    [(down, said)] = downs
    assert down == 0 or (down == 1 and errors(said) == [f"error: there is no cluster '{NAME}'; no cluster exists"])
    assert code in (0, 1) and len(errors(up.stderr)) == code, up.stderr
    assert it.there() == [] if code else whole(it), (up.stderr, it.there())


def test_a_storm_of_scaling_ends_in_the_last_size(it):
    assert run(it, "up")[0] == 0
    before = it.home.proxy.count()[it.home.makes]
    launch = it.launchers.run("storm", NAME, "0", "50", "3", "20", seconds=90, XDG_STATE_HOME=str(it.state))
    assert launch.code == 0, launch.stderr
    assert whole(it, 20), (len(it.there()), len(it.home.machines.joined()))
    if it.home.bulk:
        assert it.home.proxy.count()[it.home.makes] - before <= 3, "machines are made in bulk"


def test_storms_of_two_launchers(it):
    assert run(it, "up")[0] == 0
    state = {"XDG_STATE_HOME": str(it.state)}
    storms = [it.launchers.start("storm", NAME, *sizes, **state) for sizes in (("9", "0", "4"), ("1", "7", "4"))]
    assert {storm.wait(90) for storm in storms} <= {0, 1}
    assert it.launchers.run("dask-cloudvm", "scale", NAME, "3", **state).code == 0
    assert whole(it, 3), (it.there(), it.home.machines.joined())


def test_many_adaptive_rounds_leave_no_machine(it):
    launch = it.launchers.run("adaptive", str(it.profile), "12", seconds=100, XDG_STATE_HOME=str(it.state))
    assert launch.code == 0, launch.stderr
    assert launch.stdout.splitlines() == [SCHEDULER] * 12
    assert it.there() == []


def test_a_scheduler_that_is_lost_is_named_and_replaced(it):
    assert run(it, "up")[0] == 0
    [lost] = [
        id
        for id, server in it.home.machines.running.items()
        if hasattr(server, "workers") and not hasattr(server, "nanny")
    ]
    it.home.machines.end(lost)
    it.home.end(lost)
    for verb in ("grow", "from_name"):
        code, said = run(it, verb)
        [error] = errors(said)
        assert code == 1 and ("the scheduler of cluster" in error or "there is no cluster" in error)
    code, said = run(it, "up")
    assert code == 0 and whole(it), (said, it.there())


@pytest.mark.parametrize("moment", ["makes", "looks"])
def test_a_laptop_that_sleeps_while_up_runs(it, moment):
    asleep = threading.Event()

    def sleep(operation: str, nth: int) -> None:
        if operation == (it.home.makes if moment == "makes" else it.home.lists) and not asleep.is_set():
            asleep.set()
            up.begun.wait(LIMIT)
            up.signal(signal.SIGSTOP)
            threading.Timer(2.0, up.signal, [signal.SIGCONT]).start()  # longer than any time-out of a call

    it.home.proxy.before = sleep
    up = it.start("up")
    assert up.wait(LIMIT) == 0, up.stderr
    assert asleep.is_set() and whole(it), it.there()


def test_what_nobody_comes_back_for_goes_by_itself(it):
    it.begin(idle_timeout="2s", death_timeout="2s")
    launch = it.launchers.start("waits", str(it.profile), XDG_STATE_HOME=str(it.state))
    until(lambda: launch.ended.is_set() or "ready" in launch.stdout)
    assert whole(it), launch.stderr
    launch.signal(signal.SIGKILL)
    until(lambda: it.there() == [])
