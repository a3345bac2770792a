"""The local cloud by itself: machines as processes, records as tags. No Dask in here."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dask_cloudvm import schema, tls
from dask_cloudvm.clouds import local, local_records, machine
from dask_cloudvm.clouds.local import Local
from dask_cloudvm.errors import CloudError, StateError
from dask_cloudvm.plan import Request

SLEEP = [sys.executable, "-c", "import time; print('booted', flush=True); time.sleep(600)"]


def make(**values: object) -> Local:
    return Local({name: option.default for name, option in schema.options("local").items()} | values)


def request(names: list[str], argv: list[str] = SLEEP, cluster: str = "c", **body: object) -> Request:
    tags = {"cluster": cluster, "role": "worker", "options": "0" * 12}
    whole = {"tags": tags, "protocol": "tls", "port": None, "host": "127.0.0.1", "argv": argv, "env": {}, "files": {}}
    return Request("start", tuple(names), whole | body)


@pytest.fixture
def cloud():
    cloud = make()
    yield cloud
    asyncio.run(cloud.delete(asyncio.run(cloud.list())))
    assert not list(cloud.root.glob("[!.]*"))


def create(cloud: Local, names: list[str], **kwargs: object):
    return asyncio.run(cloud.create(request(names, **kwargs)))


def pid_of(vm) -> int:
    return json.loads((Path(vm.id) / machine.RECORD).read_text())["pid"]


def wait_until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def test_a_machine_is_listed_until_it_is_deleted(cloud):
    made = create(cloud, ["a", "b"])
    assert [vm.name for vm in made] == ["a", "b"]
    assert asyncio.run(cloud.list("c")) == asyncio.run(cloud.list()) == made
    assert {vm.state for vm in made} == {"running"}
    pids = [pid_of(vm) for vm in made]
    asyncio.run(cloud.delete(made[:1]))
    assert [vm.name for vm in asyncio.run(cloud.list())] == ["b"]
    assert [machine.started(pid) is not None for pid in pids] == [False, True]
    asyncio.run(cloud.delete(made))  # one of them a second time
    assert asyncio.run(cloud.list()) == []


def test_records_and_files_are_private(cloud):
    [vm] = create(cloud, ["a"], files={"secret.key": "k"})
    paths = [Path(vm.id), *Path(vm.id).iterdir()]
    assert {path.name for path in paths} >= {"a", machine.RECORD, local.LOG, "secret.key"}
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in paths)


def test_a_machine_outlives_its_launcher_and_is_nobodys_child(cloud):
    program = "import asyncio, tests.test_local as t; t.create(t.make(), ['a'])"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])
    [vm] = asyncio.run(cloud.list())
    process = psutil.Process(pid_of(vm))
    assert vm.state == "running"
    assert process.ppid() != os.getpid()
    assert os.getsid(process.pid) == process.pid


def test_names_and_folders_are_filled_in(cloud):
    show = "import os, sys; print(sys.argv[1], os.environ['WHERE'] == os.getcwd())"
    argv = [sys.executable, "-c", show, local.bootstrap.NAME]
    [vm] = create(cloud, ["a"], argv=argv, env={"WHERE": local.bootstrap.DIR})
    wait_until(lambda: asyncio.run(cloud.console(vm)) == "a True\n")
    wait_until(lambda: asyncio.run(cloud.list())[0].state == "ended")


def test_a_recycled_process_number_is_never_killed(cloud):
    with subprocess.Popen(SLEEP, stdout=subprocess.DEVNULL) as innocent:
        [vm] = create(cloud, ["a"])
        os.kill(pid_of(vm), signal.SIGKILL)
        path = Path(vm.id) / machine.RECORD
        record = json.loads(path.read_text())
        tls.write_private(path, json.dumps(record | {"pid": innocent.pid}))  # a later process got the number
        [vm] = asyncio.run(cloud.list())
        assert vm.state == "ended"
        asyncio.run(cloud.delete([vm]))
        assert innocent.poll() is None
        innocent.kill()


def test_processes_that_left_the_session_end_with_their_machine(cloud):
    daemon = "import os, time; os.fork() or (os.setsid(), time.sleep(600)); time.sleep(600)"
    [vm] = create(cloud, ["a"], argv=[sys.executable, "-c", daemon])
    wait_until(lambda: len(local_records.processes({vm.id})) == 2)
    processes = local_records.processes({vm.id})
    asyncio.run(cloud.delete([vm]))
    assert not any(local_records.runs(process) for process in processes)


def test_a_process_that_ignores_sigterm_ends_too(cloud):
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    [vm] = create(cloud, ["a"], argv=[sys.executable, "-c", stubborn])
    wait_until(lambda: "deaf" in asyncio.run(cloud.console(vm)))
    pid = pid_of(vm)
    asyncio.run(cloud.delete([vm]))
    assert machine.started(pid) is None


def test_a_machine_without_a_record_does_nothing(cloud):
    create(cloud, ["a"])
    gone = cloud.root / "c" / "gone"
    command = [sys.executable, "-I", "-S", machine.__file__, str(cloud.root), str(gone)]
    done = subprocess.run(command, capture_output=True, timeout=10)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert not local_records.processes({str(gone)})


def test_a_machine_that_never_registered_is_pending_and_then_ended(cloud, monkeypatch):
    cloud.root.mkdir(parents=True)
    cloud._prepare(cloud._claim("c", "a"), "a", request(["a"]).body)  # the launcher was killed right here
    assert [vm.state for vm in asyncio.run(cloud.list())] == ["pending"]
    monkeypatch.setattr(local_records, "BOOT", 0.0)
    assert [vm.state for vm in asyncio.run(cloud.list())] == ["ended"]


def test_a_removal_that_was_killed_can_be_done_again(cloud):
    [vm] = create(cloud, ["a"])
    local_records.stop(Path(vm.id), local_records.record_of(Path(vm.id)))  # and here the launcher is killed
    assert [vm.name for vm in asyncio.run(cloud.list())] == ["a"]
    asyncio.run(cloud.delete(asyncio.run(cloud.list())))
    (cloud.root / "c" / "b-scheduler").mkdir(parents=True)  # or here, before there was a record
    [half] = asyncio.run(cloud.list())
    assert (half.name, half.cluster, half.role, half.state) == ("b-scheduler", "c", "scheduler", "ended")
    asyncio.run(cloud.delete([half]))
    assert asyncio.run(cloud.list()) == []


def test_a_command_that_cannot_run_leaves_nothing(cloud):
    with pytest.raises(CloudError, match="cannot run /no/such/program: No such file"):
        create(cloud, ["a", "b"], argv=["/no/such/program"])
    assert asyncio.run(cloud.list()) == []


@pytest.mark.parametrize("code, hint", [(errno.ENOSPC, "free some space"), (errno.EACCES, "make it writable")])
def test_a_full_or_forbidden_disk_leaves_nothing(cloud, monkeypatch, code, hint):
    write = tls.write_private

    def fail_on_second(path, text):
        if "b" in path.parts:
            raise OSError(code, os.strerror(code))
        write(path, text)

    monkeypatch.setattr(tls, "write_private", fail_on_second)
    with pytest.raises(StateError, match=f"cannot start machines in .*{hint}.*XDG_STATE_HOME"):
        create(cloud, ["a", "b"])
    assert asyncio.run(cloud.list()) == []


def test_a_state_folder_that_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(StateError, match="not a directory"):
        create(make(), ["a"])


def test_a_port_in_use_is_named_with_its_option():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for option in ("port", "dashboard_port"):
            with pytest.raises(CloudError, match=f"port {port} .* in use; change cloudprovider.local.{option}"):
                asyncio.run(make(**{option: port}).facts(None))


def test_an_unknown_interface_lists_those_that_exist():
    with pytest.raises(CloudError, match=r"no network interface 'eth99'.*lo.*local.interface"):
        asyncio.run(make(interface="eth99").facts(None))


def test_a_long_log_is_cut_to_its_end(cloud):
    argv = [sys.executable, "-c", "print('x' * 200_000 + 'end')"]
    [vm] = create(cloud, ["a"], argv=argv)
    wait_until(lambda: asyncio.run(cloud.console(vm)).endswith("end\n"))
    assert len(asyncio.run(cloud.console(vm))) == local.TAIL
