"""Clusters on Azure from profile to result, by command line and AzureVMCluster, on machines that boot."""

from __future__ import annotations

import ast
import doctest
import json
import time
from importlib import metadata
from pathlib import Path

import dask
import distributed
import pytest
from azure_boot import Boot
from azure_fake import OTHER, SUBSCRIPTION, Fault
from tools import cli

from dask_cloudvm import AzureVMCluster, from_name
from dask_cloudvm.errors import ClusterExists, StartError

PROFILES = sorted((Path(__file__).parents[2] / "config").glob("azure*.yaml"))
QUIET = {"report": lambda line: None, "region": "eastus"}
ADOPT = {"report": lambda line: None}
MACHINE, DELETE = "virtualMachines.createOrUpdate", "virtualMachines.delete"
SHARED = [
    "resourceGroups.createOrUpdate", "userAssignedIdentities.createOrUpdate", "roleDefinitions.createOrUpdate",
    "roleAssignments.create", "networkSecurityGroups.createOrUpdate", "virtualNetworks.createOrUpdate",
]  # fmt: skip


@pytest.fixture
def boot(azure, tmp_path):
    boot = Boot(tmp_path, azure)
    yield boot
    for name in list(boot.running):
        boot.end(name)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.stem)
def test_a_profile_from_up_to_down(azure, boot, port, profile):
    settings = [f"scheduler_options={{port: {port}}}", "worker_class=distributed.Nanny", "firewall.cidr=me"]
    sets = [part for setting in settings for part in ("--set", setting)]
    planned = json.loads(cli("plan", str(profile), "--name", "demo", "--n-workers", "2", *sets, "-o", "json").stdout)
    assert azure.writes() == []
    operations = [call["operation"] for call in planned["create"]]
    assert operations == [*SHARED, MACHINE, MACHINE] and planned["create"][-1]["names"][1:] == ["demo-worker-new-1"]
    cli("up", str(profile), "--name", "demo", "--n-workers", "2", *sets)
    assert azure.writes() == [*operations, MACHINE]  # one for each of the workers
    bodies = [body for _, body in azure.sent()]
    for call, body in zip([*planned["create"][-2:], planned["create"][-1]], bodies, strict=True):
        assert call["body"]["resource"]["properties"]["storageProfile"] == body["properties"]["storageProfile"]
    with from_name("demo", **ADOPT) as cluster, distributed.Client(cluster) as client:
        client.wait_for_workers(2, timeout=60)
        assert client.submit(sum, [1, 2, 3]).result(timeout=60) == 6
        names = {w["name"] for w in client.scheduler_info()["workers"].values()}
        assert cluster.scheduler_address.startswith("tls://")
    assert names == set(azure.there()) - {"demo-scheduler"}
    cli("down", "demo")
    assert azure.there() == {} and azure.leftovers() == [] and azure.count()[DELETE] == 3


def test_a_cluster_of_a_subscription_that_only_its_profile_names_is_found(azure, boot, port):
    azure.subscriptions[OTHER] = "Production"
    assert "there are 2 subscriptions" in cli("ls").stderr
    options = {"subscription_id": SUBSCRIPTION, "scheduler_options": {"port": port}, "n_workers": 0, **QUIET}
    with AzureVMCluster("far", **options) as cluster:
        cluster.detach()
    assert "far   azure" in cli("ls").stdout
    AzureVMCluster.from_name("far", **ADOPT).close()
    assert cli("scale", "far", "1").stdout == "far has 1 worker\n"
    assert cli("down", "far").stderr == ""
    assert azure.there() == {}


def test_scale_up_and_down_in_bulk(azure, boot, port):
    options = {"scheduler_options": {"port": port}, "n_workers": 1, **QUIET}
    with AzureVMCluster("bulk", **options) as cluster, distributed.Client(cluster) as client:
        client.wait_for_workers(1, timeout=60)
        before = len(azure.writes())
        cluster.scale(3)
        client.wait_for_workers(3, timeout=60)
        assert azure.writes()[before:] == [MACHINE] * 2
        cluster.scale(1)
        end = time.monotonic() + 60
        while len(azure.there()) != 2:
            assert time.monotonic() < end
            time.sleep(0.1)
    assert azure.there() == {}


def test_the_same_cluster_again_is_adopted_and_another_refused(azure, boot, port):
    options = {"scheduler_options": {"port": port}, "n_workers": 0, **QUIET}
    with AzureVMCluster("again", **options):
        writes = len(azure.writes())
        with AzureVMCluster("again", **options, shutdown_on_close=False):
            assert len(azure.writes()) == writes
        with pytest.raises(ClusterExists, match="machine_type"):
            AzureVMCluster("again", **options, machine_type="Standard_D4s_v5")
    assert azure.there() == {}


def test_no_place_for_the_scheduler_names_the_options(azure):
    azure.capacity = {("Standard_D2s_v5", None, False): 0}
    with pytest.raises(StartError) as caught:
        AzureVMCluster("none", n_workers=2, **QUIET)
    assert "We do not have sufficient capacity" in str(caught.value)
    assert "give more entries in zone or machine_type (vm_size)" in str(caught.value)
    assert azure.leftovers() == []


def test_a_failed_start_leaves_nothing(azure, boot, port):
    real = boot.run

    def then_fail(body, name):
        real(body, name)
        message = (
            "The client 'x' does not have authorization to perform action 'Microsoft.Compute/virtualMachines/write'"
        )
        azure.faults = [Fault(MACHINE, message, "AuthorizationFailed", 403, times=9)]

    azure.on_run = then_fail
    with pytest.raises(Exception, match=r"grant Microsoft\.Compute/virtualMachines/write"):
        AzureVMCluster("broken", n_workers=2, scheduler_options={"port": port}, **QUIET)
    assert azure.there() == {}


def test_the_documented_examples_of_dask_cloudprovider(azure, boot, port, tmp_path, monkeypatch):
    """https://cloudprovider.dask.org/en/latest/azure.html, with nothing changed but the import.

    What stands in angle brackets there are names that the reader has; the last one's GPU is played by a file.
    """
    [path] = [each for each in metadata.files("dask-cloudprovider") if str(each).endswith("azure/azurevm.py")]
    tree = ast.parse(Path(path.locate()).read_text())
    [documented] = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "AzureVMCluster"]
    examples = doctest.DocTestParser().get_examples(ast.get_docstring(documented))
    assert len(examples) == 17
    azure.network()
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "dask_cuda.py").write_text("from distributed import Nanny as CUDAWorker\n")
    (tmp_path / "gpu" / "pynvml.py").write_text(
        "nvmlInit = nvmlDeviceGetHandleByIndex = lambda *_: None\nnvmlDeviceGetName = lambda _: b'Tesla V100'\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "gpu"))
    monkeypatch.setenv("DASK_DISTRIBUTED__DIAGNOSTICS__NVML", "False")  # Dask's own use of pynvml
    names: dict[str, object] = {}
    with dask.config.set({"cloudprovider.azure.scheduler_options": {"port": port}}):
        for example in examples:
            source = example.source.replace("from dask_cloudprovider.azure import", "from dask_cloudvm import")
            for given, name in (("resource group", "my-group"), ("vnet", "my-vnet"), ("security group", "my-nsg")):
                source = source.replace(f"<{given}>", name)
            exec(compile(source, "<documentation>", "single"), names)
    assert azure.there() == {} and azure.count()[MACHINE] == 6 and azure.leftovers() == []
