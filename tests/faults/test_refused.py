"""What cannot be done is refused with one message, and no wait is without a limit: on the local cloud."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager
from unittest.mock import Mock

import pytest

from dask_cloudvm import LocalVMCluster, down, ls, tls
from dask_cloudvm.clouds import local, machine
from dask_cloudvm.errors import CloudError, ClusterClosed, NoEventLoop, SchedulerLost, StateError

SMALL = {"memory_limit": "600 MiB", "security": False, "report": lambda line: None}


@pytest.fixture(autouse=True)
def nothing_stays():
    yield
    if left := {vm.cluster for vm in ls()}:
        down(*left)
    assert not left


def test_asynchronous_needs_a_loop():
    with pytest.raises(NoEventLoop, match="make the cluster inside a coroutine"):
        LocalVMCluster("nobody", asynchronous=True, **SMALL)
    assert not tls.state_folder().exists()


def test_a_cluster_that_is_gone_takes_no_workers_and_a_closed_object_says_so():
    cluster = LocalVMCluster("gone", n_workers=0, **SMALL)
    down("gone")
    end = time.monotonic() + 20
    while not cluster._watch_worker_status_comm.closed():
        assert time.monotonic() < end
        time.sleep(0.02)
    with pytest.raises(SchedulerLost, match="the scheduler of cluster 'gone' has ended, or was cut off"):
        cluster.scale(2)
    assert ls() == [] and cluster.worker_spec == {}
    cluster.close()
    for question in (cluster.machines, cluster.get_logs, cluster.ready):
        with pytest.raises(ClusterClosed, match=r"this object of cluster 'gone' is closed; .*from_name\('gone'\)"):
            question()
    cluster.close()


@contextmanager
def held():
    """The lock of local machines in another process, which will not let it go."""
    root = tls.state_folder() / "local"
    root.mkdir(parents=True, exist_ok=True)
    program = (
        "import fcntl, sys, time\n"
        "file = open(sys.argv[1], 'a')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(root / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            yield
        finally:
            holder.kill()


def test_a_lock_that_nobody_lets_go(monkeypatch):
    with LocalVMCluster("kept", n_workers=0, **SMALL) as cluster:
        cluster.detach()
    monkeypatch.setattr(machine, "PATIENCE", 0.1)
    with held():
        for act in (lambda: LocalVMCluster("late", n_workers=0, **SMALL), lambda: down("kept")):
            with pytest.raises(
                StateError, match=r"another process has held .*/\.lock for 0\.1 seconds; end the process"
            ):
                act()
        assert {vm.cluster for vm in ls()} == {"kept"}
    down("kept")
    assert ls() == []


def test_a_machine_that_never_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(local, "START", 0.1)
    script = tmp_path / "frozen.py"
    script.write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(machine, "__file__", str(script))
    with pytest.raises(CloudError, match=r"cannot start a machine: its process did not run within 0\.1 seconds"):
        LocalVMCluster("stuck", n_workers=0, **SMALL)
    assert ls() == []


def test_machines_that_could_not_be_removed_are_removed_by_the_next_attempt(monkeypatch):
    lines = []
    with LocalVMCluster("denied", n_workers=1, **{**SMALL, "report": lines.append}) as cluster:
        cluster.ready()
        refused = CloudError(doing="remove machines", what="you may not", hint="ask for permission")
        with monkeypatch.context() as broken:
            broken.setattr(local.Local, "_delete", Mock(side_effect=refused))
            cluster.scale(0)
            cluster.sync(cluster._correct_state)
            with pytest.raises(CloudError, match="cannot remove machines: you may not; ask for permission"):
                cluster.ready()
            assert len([line for line in lines if "you may not" in line]) == 1 and len(cluster.machines()) == 2
        cluster.scale(0)
        cluster.sync(cluster._correct_state)
        assert len(cluster.machines()) == 1
