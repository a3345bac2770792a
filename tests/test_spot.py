"""Spot machines: a real scheduler and real workers, and a metadata service that raises each cloud's notice."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from distributed import Client, Nanny, Scheduler, Worker

from dask_cloudvm import bootstrap, losses, options, spot


class Metadata(ThreadingHTTPServer):
    """Answers as each cloud does to machines whose address is in ``taken``; ``asked`` has every path."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.taken, self.asked, self.url = threading.Event(), [], f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_PUT(self):
        right = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self.answer(200 if right else 400, "the token")

    def do_GET(self):
        taken = self.server.taken
        self.server.asked.append(self.path)
        if self.path == "/latest/meta-data/spot/instance-action":
            if self.headers["X-aws-ec2-metadata-token"] != "the token":
                return self.answer(401, "")
            found = {"action": "terminate", "time": "2026-11-21T06:30:00Z"}
            return self.answer(200, json.dumps(found)) if taken.is_set() else self.answer(404, "")
        if self.path.startswith("/computeMetadata/v1/instance/preempted?") and self.headers["Metadata-Flavor"]:
            if self.path.endswith("last_etag=same"):  # nothing is said until something changes
                taken.wait(60)
            return self.answer(200, "TRUE" if taken.is_set() else "FALSE", ETag="other" if taken.is_set() else "same")
        if self.path.startswith("/metadata/scheduledevents?api-version=") and self.headers["Metadata"] == "true":
            kinds = {"Freeze": socket.gethostname(), "Reboot": "another"}
            kinds |= {"Preempt": socket.gethostname()} if taken.is_set() else {}
            events = [{"EventId": "1", "EventType": kind, "Resources": [name]} for kind, name in kinds.items()]
            return self.answer(200, json.dumps({"DocumentIncarnation": 1, "Events": events}))
        self.answer(400, "")

    def answer(self, status, text, **headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(text)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def metadata():
    with Metadata() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.taken.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(spot, "PAUSE", 0.05)


@pytest.mark.parametrize("cloud", spot.CLOUDS)
def test_a_notice_is_seen_and_nothing_else_is_one(metadata, monkeypatch, cloud):
    monkeypatch.setattr(spot, "BASE", metadata.url)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    told = []
    thread = threading.Thread(target=spot.watch, args=(spot.CLOUDS[cloud], told.append))
    thread.start()
    until(lambda: len(metadata.asked) >= 2)
    assert told == []
    metadata.taken.set()
    thread.join(30)
    assert len(told) == 1 and told[0]


def test_a_service_that_does_not_answer_does_no_harm(metadata, monkeypatch, caplog):
    monkeypatch.setattr(spot, "BASE", "http://127.0.0.1:9")
    monkeypatch.setattr(spot, "log", logging.getLogger("spot"))  # distributed's are set up once clusters have run here
    told = []
    thread = threading.Thread(target=spot.watch, args=(spot.ec2, told.append))
    thread.start()
    until(lambda: caplog.records)
    monkeypatch.setattr(spot, "BASE", metadata.url)
    metadata.taken.set()
    thread.join(30)
    assert told and len(caplog.records) == 1


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def machine(folder, metadata, address, name, cloud, **settings):
    """Starts what a spot machine would run, with its files in a folder of its own."""
    values = {**options.combine([], "ec2")[0].for_role("worker"), **settings}
    launch = bootstrap.worker(values, {}, address, python=sys.executable, extra={"nthreads": 1, "memory_limit": 0})
    launch = bootstrap.watching(launch, cloud)
    home = folder / name
    home.mkdir()
    for file, text in launch.files.items():
        (home / file).write_text(bootstrap.fill(text, name, str(home)))
    argv = [bootstrap.fill(part, name, str(home)) for part in launch.argv]
    env = {key: bootstrap.fill(value, name, str(home)) for key, value in launch.env.items()}
    env = {**os.environ, **env, "DASK_CLOUDVM_METADATA": metadata.url, "DASK_TEMPORARY_DIRECTORY": str(home)}
    return subprocess.Popen(argv, env=env, cwd=home)


@pytest.mark.parametrize(
    "cloud, settings",
    [
        ("ec2", {}),
        ("gcp", {"worker_class": "dask.distributed.Worker"}),
        ("azure", {"worker_module": "distributed.cli.dask_worker"}),
        ("ec2", {"worker_command": f"{sys.executable} -m dask worker --no-nanny"}),
    ],
    ids=["nanny", "worker", "module", "command"],
)
def test_results_move_and_tasks_end_elsewhere(metadata, tmp_path, cloud, settings):
    asyncio.run(notice(metadata, tmp_path, cloud, settings))


async def notice(metadata, tmp_path, cloud, settings):
    """One spot worker with results and running tasks, another that joins, a notice for the first."""
    async with (
        Scheduler(dashboard_address=":0", port=0, host="127.0.0.1") as scheduler,
        Client(scheduler.address, asynchronous=True) as client,
    ):
        going = machine(tmp_path, metadata, scheduler.address, "going", cloud, **settings)
        try:
            await client.wait_for_workers(1, timeout=60)
            held = client.map(lambda i: (i, os.getpid()), range(20), pure=False)
            first = await client.gather(held)

            def slow(i):  # in here, since the machine cannot import this module
                return time.sleep(0.4) or i

            running = client.map(slow, range(4), workers=["going"], allow_other_workers=True, pure=False)
            async with Worker(scheduler.address, name="stays", nthreads=1) as stays:
                metadata.taken.set()
                assert sorted(await asyncio.wait_for(client.gather(running), 60)) == [0, 1, 2, 3]
                assert await asyncio.to_thread(going.wait, 60) == 0  # and no nanny started another
                assert [ws.name for ws in scheduler.workers.values()] == ["stays"]
                assert "going" in losses.notices(scheduler.get_events(losses.TOPIC))
                assert await client.gather(held) == first  # the very results, not computed once more
                assert set(stays.data) >= {future.key for future in held}
        finally:
            going.kill()
            going.wait()


def test_a_nanny_waits_for_someone_to_hand_over_to(metadata, monkeypatch):
    asyncio.run(alone(metadata, monkeypatch))


async def alone(metadata, monkeypatch):
    monkeypatch.setattr(spot, "BASE", metadata.url)
    monkeypatch.setenv("DASK_CLOUDVM_SPOT", "ec2")
    async with (
        Scheduler(dashboard_address=":0", port=0, host="127.0.0.1") as scheduler,
        Client(scheduler.address, asynchronous=True) as client,
        Nanny(scheduler.address, nthreads=1, preload_nanny=["dask_cloudvm.spot"]) as nanny,
    ):
        held = await client.submit(os.getpid)
        metadata.taken.set()
        await until_async(lambda: any("could-not-retire" in str(e) for e in scheduler.get_events().values()))
        async with Worker(scheduler.address, nthreads=1):
            await asyncio.wait_for(nanny.finished(), 30)
            assert await client.submit(lambda pid: pid, held) == held


async def until_async(condition):
    for _ in range(1500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("did not happen in time")


def test_a_preload_of_the_users_stays():
    values = options.combine([], "ec2")[0].for_role("worker")
    for given, kept in {"my.module": ["my.module"], "['a', 'b.py']": ["a", "b.py"]}.items():
        values["env_vars"] = {"DASK_DISTRIBUTED__WORKER__PRELOAD": given}
        launch = bootstrap.watching(bootstrap.worker(values, {}, "tcp://10.0.0.4:8786", python="python"), "gcp")
        found = json.loads(launch.env["DASK_DISTRIBUTED__WORKER__PRELOAD"])
        assert found == [*kept, f"{bootstrap.DIR}/dask_cloudvm_spot.py"]
        assert json.loads(launch.env["DASK_DISTRIBUTED__NANNY__PRELOAD"]) == found[-1:]
