"""Workers that are lost: replaced under new names, later and later, up to a limit, with the reason in ``status``."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import dask
import pytest
from distributed import Client
from distributed.core import Status
from hypothesis import given
from hypothesis import strategies as st
from test_cluster import SMALL, kill_machine, names, wait_until

from dask_cloudvm import LocalVMCluster, down, from_name, losses, ls, workers
from dask_cloudvm.cli import status
from dask_cloudvm.losses import EARLY, LONGEST_RETRY, NEVER, RETRY, Losses

WORKER = """
import os, sys, time
word = open({flag!r}).read()
if word == "join":
    os.execv(sys.executable, [sys.executable, "-m", "distributed.cli.dask_worker", *sys.argv[1:]])
if word == "sleep":
    time.sleep(600)
sys.exit("no luck today")
"""


def pauses(limit: int, losses_: list[tuple[float, bool]]) -> list[float]:
    record, name, found = Losses(limit), "w0", []
    for i, (age, joined) in enumerate(losses_, 1):
        found.append(record.replace(name, f"w{i}", age, joined))
        assert record.pause(f"w{i}") == found[-1] and record.pause(name) == 0
        name = f"w{i}"
    return found


def test_pauses_grow_and_end():
    assert pauses(3, [(1, True)] * 5) == [0, 2 * RETRY, 4 * RETRY, NEVER, NEVER]
    assert pauses(2, [(1, False)] * 3) == [RETRY, 2 * RETRY, NEVER]
    assert pauses(0, [(EARLY + 1, True)]) == [NEVER]
    assert pauses(2, [(EARLY + 1, True)] * 50) == [0] * 50, "one that worked for long starts anew"


@given(st.integers(0, 6), st.lists(st.tuples(st.floats(0, 5000), st.booleans()), max_size=30))
def test_no_place_is_tried_more_often_than_allowed(limit, lost):
    found = pauses(limit, lost)
    assert all(pause == NEVER or pause <= LONGEST_RETRY for pause in found)
    bad = [age < EARLY or not joined for age, joined in lost]
    for is_bad, group in itertools.groupby(zip(bad, found, strict=True), key=lambda each: each[0]):
        finite = sum(pause != NEVER for _, pause in group)
        assert not is_bad or finite <= limit


def test_each_waits_its_own_pause_and_those_due_together_are_asked_for_together():
    class Few(SimpleNamespace):
        _try_later, _fill = workers.Workers._try_later, workers.Workers._fill

    async def work() -> list[tuple[str, float]]:
        asked, loop = [], asyncio.get_running_loop()

        async def create(name: str) -> None:
            asked.append((name, loop.time() - start))

        short = [SimpleNamespace(name=name, status=Status.running) for name in "abc"]
        it = Few(_due={}, _more_due=asyncio.Event(), _filling=None, _short=lambda: short)
        it._fleet, start = SimpleNamespace(create=create), loop.time()
        for name, pause in (("a", 300.0), ("b", 0.3), ("c", 0.5)):
            it._try_later(name, pause)
            await asyncio.sleep(0)
        while len(asked) < 4:
            await asyncio.sleep(0.01)
        it._filling.cancel()
        return asked

    (one, first), (two, second), (three, third), _ = asyncio.run(work())
    assert (one, two, three) == ("b", "c", "b") and first >= 0.3 and second - first < 0.1 and third >= first + 0.5


@pytest.fixture
def flag(tmp_path):
    """What workers do when they start: a file with one word."""
    flag = tmp_path / "flag"
    flag.write_text("join")
    (tmp_path / "worker.py").write_text(WORKER.format(flag=str(flag)))
    yield flag
    if left := {vm.cluster for vm in ls()}:
        down(*left)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(losses, "RETRY", 0.2)
    monkeypatch.setattr(workers, "REFRESH", 0.3)
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "200ms"}):
        yield


def start(name: str, flag: Path, **options):
    lines: list[str] = []
    command = f"{sys.executable} {flag.parent / 'worker.py'}"
    options = {**SMALL, "worker_command": command, "report": lines.append, "n_workers": 1, **options}
    return LocalVMCluster(name, **options), lines


def lost(name: str) -> list[dict[str, str]]:
    return asyncio.run(status._status(name, None))["lost"]


@pytest.mark.usefixtures("quick")
def test_a_worker_that_never_joins_is_replaced_up_to_a_limit(flag):
    it, lines = start("slow", flag, replacements=1)
    with it:
        it.ready()
        [good] = names()
        flag.write_text("sleep")
        it._options.values["start_timeout"] = "2s"
        it.scale(2)
        it.ready()  # goes on with the one that there is
        assert any("1 of 2 workers joined within 2s" in line for line in lines)
        wait_until(lambda: len(lost("slow")) == 2)
        first, second = lost("slow")
        assert first["why"] == second["why"] == "it did not join within 2s"
        assert first["then"] == f"{second['worker']} replaces it in 0.2 s" and "option replacements" in second["then"]
        wait_until(lambda: names() == {good})
        assert len(it.worker_spec) == 2, "the place stays, so that adaptive scaling does not fill it again"


@pytest.mark.usefixtures("quick")
def test_two_launchers_replace_a_lost_worker_once(flag):
    it, _ = start("pair", flag)
    with it, from_name("pair", report=lambda line: None) as other:
        it.ready()
        [old] = names()
        wait_until(lambda: old in other.observed)
        kill_machine(old)
        wait_until(lambda: not {old} & {*it.workers, *other.workers})
        assert len({*it.worker_spec, *other.worker_spec}) == 1
        wait_until(lambda: len(lost("pair")) == 1)


@pytest.mark.usefixtures("quick")
def test_a_clock_that_jumps_replaces_nobody(flag, monkeypatch):
    """As on a computer that slept for hours, wherever its clocks go on meanwhile."""
    it, _ = start("jump", flag, n_workers=2)
    with it, Client(it) as client:
        it.ready()
        before = names()
        monotonic, clock = time.monotonic, time.time
        for hours in (3, 30):
            monkeypatch.setattr(time, "monotonic", lambda ahead=3600 * hours: monotonic() + ahead)
            monkeypatch.setattr(time, "time", lambda ahead=3600 * hours: clock() + ahead)
            it.ready()
            time.sleep(1)  # some looks at the workers
            assert client.submit(sum, [1, hours], pure=False).result(30) == 1 + hours
        assert it.observed == before == names() and not lost("jump")
        it.scale(1)
        wait_until(lambda: len(names()) == 1)


@pytest.mark.usefixtures("quick")
def test_a_machine_that_ends_before_its_worker_joined_is_replaced(flag):
    it, _ = start("early", flag)
    with it:
        it.ready()
        flag.write_text("exit")
        it.scale(2)
        wait_until(lambda: len(names()) == 2)
        wait_until(lambda: len(names()) == 1)
        flag.write_text("join")
        it.ready(2)
        assert {loss["why"] for loss in lost("early")} == {"its machine has ended"}


@pytest.mark.usefixtures("quick")
def test_a_killed_worker_is_replaced_and_status_says_why(flag):
    it, _ = start("killed", flag, n_workers=2)
    with it, Client(it) as client:
        it.ready()
        slow = client.map(lambda i: sum(range(10**6)) + i, range(40))
        before = names()
        victim = min(before)
        kill_machine(victim)
        assert len(client.gather(slow)) == 40, "no task is lost"
        wait_until(lambda: len(it.observed) == 2 and victim not in it.observed)
        [loss] = lost("killed")
        assert (loss["worker"], loss["why"]) == (victim, "its machine has ended")
        shown = subprocess.run(
            [sys.executable, "-m", "dask_cloudvm", "status", "killed"], capture_output=True, text=True, timeout=60
        )
        [new] = names() - before
        assert f"its machine has ended; {new} replaces it" in shown.stdout
