"""The runtime docker with a real daemon: the very launcher and files of a scheduler's user-data run its container."""

from __future__ import annotations

import base64
import json
import resource
import subprocess

import distributed
import pytest

from dask_cloudvm import tls
from dask_cloudvm.machines import security
from dask_cloudvm.userdata import pack
from tests.lab.docker import IMAGE, Docker
from tests.lab.journey import HOSTILE, environ, until
from tests.lab.root import Unavailable
from tests.lab.space import FOLDER

HOME = "/etc/dask-cloudvm"


@pytest.fixture
def docker(lab, tmp_path):
    try:
        yield Docker(lab.space, lab.root, tmp_path / "docker.log")
    except Unavailable as reason:
        pytest.skip(str(reason))


def test_a_scheduler_in_a_container(lab, docker, tmp_path):
    from ec2_boot import files
    from suite import subject

    certificates, env = tls.make("suite"), {**HOSTILE, "LINE": "64 KiB and more: " * 5000}
    # Where this computer does not let more files be opened; that it runs shows that a user's own limit wins.
    limit = "--ulimit nofile={1}:{1}".format(*resource.getrlimit(resource.RLIMIT_NOFILE))
    it = subject("ec2", security=True, docker_image=IMAGE, env_vars=env, docker_args=limit)
    *_, request = it.wanted(it.cloud.offline(), "scheduler", ["suite-scheduler"], certificates=certificates)
    made = files({"UserData": base64.b64encode(pack(request.body["UserData"])).decode()})
    layers = f"lowerdir=/etc,upperdir={FOLDER}/etc,workdir={FOLDER}/etc-work"
    lab.space.run("sh", "-ec", f"cd {FOLDER}; mkdir etc etc-work; mount -t overlay -o {layers} lab /etc; mkdir {HOME}")
    folder = lab.space.folder.parent / HOME[1:]
    command = json.loads(made["run.json"])
    assert command["first"] == ["docker", "pull", "--quiet", IMAGE]
    for name, text in {**made, "run.json": json.dumps({**command, "first": []})}.items():  # it is in no registry
        (folder / name).write_text(text)
    with open(tmp_path / "log", "wb") as log:
        launcher = docker.enter("python3", f"{HOME}/run")
        process = subprocess.Popen(launcher, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    until(lambda: b"Scheduler at:" in (tmp_path / "log").read_bytes() or process.poll(), "the scheduler", 60)
    assert process.poll() is None, (tmp_path / "log").read_text()
    address = f"tls://{lab.space.gateway}:8786"
    with distributed.Client(address, security=security(certificates)) as client:
        there = client.run_on_scheduler(environ)
        assert {name: there.get(name) for name in env} == env
        client.shutdown()
    assert process.wait(timeout=60) == 0
    assert docker.run("docker", "ps", "--all", "--quiet") == ""
