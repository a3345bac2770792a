"""Clusters on the local cloud: a real scheduler, real workers, real TLS."""

from __future__ import annotations

import asyncio
import copy
import errno
import os
import signal
import ssl
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import dask
import distributed
import psutil
import pytest
from distributed import Client

from dask_cloudvm import LocalVMCluster, api, clouds, down, from_name, from_profile, ls, machines, tls, workers
from dask_cloudvm import cluster as cluster_module
from dask_cloudvm.clouds import local, local_records
from dask_cloudvm.cluster import CloudCluster
from dask_cloudvm.errors import (
    AmbiguousName,
    CloudError,
    ClusterExists,
    ClusterNotFound,
    NameTaken,
    ProfileError,
    SchedulerLost,
    StartError,
    StateError,
)

SMALL = {"memory_limit": "600 MiB", "report": lambda line: None}


@pytest.fixture(autouse=True)
def nothing_stays():
    """Every test ends with no machine, no process and no folder of one."""
    yield
    left = ls()
    if left:
        down(*{vm.cluster for vm in left})
    assert not left, "the test left machines"
    marked = [p for p in psutil.process_iter() if str(tls.state_folder()) in _mark(p)]
    assert not marked


def _mark(process: psutil.Process) -> str:
    try:
        return process.environ().get("DASK_CLOUDVM_MACHINE", "")
    except (psutil.Error, OSError):
        return ""


def wait_until(condition, seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def names(role: str = "worker") -> set[str]:
    return {vm.name for vm in ls() if vm.role == role and vm.alive}


def kill_machine(name: str) -> None:
    [vm] = [vm for vm in ls() if vm.name == name]
    for process in local_records.processes({vm.id}):
        process.kill()


def test_life_of_a_cluster():
    before = copy.deepcopy((dask.config.config, dask.config.defaults))
    lines: list[str] = []
    with LocalVMCluster("life", n_workers=2, memory_limit="600 MiB", report=lines.append) as cluster:
        with Client(cluster) as client:
            cluster.ready()
            assert client.submit(sum, range(10)).result() == 45
            # one identity: key, worker, machine
            assert set(cluster.workers) == set(cluster.worker_spec) == cluster.observed == names()
            assert names("scheduler") == {"life-scheduler"}
            first = names()
            cluster.scale(3)
            cluster.ready(3)
            kept = client.scatter("kept", broadcast=False)
            cluster.scale(1)
            wait_until(lambda: len(names()) == 1)
            assert kept.result() == "kept", "data moves to the workers that stay"
            cluster.scale(2)
            cluster.ready(2)
            assert len(names() | first) > len(first), "no name is used twice"
            assert "Start worker at" in "".join(cluster.get_logs(cluster=False, scheduler=False).values())
        assert {vm.name for vm in cluster.machines()} == names() | names("scheduler")
        html = cluster._repr_html_()
        assert "life-scheduler" in html
    assert cluster.status == distributed.Status.closed
    assert any("Scheduler at tls://" in line for line in lines)
    assert tls.load("life") is None
    assert (dask.config.config, dask.config.defaults) == before, "the global configuration is left alone"


@pytest.mark.timeout(300)
def test_asynchronous_and_adaptive():
    async def work():
        adaptive = {"minimum": 0, "maximum": 2, "interval": "100ms", "wait_count": 2}
        async with (
            LocalVMCluster("adapt", adaptive=adaptive, asynchronous=True, **SMALL) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            for _ in range(5):  # up from nothing, and down to nothing: the machines really end
                assert await client.submit(sum, [1, 2], pure=False) == 3
                assert 1 <= len([vm for vm in await cluster.machines() if vm.role == "worker"]) <= 2
                while len(await cluster.machines()) > 1:
                    await asyncio.sleep(0.1)

    asyncio.run(work())


def test_detach_adopt_and_exists(tmp_path):
    cluster = LocalVMCluster("stay", n_workers=1, **SMALL)
    cluster.ready()
    cluster.detach()
    cluster.close()
    stayed = names()
    assert len(stayed) == 1

    program = (
        "from dask_cloudvm import from_name\n"
        "with from_name('stay') as cluster, cluster.get_client() as client:\n"
        "    print(client.submit(lambda: 6 * 7).result())\n"
        "    cluster.scale(2); cluster.ready(2)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "42"
    assert stayed < names(), "the other process added a worker of the same kind, and left all running"

    with pytest.raises(ClusterExists, match=r"'stay' already runs with other options \(nthreads\)"):
        LocalVMCluster("stay", n_workers=1, nthreads=2, **SMALL)
    assert len(names()) == 2

    with LocalVMCluster("stay", n_workers=1, **SMALL) as again:  # the same options: adopted, and scaled
        wait_until(lambda: len(names()) == 1)
        assert len(again.workers) == 1
    assert len(names()) == 1, "who finds a cluster leaves it as it was found"

    profile = tmp_path / "p.yaml"
    profile.write_text("cloudprovider: {cluster: {name: stay, n_workers: 1}, local: {memory_limit: 600 MiB}}")
    with from_profile(profile, shutdown_on_close=True, report=lambda line: None):
        assert len(names()) == 1
    assert ls() == [], "unless told to own it"


def test_from_name_of_nothing():
    with pytest.raises(ClusterNotFound, match="there is no cluster 'nope'; no cluster exists"):
        from_name("nope")
    with pytest.raises(ClusterNotFound):
        LocalVMCluster.from_name("nope")


def test_bad_options_make_nothing():
    with pytest.raises(ProfileError) as caught:
        LocalVMCluster("Bad_Name", n_workers=-1, nthread=2)
    text = str(caught.value)
    assert text.count("\n") == 2
    assert "keyword: nthread: there is no option 'nthread'; did you mean nthreads?" in text
    assert not tls.state_folder().exists()


def test_idle_cluster_ends_by_itself_and_its_name_is_free_again():
    cluster = LocalVMCluster("idle", n_workers=1, idle_timeout="8s", death_timeout="20s", **SMALL)
    cluster.ready()
    cluster.detach()
    cluster.close()
    wait_until(lambda: not any(vm.alive for vm in ls()))
    with pytest.raises(SchedulerLost, match="scheduler of cluster 'idle' has ended; see 'dask-cloudvm logs idle'"):
        from_name("idle", report=lambda line: None)
    with LocalVMCluster("idle", n_workers=0, **SMALL):
        assert names("scheduler") == {"idle-scheduler"}


def test_a_killed_worker_is_replaced_under_a_new_name():
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "200ms"}),
        LocalVMCluster("lost", n_workers=2, **SMALL) as cluster,
    ):
        cluster.ready()
        before = names()
        victim = min(before)
        kill_machine(victim)
        wait_until(lambda: victim not in {vm.name for vm in ls()} and len(cluster.observed - {victim}) == 2)
        assert before - names() == {victim}
        assert set(cluster.worker_spec) == names()


def test_a_dead_scheduler_is_said_and_removed():
    cluster = LocalVMCluster("dead", n_workers=1, **SMALL)
    cluster.ready()
    kill_machine("dead-scheduler")
    with pytest.raises(SchedulerLost, match="scheduler of cluster 'dead' has ended"):
        cluster.ready(2)
    assert "Scheduler at" in "".join(cluster.get_logs().values()), "consoles remain readable"
    cluster.close()
    assert ls() == []


def test_a_scheduler_that_does_not_answer(monkeypatch):
    monkeypatch.setattr("dask_cloudvm.machines.ANSWER", 1.0)
    cluster = LocalVMCluster("mute", **SMALL)
    [vm] = ls()
    [process, *_] = local_records.processes({vm.id})
    process.suspend()
    with pytest.raises(SchedulerLost, match="does not answer; see 'dask-cloudvm logs mute', remove it by"):
        LocalVMCluster("mute", start_timeout="1s", **SMALL)
    assert down("mute") == [vm], "down needs no answer"
    cluster.detach()
    cluster.close()


def test_attempts_to_connect_stay_short_however_long_a_machine_takes(monkeypatch):
    attempts = []

    async def connect(address, timeout, **_):
        attempts.append(timeout)
        if len(attempts) % 50:
            raise OSError("refused")
        return "comm"

    monkeypatch.setattr(machines, "connect", connect)
    assert asyncio.run(machines._connect("tls://10.0.0.4:8786", machines.security({}), 600)) == "comm"
    assert len(attempts) == 50 and max(attempts) <= machines.TRY
    with pytest.raises(OSError, match="refused"):
        asyncio.run(machines._connect("tls://10.0.0.4:8786", machines.security({}), machines.TRY))


def test_a_scheduler_that_cannot_start_leaves_nothing():
    with pytest.raises(
        StartError, match=r"the scheduler's machine ended; the last lines of its log:\n(.*\n)*.*no_such_module"
    ):
        LocalVMCluster("broken", n_workers=2, scheduler_options={"preload": "no_such_module"}, **SMALL)
    assert tls.load("broken") is None


def test_a_worker_that_cannot_start_is_said():
    message = r"worker wrong-worker-.*-0 ended before it joined; .*log:\n"
    cluster = LocalVMCluster("wrong", n_workers=1, worker_class="no.such.Class", **SMALL)
    with cluster, pytest.raises(StartError, match=message):
        cluster.ready()


def test_debug_shows_the_calls_without_secrets():
    lines: list[str] = []
    with LocalVMCluster("talk", debug=True, env_vars={"MY_TOKEN": "t0psecret"}, report=lines.append):
        shown = "\n".join(lines)
    assert "distributed.cli.dask_scheduler" in shown
    assert "t0psecret" not in shown and "PRIVATE KEY" not in shown


def test_the_first_error_counts_where_the_clean_up_fails_too(monkeypatch):
    async def fail(*_):
        raise StartError(name="left", what="no answer")

    async def denied(self, vms):
        if vms:
            raise CloudError(doing="remove machines", what="denied", hint="allow it")

    lines: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(cluster_module, "reach", fail)
        patched.setattr(local.Local, "delete", denied)
        with pytest.raises(StartError, match="no answer"):
            LocalVMCluster("left", n_workers=1, report=lines.append)
    left = (
        "Machines of left may still be there: cannot remove machines: denied; allow it; later: dask-cloudvm down left"
    )
    assert lines.count(left) == 1
    assert {vm.name for vm in down("left")} > {"left-scheduler"}


def test_a_cluster_that_is_taken_down_while_it_is_adopted_is_made_anew(monkeypatch):
    first = LocalVMCluster("again", **SMALL)
    first.detach()
    first.close()

    async def meanwhile(*_):
        await api.remove(["again"])
        raise SchedulerLost(name="again", what="does not answer")

    monkeypatch.setattr(cluster_module, "describe", meanwhile)
    with LocalVMCluster("again", n_workers=1, **SMALL) as second:
        second.ready()
        assert len(ls()) == 2


def test_a_name_on_two_clouds_asks_which(monkeypatch):
    class Elsewhere:
        name = "elsewhere"

        async def list(self, cluster=None):
            return [replace(vm, cloud="elsewhere") for vm in here]

    with LocalVMCluster("both", **SMALL):
        here = ls()
        both = [clouds.default("local"), Elsewhere()]

        async def everywhere(cloud):
            return [home for home in both if cloud in (None, home.name)]

        monkeypatch.setattr(api, "everywhere", everywhere)
        with pytest.raises(AmbiguousName, match="'both' on elsewhere and local; choose one by --cloud"):
            from_name("both")
        from_name("both", cloud="local", report=lambda line: None).close()
        monkeypatch.undo()


def test_two_launchers_with_one_name_at_the_same_moment():
    async def work():
        one, two = (LocalVMCluster("twin", n_workers=1, asynchronous=True, **SMALL) for _ in range(2))
        results = await asyncio.gather(one, two, return_exceptions=True)
        [winner] = [result for result in results if not isinstance(result, BaseException)]
        [loser] = [result for result in results if isinstance(result, BaseException)]
        assert isinstance(loser, NameTaken)
        await winner.ready()
        found = await LocalVMCluster.from_name("twin", asynchronous=True, report=lambda line: None)
        assert len(found.workers) == 1, "the loser's certificates did not replace the winner's"
        await found.close()
        await winner.close()

    asyncio.run(work())


def test_another_connection_takes_nothing_from_the_first():
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "200ms"}),
        LocalVMCluster("both", n_workers=1, **SMALL) as cluster,
    ):
        cluster.ready()
        from_name("both", report=lambda line: None).close()
        cluster.scale(2)
        cluster.ready()
        victim = min(names())
        kill_machine(victim)
        wait_until(lambda: victim not in names() and len(names()) == 2)


def test_what_another_launcher_removes_is_not_replaced(monkeypatch):
    monkeypatch.setattr(workers, "REFRESH", 0.3)
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "200ms"}),
        LocalVMCluster("both", n_workers=3, **SMALL) as cluster,
    ):
        cluster.ready()
        with from_name("both", report=lambda line: None) as other:
            other.scale(1)
            wait_until(lambda: len(names()) == 1)
            wait_until(lambda: set(cluster.workers) == set(cluster.worker_spec) == names())


def test_a_scale_that_fails_is_said_and_can_be_repeated(monkeypatch):
    with LocalVMCluster("full", n_workers=1, **SMALL) as cluster:
        cluster.ready()
        with monkeypatch.context() as patch:
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            patch.setattr(local.Local, "_prepare", Mock(side_effect=error))
            cluster.scale(3)
            with pytest.raises(StateError, match="no space left on device; free some space there"):
                cluster.ready(3)
        cluster.scale(2)
        cluster.ready()
        assert len(names()) == 2


def test_an_old_list_removes_no_new_machine():
    with LocalVMCluster("again", **SMALL) as cluster:
        old = cluster.machines()
    with LocalVMCluster("again", **SMALL):
        asyncio.run(clouds.default("local").delete(old))
        assert names("scheduler") == {"again-scheduler"}


def test_a_port_in_use_leaves_nothing():
    with LocalVMCluster("one", **SMALL) as cluster:
        port = ls()[0].port
        with pytest.raises(CloudError, match=f"port {port} .*change cloudprovider.local.port"):
            LocalVMCluster("two", port=port, **SMALL)
        assert {vm.cluster for vm in ls()} == {"one"}
        assert cluster.scheduler_address.endswith(str(port))


def test_cancelled_start_leaves_nothing(monkeypatch):
    async def work(seconds):
        cluster = LocalVMCluster("cancel", n_workers=2, asynchronous=True, **SMALL)
        task = asyncio.ensure_future(cluster._start())
        await asyncio.sleep(seconds)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await cluster._cloud.list() == []

    for seconds in (0.0, 0.05, 0.3, 0.8):
        asyncio.run(work(seconds))


def test_ctrl_c_in_a_notebook_leaves_nothing():
    program = "from dask_cloudvm import LocalVMCluster\nLocalVMCluster('ctrlc', n_workers=2)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(lambda: names("scheduler"))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=40)
    assert b"KeyboardInterrupt" in errors
    assert ls() == []


def test_end_of_the_program_ends_the_cluster_unless_told_otherwise():
    program = "from dask_cloudvm import LocalVMCluster\nLocalVMCluster('{}', shutdown_on_close={})"
    for name, stays in (("goes", False), ("stays", True)):
        subprocess.run([sys.executable, "-c", program.format(name, not stays)], check=True, capture_output=True)
        assert names("scheduler") == ({"stays-scheduler"} if stays else set())
    down("stays")


def test_traffic_is_encrypted_and_keys_stay_where_they_belong():
    with LocalVMCluster("tls", n_workers=1, **SMALL) as cluster:
        cluster.ready()
        scheduler, worker = sorted(ls(), key=lambda vm: vm.role)
        with pytest.raises(OSError):
            asyncio.run(distributed.comm.connect(f"tcp://127.0.0.1:{scheduler.port}", timeout=2))
        with pytest.raises((OSError, ssl.SSLError)):  # encrypted, but by a stranger
            stranger = distributed.Security.temporary().get_connection_args("client")
            asyncio.run(distributed.comm.connect(scheduler.address, timeout=2, **stranger))
        files = {vm.role: {path.name for path in Path(vm.id).glob("*.[pk]e[my]")} for vm in (scheduler, worker)}
        assert files == {
            "scheduler": {"ca.pem", "scheduler.pem", "scheduler.key"},
            "worker": {"ca.pem", "worker.pem", "worker.key"},
        }
        kept = set(tls.load("tls"))
        assert kept == {"ca.pem", "worker.pem", "worker.key", "client.pem", "client.key"}
        folder = tls.state_folder() / "tls" / "tls"
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
        arguments = [" ".join(p.cmdline()) for vm in (scheduler, worker) for p in local_records.processes({vm.id})]
        assert arguments
        assert not any("PRIVATE" in line or "BEGIN" in line for line in arguments)


def test_own_certificates_and_none(tmp_path):
    files = tls.make("own")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    fields = {
        f"tls_{r}_{k}": str(tmp_path / f"{r}.{e}") for r in tls.ROLES for k, e in (("cert", "pem"), ("key", "key"))
    }
    own = distributed.Security(require_encryption=True, tls_ca_file=str(tmp_path / "ca.pem"), **fields)
    for security, protocol in ((own, "tls"), (False, "tcp")):
        with LocalVMCluster("own", n_workers=1, security=security, **SMALL) as cluster, Client(cluster) as client:
            assert cluster.scheduler_address.startswith(f"{protocol}://")
            assert client.submit(sum, [1, 2]).result() == 3
            with from_name("own", report=lambda line: None) as same:
                assert same.scheduler_address == cluster.scheduler_address


HOSTILE = {
    "QUOTES": 'it\'s "so"',
    "SHELL": "$HOME `id` $(id) ; rm",
    "LINES": "a: b\n# c\t",
    "UNICODE": "ü 漢 🎉",
    "TOKEN": "@NAME@",
}


def test_options_reach_the_processes():
    with LocalVMCluster(
        "reach",
        n_workers=1,
        nthreads=3,
        env_vars=HOSTILE,
        worker_options={"resources": {"GPU": 2}},
        scheduler_options={"dashboard": False},
        **SMALL,
    ) as cluster:
        cluster.ready()
        [worker] = cluster.scheduler_info["workers"].values()
        assert worker["nthreads"] == 3
        assert worker["memory_limit"] == 600 * 2**20
        assert worker["resources"] == {"GPU": 2}
        [scheduler] = [vm for vm in ls() if vm.role == "scheduler"]
        assert "--no-dashboard" in local_records.processes({scheduler.id})[0].cmdline()
        with Client(cluster) as client:
            found = client.run(lambda names: {name: os.environ[name] for name in names}, list(HOSTILE))
        assert list(found.values()) == [HOSTILE]


@pytest.mark.parametrize(
    "options",
    [
        {"worker_module": "distributed.cli.dask_worker", "worker_options": {"nworkers": 1, "no_dashboard": True}},
        {"worker_command": f"{sys.executable} -m distributed.cli.dask_worker", "worker_options": {"resources": "A=1"}},
        {"worker_class": "distributed.Worker"},
    ],
)
def test_other_ways_to_run_a_worker(options):
    if options.get("worker_options", {}).pop("no_dashboard", None):
        options["worker_options"]["dashboard"] = False
    with LocalVMCluster("ways", n_workers=1, **options, **SMALL) as cluster:
        cluster.ready()
        assert cluster.observed == names()


def test_memory_limits_hold_and_tasks_may_make_clients():
    def nested():
        with distributed.worker_client() as client:
            return client.submit(sum, [1, 2, 3]).result()

    cluster = LocalVMCluster("limit", n_workers=1, memory_limit="300 MiB", report=lambda line: None)
    with cluster, Client(cluster) as client:
        cluster.ready()
        with pytest.raises((distributed.KilledWorker, MemoryError)):
            client.submit(lambda: len(os.urandom(1 << 20) * 2000)).result(timeout=60)
        assert client.submit(nested).result(timeout=60) == 6


def test_two_clusters_do_not_mix():
    with LocalVMCluster("a", n_workers=1, **SMALL) as a, LocalVMCluster("b", n_workers=1, **SMALL) as b:
        a.ready()
        b.ready()
        assert len(a.observed | b.observed) == 2
        assert type(a).options == type(a).scheduler_options == type(a).worker_options == {}
    assert issubclass(LocalVMCluster, CloudCluster)
