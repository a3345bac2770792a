"""Clusters on Compute Engine from profile to result, by command line and GCPCluster, on machines that boot."""

from __future__ import annotations

import ast
import doctest
import json
import os
import time
from importlib import metadata
from pathlib import Path

import dask
import distributed
import pytest
from gcp_boot import Boot
from gcp_fake import PROJECT, Fault
from tools import cli

from dask_cloudvm import GCPCluster, from_name, tls
from dask_cloudvm.errors import ClusterExists, StartError

PROFILES = sorted((Path(__file__).parents[2] / "config").glob("gcp*.yaml"))
QUIET = {"report": lambda line: None}
RULES, INSERT = ["firewalls.insert"] * 2, "instances.bulkInsert"


@pytest.fixture
def boot(gcp, tmp_path):
    boot = Boot(tmp_path, gcp)
    yield boot
    for name in list(boot.running):
        boot.end(name)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
def test_a_profile_from_up_to_down(gcp, boot, port, profile):
    settings = [f"scheduler_options={{port: {port}}}", "worker_class=distributed.Nanny", "firewall.cidr=me"]
    sets = [part for setting in settings for part in ("--set", setting)]
    planned = json.loads(cli("plan", str(profile), "--name", "demo", "--n-workers", "2", *sets, "-o", "json").stdout)
    assert gcp.writes() == []
    operations = [call["operation"] for call in planned["create"]]
    assert operations == [*RULES, INSERT, INSERT]
    up = cli("up", str(profile), "--name", "demo", "--n-workers", "2", *sets)
    assert "machines delete themselves when Dask ends on them" in up.stderr
    assert gcp.writes() == operations
    for call, (where, body) in zip(planned["create"][2:], gcp.sent(), strict=True):
        assert call["body"]["zone"] == where["zone"]
        assert call["body"]["resource"]["instanceProperties"]["disks"] == body["instanceProperties"]["disks"]
    with from_name("demo", **QUIET) as cluster, distributed.Client(cluster) as client:
        client.wait_for_workers(2, timeout=60)
        assert client.submit(sum, [1, 2, 3]).result(timeout=60) == 6
        names = {w["name"] for w in client.scheduler_info()["workers"].values()}
        assert cluster.scheduler_address.startswith("tls://")
    assert names == set(gcp.there()) - {"demo-scheduler"}
    cli("down", "demo")
    assert gcp.there() == {} and gcp.count()["instances.delete"] == 3


def test_a_cluster_of_a_project_that_only_its_profile_names_is_found(gcp, boot, port, tmp_path, monkeypatch):
    key = json.loads(Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"]).read_text())
    (tmp_path / "key.json").write_text(json.dumps({**key, "project_id": None}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    assert "no project is chosen" in cli("ls", "--cloud", "gcp", check=False).stderr
    options = {"projectid": PROJECT, "scheduler_options": {"port": port}, "n_workers": 0, **QUIET}
    with GCPCluster("far", **options) as cluster:
        cluster.detach()
    assert "far   gcp" in cli("ls").stdout
    GCPCluster.from_name("far", **QUIET).close()
    assert cli("scale", "far", "1").stdout == "far has 1 worker\n"
    noted = tls.state_folder() / "gcp-places"
    assert noted.read_text() == PROJECT
    noted.unlink()  # as on another computer
    assert "no project is chosen" in cli("status", "far", check=False).stderr
    file = Path(os.environ["DASK_CONFIG"]) / "mine.yaml"
    file.write_text(f"cloudprovider: {{gcp: {{projectid: {PROJECT}}}}}")
    assert "far" in cli("status", "far").stdout
    file.unlink()
    monkeypatch.setenv("DASK_CLOUDPROVIDER__GCP__PROJECTID", PROJECT)
    cli("down", "far")
    assert gcp.there() == {}


def test_scale_up_and_down_in_bulk(gcp, boot, port):
    options = {"scheduler_options": {"port": port}, "n_workers": 1, **QUIET}
    with GCPCluster("bulk", **options) as cluster, distributed.Client(cluster) as client:
        client.wait_for_workers(1, timeout=60)
        before = len(gcp.writes())
        cluster.scale(3)
        client.wait_for_workers(3, timeout=60)
        assert gcp.writes()[before:] == [INSERT]
        cluster.scale(1)
        end = time.monotonic() + 60
        while len(gcp.there()) != 2:
            assert time.monotonic() < end
            time.sleep(0.1)
    assert gcp.there() == {}


def test_the_same_cluster_again_is_adopted_and_another_refused(gcp, boot, port):
    options = {"scheduler_options": {"port": port}, "n_workers": 0, **QUIET}
    with GCPCluster("again", **options):
        writes = len(gcp.writes())
        with GCPCluster("again", **options, shutdown_on_close=False):
            assert len(gcp.writes()) == writes
        with pytest.raises(ClusterExists, match="machine_type"):
            GCPCluster("again", **options, machine_type="n2-standard-4")
    assert gcp.there() == {}


def test_no_place_for_the_scheduler_names_the_options(gcp):
    gcp.capacity = {("us-east1-c", "e2-standard-2", False): 0}
    with pytest.raises(StartError) as caught:
        GCPCluster("none", n_workers=2, **QUIET)
    assert "does not have enough resources available" in str(caught.value)
    assert "give more entries in zone or machine_type" in str(caught.value)
    assert gcp.instances == {}


def test_a_failed_start_leaves_nothing(gcp, boot, port):
    real = boot.run

    def then_fail(body, name):
        real(body, name)
        gcp.faults = [
            Fault(INSERT, "Required 'compute.instances.create' permission for 'x'", "forbidden", 403, times=1)
        ]

    gcp.on_run = then_fail
    with pytest.raises(Exception, match=r"grant compute\.instances\.create"):
        GCPCluster("broken", n_workers=2, scheduler_options={"port": port}, **QUIET)
    assert gcp.there() == {}


def test_the_documented_examples_of_dask_cloudprovider(gcp, boot, port):
    """https://cloudprovider.dask.org/en/latest/gcp.html, with nothing changed but the import."""
    [path] = [each for each in metadata.files("dask-cloudprovider") if str(each).endswith("gcp/instances.py")]
    tree = ast.parse(Path(path.locate()).read_text())
    [documented] = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "GCPCluster"]
    examples = doctest.DocTestParser().get_examples(ast.get_docstring(documented))
    assert len(examples) == 9
    names: dict[str, object] = {}
    with dask.config.set({"cloudprovider.gcp.scheduler_options": {"port": port}}):
        for example in examples:
            source = example.source.replace("from dask_cloudprovider.gcp import", "from dask_cloudvm import")
            exec(compile(source, "<documentation>", "single"), names)
    assert gcp.there() == {} and gcp.count()[INSERT] == 4
