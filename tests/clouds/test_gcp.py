"""Google's own ways: places, network, capacity, operations, what is sent. All through real google-auth over HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import re
import subprocess

import pytest
from click.testing import CliRunner
from gcp_boot import files
from gcp_fake import HOST_PROJECT, PROJECT, TYPES, Fault, user_data
from suite import CLUSTER, alive, run, subject, workers

from dask_cloudvm import api, leftovers, tls
from dask_cloudvm import plan as planning
from dask_cloudvm.cli import gc
from dask_cloudvm.clouds import gcp as gcp_module
from dask_cloudvm.clouds import gcp_facts, gcp_session
from dask_cloudvm.errors import CloudError, CloudVMError, ClusterNotFound, NameTaken
from dask_cloudvm.userdata import pack

SCHEDULER = planning.scheduler_name(CLUSTER)
B, C, D = "us-east1-b", "us-east1-c", "us-east1-d"
RULES = ["firewalls.insert"] * 2
INSERT = "instances.bulkInsert"


def scheduler(**settings):
    [vm] = run(subject("gcp", **settings).create("scheduler", [SCHEDULER]))
    return vm


def refused(message, **settings):
    with pytest.raises(CloudVMError) as caught:
        run(subject("gcp", **settings).cluster(2))
    assert message in str(caught.value), str(caught.value)
    return str(caught.value)


def properties(gcp):
    """The scheduler's and the workers' instanceProperties."""
    return [body["instanceProperties"] for _, body in gcp.sent()]


# Number of calls


def test_a_cluster_is_two_writes_and_a_constant_number_of_reads(gcp):
    """The first cluster of a network makes the shared rules as well."""
    counts = set()
    for n in (1, 10, 60):
        gcp.calls.clear()
        it = subject("gcp")

        async def cluster(it=it, n=n):
            facts = await it.cloud.facts(None)
            for role, wanted in (("scheduler", [SCHEDULER]), ("worker", workers(n))):
                for request in it.wanted(facts, role, wanted):
                    assert len(await it.cloud.create(request)) == len(request.names)

        run(cluster())
        assert gcp.writes()[-2:] == [INSERT] * 2
        assert gcp.writes()[:-2] == ([] if counts else RULES)
        counts.add(len(gcp.reads()))
        run(it.cloud.delete(run(it.cloud.list(CLUSTER))))
    assert counts == {6}  # machine types, network, rules, image, and one list after each write


def test_deleting_many_is_one_request(gcp):
    it = subject("gcp")
    made = run(it.cluster(60))
    gcp.http.clear()
    run(it.cloud.delete(made))
    assert gcp.count()["instances.delete"] == 61 and gcp.http == {"v1": 1}
    assert gcp.there() == {}


def test_deleting_a_hundred_takes_as_many_requests_as_deleting_one(gcp):
    it = subject("gcp")
    made = run(it.cluster(101))
    requests = []
    for vms in (made[:1], made[1:]):
        gcp.http.clear()
        run(it.cloud.delete(vms))
        requests.append(sum(gcp.http.values()))
    assert requests == [1, 1]
    assert gcp.there() == {}


# What is sent


def test_the_body_of_a_scheduler_and_its_workers(gcp):
    made = run(subject("gcp", security=True, instance_tags={"createdBy": "me.and.you", "Cost": 7}).cluster(2))
    for where, body in gcp.sent():
        assert where["project"] == PROJECT and where["zone"] == C and body["minCount"] == "1"
        p = body["instanceProperties"]
        assert p["labels"]["createdby"] == "me-and-you" and p["labels"]["cost"] == "7"
        assert p["labels"] == p["disks"][0]["initializeParams"]["labels"]
        assert p["disks"][0]["autoDelete"] and p["scheduling"]["automaticRestart"] is False
        assert p["serviceAccounts"][0]["email"] == "default"
        assert "https://www.googleapis.com/auth/compute" in p["serviceAccounts"][0]["scopes"]
        assert p["networkInterfaces"][0]["subnetwork"].endswith("/regions/us-east1/subnetworks/default")
        image = p["disks"][0]["initializeParams"]["sourceImage"]
        assert image == "projects/ubuntu-os-cloud/global/images/family/ubuntu-2604-lts-amd64"
    assert [list(body["perInstanceProperties"]) for _, body in gcp.sent()] == [[SCHEDULER], workers(2)]
    assert [vm.name for vm in made] == [SCHEDULER, *workers(2)]


def test_what_a_plan_shows_is_what_is_sent(gcp):
    it = subject("gcp")

    async def both():
        facts = await it.cloud.facts(None)
        requests = it.wanted(facts, "scheduler", [SCHEDULER])
        for request in requests:
            await it.cloud.create(request)
        return requests

    requests = run(both())
    sent = [(p, b) for m, p, b in gcp.calls if m in (INSERT, "firewalls.insert")]
    for request, (parameters, body) in zip(requests, sent, strict=True):
        plain = {k: v for k, v in request.body.items() if k != "resource"}
        assert plain == parameters
        if request.operation == INSERT:
            shown = request.body["resource"]["instanceProperties"]["metadata"]["items"][0]["value"]
            assert shown == user_data(body)
            body["instanceProperties"]["metadata"]["items"][0]["value"] = shown
        assert body == request.body["resource"]


def test_every_machine_learns_its_own_name(gcp):
    run(subject("gcp").cluster(2))
    _, body = gcp.sent()[1]
    for name in workers(2):
        assert json.loads(files(body, name)["worker.json"])["opts"]["name"] == name


def test_a_thousand_names_are_one_request(gcp):
    it = subject("gcp")
    [request] = it.wanted(it.cloud.offline(), "worker", workers(1000))
    assert request.body["resource"]["count"] == "1000"
    assert len(it.wanted(it.cloud.offline(), "worker", workers(1001))) == 2


def test_workers_join_by_the_private_address_and_clients_by_the_public_one(gcp):
    vm = run(subject("gcp").cloud.locate(scheduler()))
    assert vm.address == f"tcp://{vm.private_ip}:8786" and vm.external_address == f"tcp://{vm.public_ip}:8786"
    assert vm.private_ip.startswith("10.") and not vm.public_ip.startswith("10.")


def test_public_ingress_really_means_it(gcp):
    run(subject("gcp", public_ingress=False, scheduler_public_ingress=True).cluster(1))
    first, second = properties(gcp)
    assert first["networkInterfaces"][0]["accessConfigs"][0]["type"] == "ONE_TO_ONE_NAT"
    assert "accessConfigs" not in second["networkInterfaces"][0]
    [first, second] = sorted(run(subject("gcp").cloud.list()), key=lambda vm: vm.role)
    assert first.public_ip and second.public_ip is None and second.external_address == second.address


def test_the_image_suits_the_architecture(gcp):
    run(subject("gcp", worker_machine_type="c4a-standard-2").cluster(1))
    assert [p["disks"][0]["initializeParams"]["sourceImage"][-5:] for p in properties(gcp)] == ["amd64", "arm64"]
    refused("leave image (source_image) out", image="ubuntu-2604-lts-amd64", worker_machine_type="c4a-standard-2")


@pytest.mark.parametrize(
    ("image", "path"),
    [
        ("mine", f"projects/{PROJECT}/global/images/mine"),
        ("my-family", f"projects/{PROJECT}/global/images/family/my-family"),
        ("family/my-family", f"projects/{PROJECT}/global/images/family/my-family"),
        ("ubuntu-2404-lts-amd64", "projects/ubuntu-os-cloud/global/images/family/ubuntu-2404-lts-amd64"),
        (
            "ubuntu-os-cloud/ubuntu-2404-lts-amd64",
            "projects/ubuntu-os-cloud/global/images/family/ubuntu-2404-lts-amd64",
        ),
        ("global/images/mine", f"projects/{PROJECT}/global/images/mine"),
        (f"projects/{PROJECT}/global/images/mine",) * 2,
        (f"projects/{PROJECT}/global/images/family/my-family",) * 2,
        (
            f"https://www.googleapis.com/compute/v1/projects/{PROJECT}/global/images/mine",
            f"projects/{PROJECT}/global/images/mine",
        ),
    ],
)
def test_an_image_in_any_form(gcp, image, path):
    gcp.images[PROJECT, "mine"] = ("my-family", 10, "X86_64")
    scheduler(source_image=image)
    assert properties(gcp)[0]["disks"][0]["initializeParams"]["sourceImage"] == path


def test_images_that_cannot_be(gcp):
    refused("change image (source_image), or leave it out", image="no-such-image")
    refused("set disk_size to 10 or more", disk_size=9)


def test_an_older_ubuntu_where_the_newest_is_not_there_yet(gcp):
    gcp.images = {k: v for k, v in gcp.images.items() if "2604" not in k[1]}
    scheduler()
    assert "ubuntu-2404-lts-amd64" in properties(gcp)[0]["disks"][0]["initializeParams"]["sourceImage"]


def test_gpus_built_in(gcp):
    run(subject("gcp", worker_machine_type="g2-standard-4", zone=B).cluster(1))
    first, second = properties(gcp)
    assert "guestAccelerators" not in second and second["scheduling"]["onHostMaintenance"] == "TERMINATE"
    assert first["scheduling"]["onHostMaintenance"] == "MIGRATE"
    made = files(gcp.sent()[1][1])
    assert json.loads(made["worker.json"])["cls"] == "dask_cuda.CUDAWorker"
    assert "nvidia-container-toolkit" in made["install"] and "--gpus" in json.loads(made["run.json"])["argv"]
    assert "nvidia" not in user_data(gcp.sent()[0][1])


def test_gpus_attached_for_each_role(gcp):
    run(subject("gcp", machine_type="n1-standard-1", worker_ngpus=2, worker_gpu_type="nvidia-tesla-t4").cluster(1))
    first, second = properties(gcp)
    assert "guestAccelerators" not in first
    assert second["guestAccelerators"] == [{"acceleratorType": "nvidia-tesla-t4", "acceleratorCount": 2}]
    assert json.loads(files(gcp.sent()[1][1])["worker.json"])["cls"] == "dask_cuda.CUDAWorker"


def test_gpus_that_cannot_be(gcp):
    refused("set gpu_type", worker_ngpus=1, machine_type="n1-standard-1")
    assert gcp.calls == []
    refused("has 1 GPUs built in", worker_machine_type="g2-standard-4", worker_ngpus=4, zone=B)
    refused("worker_machine_type name one kind", worker_machine_type=["g2-standard-4", "n2-standard-4"], zone=B)
    assert gcp.writes() == []
    it = subject("gcp", machine_type="n1-standard-1", gpu_type="nvidia-none", ngpus=1)
    assert run(it.create("scheduler", [SCHEDULER])) == [] and "change gpu_type, ngpus" in it.cloud.shortfall


def test_gpus_where_a_zone_has_them(gcp):
    made = run(subject("gcp", machine_type="n1-standard-1", gpu_type="nvidia-tesla-t4", zone=[B, C]).cluster(1))
    assert {vm.zone for vm in made} == {C}


def test_what_can_be_known_to_be_wrong_makes_no_call(gcp):
    for message, settings in {
        "leave max_price out": {"max_price": 0.1},
        "from 30 seconds to 120 days": {"max_run_time": "5s"},
        "starts with a letter": {"instance_tags": {"7up": "x"}},
        "has 64 characters": {"instance_tags": {"a": "x" * 64}},
        "another tag becomes the label": {"instance_tags": {"A.b": "1", "a-b": "2"}},
        "kept for its own use": {"instance_tags": {"dask-cloudvm-role": "x"}},
        "in different regions": {"zone": [B, "europe-west1-b"]},
        "change zone or region": {"zone": B, "region": "europe-west1"},
    }.items():
        refused(message, **settings)
    assert gcp.calls == [] and not gcp.http


@pytest.mark.parametrize(
    "image", ["debian-12", "family/debian-13", "debian-cloud/debian-12", "projects/debian-cloud/global/images/x"]
)
def test_an_image_without_cloud_init_is_refused(gcp, image):
    refused("have no cloud-init", worker_image=image)
    subject("gcp", image="projects/mine/global/images/debian-12").cloud.check()
    assert gcp.calls == []


def test_metadata_of_ones_own_is_added(gcp):
    extra = {"instanceProperties": {"metadata": {"items": [{"key": "enable-oslogin", "value": "TRUE"}]}}}
    scheduler(extra_vm_options=extra)
    items = {i["key"]: i["value"] for i in properties(gcp)[0]["metadata"]["items"]}
    assert items["enable-oslogin"] == "TRUE" and "user-data" in items


def test_fields_that_google_does_not_know_are_refused_in_its_words(gcp):
    message = refused("Unknown name", extra_vm_options={"instanceProperties": {"colour": "red"}})
    assert "Cannot find field" in message and gcp.there() == {}


# User-data


def test_user_data_has_its_limit(gcp):
    noise = "".join(random.Random(0).choices("0123456789abcdefghijklmnopqrstuvwxyz", k=400_000))
    assert "196,608 are allowed" in refused("user-data has", env_vars={"NOISE": noise})
    assert gcp.there() == {}
    it = subject("gcp", security=True)
    [request] = it.wanted(it.cloud.offline(), "worker", workers(1), certificates=tls.make(CLUSTER))
    assert len(pack(request.body["resource"]["instanceProperties"]["metadata"]["items"][0]["value"])) < 6 << 10


HOSTILE = {
    "QUOTES": 'it\'s "so" `id` $HOME $(id) \\',
    "LINES": "a: b\n- c\r\n# d\t\n",
    "JINJA": "{{ x }} {% if %} {# no #} {{{{ }}}} %} }}",
    "UNICODE": "ü 漢 🎉 \u2028 \x85",
    "EMPTY": "",
}


def test_hostile_values_arrive_unchanged(gcp):
    run(subject("gcp", env_vars=HOSTILE).cluster(1))
    for _, body in gcp.sent():
        made = files(body)
        env = json.loads(made["run.json"])["env"]
        lines = dict(line.split("=", 1) for line in made["env"].split("\n") if line)
        assert {k: v for k, v in {**lines, **env}.items() if k in HOSTILE} == HOSTILE


# Removal


def test_a_machine_deletes_itself_where_it_may(gcp):
    for settings, itself in (
        ({}, True),
        ({"instance_scopes": ["cloud-platform"]}, True),
        ({"instance_scopes": ["https://www.googleapis.com/auth/compute"]}, True),
        ({"instance_scopes": ["logging.write"]}, False),
        ({"service_account": ""}, False),
        ({"auto_shutdown": False}, False),
    ):
        it = subject("gcp", **settings)
        text = str([r.body for r in it.wanted(it.cloud.offline(), "worker", workers(1))])
        assert ("computeMetadata" in text) == itself, settings
        assert ("ExecStopPost" in text) == itself


@pytest.mark.parametrize("allowed", [True, False])
def test_the_script_by_which_a_machine_deletes_itself(gcp, gcp_server, allowed):
    scheduler()
    _, url, _ = gcp_server
    script = files(gcp.sent()[0][1])["gone"]
    for host in ("http://metadata.google.internal", "https://compute.googleapis.com"):
        assert host in script
        script = script.replace(host, url)
    gcp.permissions = {"compute.instances.delete"} if allowed else set()
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert (gcp.there() == {}) == allowed
    assert ("cannot delete itself and will stop" in done.stdout) != allowed
    assert ("Required 'compute.instances.delete' permission" in done.stdout) != allowed


def test_a_machine_that_somebody_else_has_deleted_ends_without_a_word(gcp, gcp_server):
    scheduler()
    script = files(gcp.sent()[0][1])["gone"].replace('get("instance/id")', "'1'")
    for host in ("http://metadata.google.internal", "https://compute.googleapis.com"):
        script = script.replace(host, gcp_server[1])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == done.stderr == ""


# Places


def test_a_region_alone_is_any_zone_of_it(gcp):
    gcp.capacity = {(B, "e2-standard-2", False): 2, (C, "e2-standard-2", False): 1}
    made = run(subject("gcp", region="us-east1").cluster(10))
    assert len(made) == 11 and {vm.zone for vm in made} == {B, C, D}
    assert gcp.writes() == [*RULES, "regionInstances.bulkInsert", "regionInstances.bulkInsert"]
    assert gcp.count()["regionOperations.wait"] == 0  # they were done at once
    run(subject("gcp").cloud.delete(made))
    europe = scheduler(region="europe-west1")
    assert europe.zone.startswith("europe-west1-")


def test_the_region_of_a_zone_and_the_zone_by_default(gcp):
    assert gcp_facts.places({"zone": None, "region": None}) == ("us-east1", (C,))
    assert gcp_facts.places({"zone": [B, D], "region": None}) == ("us-east1", (B, D))
    assert gcp_facts.places({"zone": B, "region": "us-east1"}) == ("us-east1", (B,))
    assert gcp_facts.places({"zone": None, "region": "europe-west1"}) == ("europe-west1", ())


def test_a_type_that_a_zone_does_not_offer_is_not_asked_for_there(gcp):
    scheduler(zone=[D, B], machine_type="c4a-standard-2")
    assert [p["zone"] for p, _ in gcp.sent()] == [B]
    refused("change zone: us-east1-b, us-east1-c offer it", zone=D, machine_type="c4a-standard-2")
    refused("region us-east1 has no machine type e2-nonesuch-2", machine_type="e2-nonesuch-2")


def test_custom_machine_types(gcp):
    scheduler(machine_type="e2-custom-4-8192")
    assert properties(gcp)[0]["machineType"] == "e2-custom-4-8192"


# Network


def test_rules_are_made_once_and_only_for_our_tag(gcp):
    firewall = {"ports": [22, 8786], "cidr": ["10.1.2.3/8", "2001:db8::/32", "me"]}
    scheduler(firewall=firewall)
    run(subject("gcp").cloud.delete(run(subject("gcp").cloud.list())))
    scheduler(firewall={**firewall, "cidr": ["me", "2001:db8::/32", "10.0.0.0/8"]})
    rules = {name: rule for (_, name), rule in gcp.firewalls.items()}
    assert gcp.count()["firewalls.insert"] == len(rules) == 3
    [tag] = {t for rule in rules.values() for t in rule["targetTags"]}
    assert set(rules) == {tag, f"{tag}-v6", f"{tag}-inside"} and re.fullmatch("dask-cloudvm-[0-9a-f]{12}", tag)
    assert rules[tag]["sourceRanges"] == ["10.0.0.0/8", "203.0.113.7/32"]
    assert rules[tag]["allowed"] == [{"IPProtocol": "tcp", "ports": ["22", "8786"]}]
    assert rules[f"{tag}-inside"]["sourceTags"] == [tag] and "sourceRanges" not in rules[f"{tag}-inside"]
    assert all("dask-cloudvm" in rule["description"] for rule in rules.values())
    assert all(p["tags"]["items"] == [tag] for p in properties(gcp))


def test_another_firewall_has_another_tag(gcp):
    scheduler()
    one = set(gcp.firewalls)
    run(subject("gcp").cloud.delete(run(subject("gcp").cloud.list())))
    scheduler(firewall={"ports": [8786], "cidr": "0.0.0.0/0"}, network_tags=["mine"])
    tags = [p["tags"]["items"] for p in properties(gcp)]
    assert tags[0][0] != tags[1][0] and tags[1][1:] == ["mine"] and len(gcp.firewalls) == len(one) + 2


def test_another_port_of_the_scheduler_is_opened_instead_of_8786(gcp):
    vm = scheduler(scheduler_options={"port": 9000})
    assert vm.port == 9000
    assert gcp.sent("firewalls.insert")[0][1]["allowed"][0]["ports"] == ["8787", "9000"]


def test_launchers_at_once_share_the_rules(gcp):
    gcp.takes = 0.1

    async def both():
        return await asyncio.gather(
            *(subject("gcp").create("scheduler", [f"{CLUSTER}{i}-scheduler"]) for i in range(4))
        )

    assert len({vm.id for [vm] in run(both())}) == 4
    assert len(gcp.firewalls) == 2


def test_workers_that_another_launcher_adds_use_the_schedulers_tag(gcp):
    vm = scheduler()
    gcp.me = "198.51.100.1"  # its own rules would be others
    run(subject("gcp").create("worker", workers(1), vm))
    first, second = properties(gcp)
    assert first["tags"] == second["tags"] and gcp.count()["firewalls.insert"] == 2


def test_a_shared_vpc(gcp):
    run(subject("gcp", network_projectid=HOST_PROJECT).cluster(1))
    for p in properties(gcp):
        interface = p["networkInterfaces"][0]
        assert interface["network"] == f"projects/{HOST_PROJECT}/global/networks/default"
        assert interface["subnetwork"] == f"projects/{HOST_PROJECT}/regions/us-east1/subnetworks/default"
    assert {project for project, _ in gcp.firewalls} == {HOST_PROJECT}


def test_a_shared_vpc_whose_firewall_is_someone_elses(gcp):
    gcp.permissions = {"compute.networks.get", "compute.machineTypes.list"}
    message = refused("let an administrator of host-project make the rules", network_projectid=HOST_PROJECT)
    assert "compute.firewalls.list" in message


def test_subnetworks(gcp):
    gcp.networks[PROJECT, "mine"] = {"auto": False}
    gcp.subnetworks |= {(PROJECT, "us-east1", "one"): "mine", (PROJECT, "us-east1", "two"): "mine"}
    message = refused("has 2 subnetworks in us-east1", network="mine")
    assert "choose one by subnet (subnetwork): one, two" in message
    for settings in (
        {"subnetwork": "one"},
        {"subnetwork": "one", "network": "mine"},
        {"subnetwork": f"projects/{PROJECT}/regions/us-east1/subnetworks/one"},
        {"network": "one"},  # as dask-cloudprovider meant it
    ):
        gcp.calls.clear()
        scheduler(**settings)
        interface = properties(gcp)[0]["networkInterfaces"][0]
        assert interface["network"] == f"projects/{PROJECT}/global/networks/mine"
        assert interface["subnetwork"] == f"projects/{PROJECT}/regions/us-east1/subnetworks/one"
        run(subject("gcp").cloud.delete(run(subject("gcp").cloud.list())))
    refused("subnetwork one is in network mine", subnetwork="one", network="default")
    refused("'projects/my-project/global/networks/nonesuch' was not found", network="nonesuch")
    refused("the machines will be in europe-west1", region="europe-west1", subnet="regions/us-east1/subnetworks/one")


# Capacity


def capacity(gcp, **settings):
    it = subject("gcp", **settings)
    made = run(it.cluster(10))
    return it, made[1:]


def asked(gcp):
    return [(p["zone"], b["instanceProperties"]["machineType"], b["count"]) for p, b in gcp.sent()[1:]]


def test_what_one_place_leaves_over_the_next_one_takes(gcp):
    four, n2 = "e2-standard-4", "n2-standard-4"
    gcp.capacity = {(B, four, False): 4, (C, four, False): 0, (B, n2, False): 5}
    it, made = capacity(gcp, zone=[B, C], worker_machine_type=[four, n2])
    assert [vm.name for vm in made] == workers(10) and it.cloud.shortfall == ""
    assert asked(gcp) == [(B, four, "10"), (C, four, "6"), (B, n2, "6"), (C, n2, "1")]
    assert len({p["requestId"] for p, _ in gcp.sent()}) == 5
    assert len(set(gcp.there())) == 11


def test_a_shortfall_is_no_error_and_is_explained(gcp):
    gcp.capacity = {(B, "e2-standard-4", False): 3}
    it, made = capacity(gcp, zone=B, worker_machine_type="e2-standard-4")
    assert [vm.name for vm in made] == workers(3)
    assert "e2-standard-4 in us-east1-b: The zone" in it.cloud.shortfall
    assert "give more entries in zone" in it.cloud.shortfall
    again = run(it.create("worker", workers(7, first=3), run(it.cloud.list(CLUSTER))[0]))
    assert again == [] and "ZONE_RESOURCE_POOL_EXHAUSTED" in it.cloud.shortfall
    gcp.capacity = {}
    assert len(run(it.create("worker", workers(7, first=3), run(it.cloud.list(CLUSTER))[0]))) == 7


def test_quota_in_googles_words(gcp):
    gcp.quota = 10
    it, made = capacity(gcp, machine_type="e2-standard-2")
    assert len(made) == 4
    assert "Quota 'CPUS' exceeded.  Limit: 10.0 in region us-east1 (QUOTA_EXCEEDED)" in it.cloud.shortfall
    assert "IAM > Quotas" in it.cloud.shortfall


def test_spot_is_for_workers_only(gcp):
    it, _ = capacity(gcp, preemptible=True)
    first, second = (p["scheduling"] for p in properties(gcp))
    assert first["provisioningModel"] == "STANDARD" and "instanceTerminationAction" not in first
    assert second == {
        "provisioningModel": "SPOT", "onHostMaintenance": "TERMINATE", "automaticRestart": False,
        "instanceTerminationAction": "DELETE",
    }  # fmt: skip
    assert all(vm.spot == (vm.role == "worker") for vm in run(it.cloud.list(CLUSTER)))


def test_spot_with_fallback_takes_on_demand_where_there_is_none(gcp):
    gcp.capacity = {(B, "e2-standard-2", True): 4, (C, "e2-standard-2", True): 1}
    it, made = capacity(gcp, spot="fallback", zone=[B, C])
    assert len(made) == 10
    assert sum(vm.spot for vm in run(it.cloud.list(CLUSTER))) == 5


def test_no_capacity_for_the_scheduler_is_said(gcp):
    gcp.capacity = {(C, "e2-standard-2", False): 0}
    it = subject("gcp")
    assert run(it.create("scheduler", [SCHEDULER])) == []
    assert "does not have enough resources" in it.cloud.shortfall


# Operations


def test_operations_take_time(gcp):
    gcp.takes, gcp.poll = 0.5, 0.1
    made = run(subject("gcp").cluster(2))
    assert {vm.state for vm in made} == {"running"}
    assert gcp.count()["zoneOperations.wait"] >= 6


def test_an_operation_that_does_not_end_is_a_shortfall(gcp, monkeypatch):
    monkeypatch.setattr(gcp_module, "LIMIT", 0.3)
    it = subject("gcp")
    vm = run(it.create("scheduler", [SCHEDULER]))[0]
    gcp.takes = 5
    made = run(it.create("worker", workers(1), vm))
    assert [m.state for m in made] == ["pending"]  # it is there, and may still run


def test_a_long_poll_that_is_cut_off_is_asked_again(gcp, monkeypatch):
    monkeypatch.setattr(gcp_session, "POLL", 0.1)
    gcp.takes, gcp.poll = 0.5, 5
    assert scheduler().state == "running"


def test_errors_of_operations_reach_the_user(gcp):
    for code, message, hint in (
        ("PERMISSIONS_ERROR", "Required 'compute.images.useReadOnly' permission for 'projects/x/i'", "grant compute."),
        ("RESOURCE_NOT_FOUND", "The resource 'projects/my-project/zones/x/diskTypes/y' was not found", "disk_type"),
        ("CONDITION_NOT_MET", "Constraint constraints/compute.vmExternalIpAccess violated", "organization policy"),
    ):
        gcp.faults = [Fault("instances.bulkInsert", message, code=code)]
        said = refused(message)
        assert code in said and hint in said, said


def test_calls_that_fail_in_passing_are_repeated(gcp):
    gcp.faults = [
        Fault("instances.bulkInsert", "try again", times=2),
        Fault("firewalls.list", "slow", "rateLimitExceeded", 403),
    ]
    scheduler()
    assert len(gcp.there()) == 1
    assert len({p["requestId"] for p, _ in gcp.sent()}) == 1


def test_firewall_rules_that_cannot_be_made(gcp):
    gcp.faults = [Fault("firewalls.insert", "Quota 'FIREWALLS' exceeded", code="QUOTA_EXCEEDED")]
    refused("cannot make the firewall rules: Quota 'FIREWALLS' exceeded")


# Identity


def test_the_same_request_makes_the_same_machines(gcp):
    it = subject("gcp")

    async def twice():
        facts = await it.cloud.facts(None)
        request = it.wanted(facts, "scheduler", [SCHEDULER])[-1]
        return await it.cloud.create(request), await it.cloud.create(request)

    [one], [two] = run(twice())
    assert one.id == two.id and len(gcp.there()) == 1


def test_a_name_that_another_launcher_has_just_taken(gcp):
    scheduler()
    with pytest.raises(NameTaken):
        scheduler()
    assert len(gcp.there()) == 1


def test_a_cluster_of_the_same_name_waits_for_the_end_of_the_earlier_one(gcp, monkeypatch):
    monkeypatch.setattr(gcp_module, "LOOK", 0.05)
    one = scheduler()
    gcp.takes = 0.3
    run(subject("gcp").cloud.delete([one]))
    two = scheduler()
    assert two.id != one.id and [i["id"] for i in gcp.there().values()] == [two.id]


def test_stopped_machines_count_as_ended_and_are_removed(gcp):
    it = subject("gcp")
    vm = scheduler()
    gcp.instances[vm.id]["status"] = "TERMINATED"
    [again] = run(it.cloud.list(CLUSTER))
    assert not again.alive
    run(it.cloud.delete([again]))
    assert gcp.instances == {}


def test_machines_that_are_gone_already(gcp):
    it = subject("gcp")
    made = run(it.cluster(2))
    strangers = [dataclasses.replace(made[0], id=str(i)) for i in (5, 6)]
    run(it.cloud.delete([*strangers, made[1]]))
    assert alive(run(it.cloud.list(CLUSTER))) == {made[0].name, made[2].name}


def test_a_delete_that_fails_is_said_and_the_others_are_done(gcp):
    it = subject("gcp")
    made = run(it.cluster(3))
    why = "Invalid resource usage: 'Resource cannot be deleted if it's protected against deletion.'"
    gcp.faults = [Fault("instances.delete", why, "invalid", 400)]
    with pytest.raises(CloudError, match="protected against deletion"):
        run(it.cloud.delete(made))
    assert len(gcp.there()) == 1
    run(it.cloud.delete(made))
    assert gcp.there() == {}


def test_deletes_that_are_throttled_are_repeated(gcp):
    it = subject("gcp")
    made = run(it.cluster(5))
    gcp.faults = [Fault("instances.delete", "Quota exceeded", "rateLimitExceeded", 403, times=3)]
    run(it.cloud.delete(made))
    assert gcp.there() == {} and gcp.http["v1"] == 2


def test_lists_are_read_page_by_page(gcp):
    it = subject("gcp")
    gcp.page = 3
    run(it.cluster(7))
    assert len(run(it.cloud.list(CLUSTER))) == 8


def test_a_list_has_no_user_data_in_it(gcp):
    scheduler()
    gcp.calls.clear()
    run(subject("gcp").cloud.list())
    [(_, parameters, _)] = gcp.calls
    assert "metadata" not in parameters["fields"] and parameters["filter"] == "labels.dask-cloudvm-cluster:*"


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("", '""'),
        ("*", '"*"'),
        ("su*", '"su*"'),
        ('x" OR labels.dask-cloudvm-role:*', r'"x\" OR labels.dask-cloudvm-role:*"'),
        ('x" OR labels.dask-cloudvm-role = "worker', r'"x\" OR labels.dask-cloudvm-role = \"worker"'),
        ("a\\b", r'"a\\b"'),
    ],
)
def test_odd_names_are_names_of_no_cluster(gcp, name, sent):
    it = subject("gcp")
    made = run(it.cluster(1))
    gcp.calls.clear()
    assert run(it.cloud.list(name)) == []
    assert [p["filter"] for _, p, _ in gcp.calls] == [f"labels.dask-cloudvm-cluster = {sent}"]
    with pytest.raises(ClusterNotFound):
        run(api.remove([name], "gcp"))
    assert alive(run(it.cloud.list(CLUSTER))) == {vm.name for vm in made}


def test_the_console_of_a_machine(gcp):
    vm = scheduler()
    it = subject("gcp")
    gcp.consoles[SCHEDULER] = "[  OK  ] Started Dask"
    assert "Started Dask" in run(it.cloud.console(vm))
    run(it.cloud.delete([vm]))
    assert run(it.cloud.console(vm)) == ""


# Credentials and project


def test_no_credentials(gcp, monkeypatch):
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    refused("gcloud auth application-default login")


def test_a_broken_key_and_a_refused_token(gcp, monkeypatch, tmp_path):
    import os
    from pathlib import Path

    key = json.loads(Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"]).read_text())
    path = tmp_path / "key.json"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    path.write_text("{}")
    refused("gcloud auth application-default login")
    path.write_text(json.dumps({**key, "token_uri": key["token_uri"] + "x"}))
    refused("gcloud auth application-default login")


def test_a_key_as_a_keyword(gcp, monkeypatch):
    import os
    from pathlib import Path

    key = json.loads(Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"]).read_text())
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    scheduler(service_account_credentials=key)
    assert gcp.sent()[0][0]["project"] == PROJECT


def test_the_project_of_the_option_wins(gcp):
    gcp.networks["other", "default"] = {"auto": True}
    gcp.subnetworks["other", "us-east1", "default"] = "default"
    scheduler(projectid="other")
    assert gcp.sent()[0][0]["project"] == "other"


def test_an_api_that_is_not_enabled(gcp):
    gcp.faults = [
        Fault("networks.get", "Compute Engine API has not been used in project 1 before", "accessNotConfigured", 403)
    ]
    refused("gcloud services enable compute.googleapis.com")


def test_a_host_that_does_not_answer(gcp, monkeypatch):
    monkeypatch.setenv(gcp_session.OVERRIDE, "http://127.0.0.1:9/compute/v1/")
    monkeypatch.setattr(gcp_session, "PATIENCE", 0.1)
    refused("no answer from 127.0.0.1:9")


def test_whether_this_computer_has_google_credentials(tmp_path, monkeypatch):
    folder = tmp_path / "gcloud"
    (folder / "configurations").mkdir(parents=True)
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT", "CLOUDSDK_CORE_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(folder))
    assert not gcp_session.looks_configured()
    (folder / "application_default_credentials.json").write_text('{"type": "authorized_user"}')
    assert not gcp_session.looks_configured()  # no project: nothing can be asked
    (folder / "configurations" / "config_default").write_text("[core]\nproject = my-project\n")
    assert gcp_session.looks_configured()


def test_the_types_of_the_fake_are_those_of_the_default(gcp):
    assert subject("gcp").options["machine_type"] in TYPES


# Leftovers


def test_rules_that_others_made_or_that_others_use_are_no_leftovers(gcp, monkeypatch):
    monkeypatch.setattr(leftovers, "GRACE", float("-inf"))
    it = subject("gcp")
    run(it.cluster(1))
    [name, inside] = sorted(name for _, name in gcp.firewalls)
    gcp.firewalls[PROJECT, "dask-cloudvm-mine"] = {**gcp.firewalls[PROJECT, name], "description": "by hand"}
    for instance in gcp.there().values():  # an instance that is not ours has our network tag
        instance["labels"] = {}
    assert not run(it.cloud.list())
    assert run(leftovers.find("gcp", network=True)).popitem()[1] == []
    for instance in gcp.there().values():
        instance["tags"] = {}
    [(cloud, found)] = run(leftovers.find("gcp", network=True)).items()
    assert {each.it.name for each in found} == {name, inside}
    assert not run(leftovers.remove(cloud, found))
    assert [name for _, name in gcp.firewalls] == ["dask-cloudvm-mine"]


def test_rules_that_machines_of_service_projects_use_are_no_leftovers(gcp):
    it, host = subject("gcp", network_projectid=HOST_PROJECT), subject("gcp", projectid=HOST_PROJECT)
    gcp.guests, gcp.page = {HOST_PROJECT: ["an-empty-one", "another", PROJECT]}, 2
    run(it.cluster(1))
    assert {project for project, _ in gcp.firewalls} == {HOST_PROJECT}
    assert {(part.kind, part.used) for part in run(host.cloud.parts())} == {("firewall rule", True)}
    gcp.closed = {PROJECT}
    with pytest.raises(CloudError, match=r"'compute\.instances\.list' permission for 'projects/my-project'"):
        run(host.cloud.parts())
    gcp.closed = set()
    for method in ("projects.get", "projects.getXpnResources"):
        gcp.faults = [Fault(method, "Required 'compute.projects.get' permission", "forbidden", 403)]
        with pytest.raises(CloudError, match=r"look for firewall rules: Required 'compute\.projects\.get'"):
            run(host.cloud.parts())
    run(it.cloud.delete(run(it.cloud.list(CLUSTER))))
    assert {part.used for part in run(host.cloud.parts())} == {False}


def test_gc_shows_machines_also_where_it_may_not_see_who_uses_the_rules(gcp, monkeypatch):
    monkeypatch.setattr(leftovers, "GRACE", float("-inf"))
    it = subject("gcp")
    run(it.cloud.delete(run(it.cluster(1))[:1]))
    gcp.faults = [Fault("projects.get", "Required 'compute.projects.get' permission", "forbidden", 403)]
    with pytest.warns(UserWarning, match="look for firewall rules"):
        done = CliRunner().invoke(gc.command, ["--cloud", "gcp", "--network"])
    assert done.exit_code == 1 and workers(1)[0] in done.output and "firewall rule " not in done.output


def test_a_cluster_of_several_regions_is_one(gcp, monkeypatch):
    monkeypatch.setattr(leftovers, "GRACE", float("-inf"))
    vm = scheduler()
    [worker] = run(subject("gcp", zone="europe-west1-b").create("worker", workers(1), vm))
    assert worker.zone == "europe-west1-b" and vm.zone == C
    assert run(leftovers.find("gcp", network=False)).popitem()[1] == []
