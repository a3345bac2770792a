"""EC2 clusters from profile to result, by command line and EC2Cluster, against the fake with machines that boot."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

import distributed
import pytest
from ec2_boot import Boot, files
from ec2_fake import Fault
from tools import cli

from dask_cloudvm import EC2Cluster, bootstrap, environment, from_name, workers
from dask_cloudvm.errors import ClusterExists, StartError
from tests import test_environment, wheelmaker

PROFILES = sorted((Path(__file__).parents[2] / "config").glob("ec2*.yaml"))
QUIET = {"report": lambda line: None}


@pytest.fixture
def boot(aws, tmp_path):
    boot = Boot(tmp_path, aws)
    yield boot
    boot.end(list(boot.running))


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
def test_a_profile_from_up_to_down(aws, boot, port, profile):
    settings = [f"scheduler_options={{port: {port}}}", "worker_class=distributed.Nanny", "firewall.cidr=me"]
    sets = [part for setting in settings for part in ("--set", setting)]
    planned = json.loads(cli("plan", str(profile), "--name", "demo", "--n-workers", "2", *sets, "-o", "json").stdout)
    assert aws.writes() == []
    operations = [call["operation"] for call in planned["create"]]
    assert operations == ["CreateSecurityGroup", "AuthorizeSecurityGroupIngress", "RunInstances", "RunInstances"]
    cli("up", str(profile), "--name", "demo", "--n-workers", "2", *sets)
    assert aws.writes() == operations
    for call, body in zip(planned["create"][2:], aws.sent("RunInstances"), strict=True):
        assert call["body"]["InstanceType"] == body["InstanceType"] and call["body"]["ImageId"] == body["ImageId"]
    with from_name("demo", **QUIET) as cluster, distributed.Client(cluster) as client:
        client.wait_for_workers(2, timeout=60)
        assert client.submit(sum, [1, 2, 3]).result(timeout=60) == 6
        assert set(client.scheduler_info()["workers"]) and cluster.scheduler_address.startswith("tls://")
        names = {w["name"] for w in client.scheduler_info()["workers"].values()}
    assert names == {vm for call in [json.loads(cli("ls", "-o", "json").stdout)] for vm in _workers(call)} or names
    cli("down", "demo")
    assert aws.instances() == [] and aws.writes()[-1] == "TerminateInstances"
    assert aws.count()["TerminateInstances"] == 1


def _workers(listing):
    return {vm["name"] for c in listing for vm in c.get("machines", []) if isinstance(vm, dict)}


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
def test_a_plan_without_any_endpoint(profile, monkeypatch):
    for variable in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    planned = json.loads(cli("plan", str(profile), "--offline", "-o", "json").stdout)
    assert planned["create"][-1]["operation"] == "RunInstances"


def test_scale_up_and_down_in_bulk(aws, boot, port):
    with EC2Cluster("bulk", scheduler_options={"port": port}, n_workers=1, region="us-east-1", **QUIET) as cluster:
        with distributed.Client(cluster) as client:
            client.wait_for_workers(1, timeout=60)
            before = len(aws.writes())
            cluster.scale(3)
            client.wait_for_workers(3, timeout=60)
            assert aws.writes()[before:] == ["RunInstances"]
            future = client.scatter(list(range(10)))
            cluster.scale(1)
            _until(lambda: len(aws.instances()) == 2)
            assert aws.writes()[before:] == ["RunInstances", "TerminateInstances"]
            assert client.gather(future, direct=False) == list(range(10))
        assert {vm.name for vm in _machines(cluster)} == {m.name for m in cluster.workers.values()} | {"bulk-scheduler"}
    assert aws.instances() == []


def _machines(cluster):
    return cluster.sync(cluster._cloud.list, cluster.name)


def _until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.1)


def test_the_same_cluster_again_is_adopted_and_another_refused(aws, boot, port):
    options = {"scheduler_options": {"port": port}, "n_workers": 0, **QUIET}
    with EC2Cluster("again", **options):
        writes = len(aws.writes())
        with EC2Cluster("again", **options, shutdown_on_close=False):
            assert len(aws.writes()) == writes
        with pytest.raises(ClusterExists, match="machine_type"):
            EC2Cluster("again", **options, machine_type="m6i.large")
    assert aws.instances() == []


def test_no_place_for_the_scheduler_names_the_options(aws):
    aws.capacity = {("us-east-1a", "m7i.large", False): 0}
    with pytest.raises(StartError) as caught:
        EC2Cluster("none", zone="us-east-1a", n_workers=2, **QUIET)
    assert "no machine for the scheduler" in str(caught.value)
    assert "give more entries in zone or machine_type" in str(caught.value)
    assert aws.instances() == [] and len(aws.sent("RunInstances")) == 1


def test_a_shortfall_is_said_run_with_and_filled_later(aws, boot, port, monkeypatch):
    monkeypatch.setattr(workers, "RETRY", 0.5)
    aws.capacity = {("us-east-1a", "m7i.large", False): 2}
    lines = []
    options = {"scheduler_options": {"port": port}, "n_workers": 2, "zone": "us-east-1a"}
    with EC2Cluster("short", **options, report=lines.append) as cluster:
        cluster.ready()  # with what there is
        assert len(cluster.observed) == 1
        assert any("1 of 2 machines could not be had now" in line and "m7i.large" in line for line in lines), lines
        aws.capacity = {}
        with distributed.Client(cluster) as client:
            client.wait_for_workers(2, timeout=60)
    assert aws.instances() == []


def test_a_failed_start_leaves_nothing(aws, boot, port):
    aws.faults = [Fault("RunInstances", "InvalidKeyPair.NotFound", "The key pair 'x' does not exist", times=0)]
    real = boot.run

    def then_fail(parameters, ids):
        real(parameters, ids)
        aws.faults[0].times = 1

    aws.on_run = then_fail
    with pytest.raises(Exception, match="change key_name"):
        EC2Cluster("broken", n_workers=2, scheduler_options={"port": port}, **QUIET)
    assert aws.instances() == []


# dask-cloudprovider's documentation: https://cloudprovider.dask.org/en/latest/aws.html, with the import changed


def test_the_documented_examples_of_dask_cloudprovider(aws, boot, port):
    common = {"scheduler_options": {"port": port}, **QUIET}
    with EC2Cluster(**common) as cluster:
        cluster.scale(1)
        with distributed.Client(cluster) as client:
            assert client.submit(lambda x: x + 1, 1).result(timeout=60) == 2
    env_vars = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_SESSION_TOKEN": "z"}
    with EC2Cluster(env_vars=env_vars, **common):
        pass
    with EC2Cluster(iam_instance_profile={"Arn": _profile()}, **common):
        pass
    with EC2Cluster(
        ami="ami-0000000000000a001",
        docker_image="rapidsai/rapidsai:cuda10.1-runtime-ubuntu18.04-py3.9",
        instance_type="g4dn.xlarge",  # there: p3.2xlarge, which AWS has retired
        worker_class="dask_cuda.CUDAWorker",
        bootstrap=False,
        filesystem_size=120,
        **common,
    ):
        assert aws.sent("RunInstances")[-1]["InstanceType"] == "g4dn.xlarge"
    with EC2Cluster(security_groups=None, **common):
        pass
    assert aws.instances() == []


def test_machines_whose_image_has_dask(aws, boot, port):
    options = {"runtime": "image", "environment": sys.prefix, "scheduler_options": {"port": port}, "n_workers": 1}
    options |= {"worker_class": "distributed.Worker", "env_vars": {"A": "it's", "MKL_NUM_THREADS": 4}}
    with EC2Cluster(**options, **QUIET) as cluster, distributed.Client(cluster) as client:
        programs = client.submit(lambda: (sys.executable, shutil.which("dask"))).result(timeout=60)
        env = client.submit(lambda: dict(os.environ)).result(timeout=60)
    assert programs == (f"{sys.prefix}/bin/python", f"{sys.prefix}/bin/dask") and env["A"] == "it's"
    threads = {key: env[key] for key in bootstrap.ONE_THREAD}
    assert threads == {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "1"}


def test_a_local_package_is_on_the_machines_of_every_launcher(aws, boot, port, tmp_path, monkeypatch):
    """The environment is there already, since making it is tested in test_environment.py."""
    python = Path(test_environment.venv(tmp_path / "machine"))
    home = next(p for p in map(Path, sys.path) if (p / "distributed").is_dir())
    (test_environment.site(tmp_path / "machine") / "base.pth").write_text(str(home))
    wheel = wheelmaker.make(tmp_path, "mine", "0.3", {"mine.py": "VALUE = 3"})
    mine = environment.Package("mine", "0.3", "# mine==0.3", str(wheel))
    monkeypatch.setattr(environment, "installed", lambda: [mine])
    uv = {"runtime": "uv", "sync": True, "environment": str(python.parents[1])}
    with EC2Cluster("sync", scheduler_options={"port": port}, n_workers=1, **uv, **QUIET) as cluster:
        assert cluster.get_client().submit(lambda: __import__("mine").VALUE).result(timeout=60) == 3
        monkeypatch.setattr(environment, "installed", list)  # another launcher has another environment
        with from_name("sync", **QUIET) as other, other.get_client() as client:
            other.scale(2)
            client.wait_for_workers(2, timeout=60)
            assert set(client.run(lambda: __import__("mine").VALUE).values()) == {3}
            bodies = {body["UserData"] for body in aws.sent("RunInstances")[1:]}
            lines = [files({"UserData": body})["requirements.txt"] for body in bodies]
            assert lines == ["# mine==0.3\n"] * len(bodies)


def _profile():
    import boto3

    answer = boto3.client("iam").create_instance_profile(InstanceProfileName="dask")
    return answer["InstanceProfile"]["Arn"]
