"""EC2's own ways: network, capacity, shared groups, what is sent, lag. All through real boto3 over HTTP."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import gzip
import json
import time

import pytest
import suite
from click.testing import CliRunner
from ec2_boot import files
from ec2_fake import IMAGES, Fault
from suite import CLUSTER, alive, run, subject, workers

from dask_cloudvm import api, leftovers, tls
from dask_cloudvm import plan as planning
from dask_cloudvm.cli import gc as verb
from dask_cloudvm.clouds import ec2, ec2_facts, ec2_session, names
from dask_cloudvm.errors import CloudError, CloudVMError, ClusterNotFound

SCHEDULER = planning.scheduler_name(CLUSTER)
A, B = "us-east-1a", "us-east-1b"


def userdata(parameters):
    return gzip.decompress(base64.b64decode(parameters["UserData"])).decode()


def client():
    import boto3

    return boto3.client("ec2")


def shared_groups():
    groups = client().describe_security_groups()["SecurityGroups"]
    return [group for group in groups if group["GroupName"].startswith("dask-cloudvm-")]


def network():
    """A VPC that is not the default one, with a subnet in two zones."""
    vpc = client().create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    blocks = {A: "10.0.0.0/24", B: "10.0.1.0/24"}
    subnets = [client().create_subnet(VpcId=vpc, CidrBlock=c, AvailabilityZone=z) for z, c in blocks.items()]
    return vpc, [subnet["Subnet"]["SubnetId"] for subnet in subnets]


def scheduler(**settings):
    it = subject("ec2", **settings)
    [vm] = run(it.create("scheduler", [SCHEDULER]))
    return vm


def refused(message, **settings):
    with pytest.raises(CloudVMError) as caught:
        run(subject("ec2", **settings).cluster(2))
    assert message in str(caught.value), str(caught.value)
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


# Number of calls


def test_a_cluster_is_two_writes_and_a_constant_number_of_reads(aws):
    """The first cluster of an account makes the shared group as well."""
    counts = set()
    for n in (1, 10, 60):
        aws.calls.clear()
        it = subject("ec2")

        async def cluster(it=it, n=n):
            facts = await it.cloud.facts(None)
            for role, wanted in (("scheduler", [f"{CLUSTER}-scheduler"]), ("worker", workers(n))):
                for request in it.wanted(facts, role, wanted):
                    assert len(await it.cloud.create(request)) == len(request.names)

        run(cluster())
        first = aws.writes()[:-2]
        assert aws.writes()[-2:] == ["RunInstances"] * 2
        assert first == ([] if counts else ["CreateSecurityGroup", "AuthorizeSecurityGroupIngress"])
        counts.add(len(aws.reads()))
        run(it.cloud.delete(run(it.cloud.list(CLUSTER))))
    assert counts == {7}


def test_a_thousand_names_fit_one_tag_and_one_request(aws):
    it = subject("ec2", n_workers=1000)
    [request] = it.wanted(it.cloud.offline(), "worker", workers(1000))
    assert len(request.names) == request.body["MaxCount"] == 1000
    tags = {t["Key"]: t["Value"] for t in request.body["TagSpecifications"][0]["Tags"]}
    assert tags["dask-cloudvm:names"] == "3fa9c1:0-999"
    scattered = [planning.worker_name(CLUSTER, "3fa9c1", i) for i in range(0, 400, 2)]
    requests = it.wanted(it.cloud.offline(), "worker", scattered)
    assert [name for r in requests for name in r.names] == scattered
    for r in requests:
        assert all(len(t["Value"]) <= 256 for t in r.body["TagSpecifications"][0]["Tags"])


# What is sent


def test_the_body_of_a_scheduler_and_its_workers(aws):
    it = subject("ec2", security=True, n_workers=2)
    run(it.cluster(2))
    first, second = aws.sent("RunInstances")
    for body in (first, second):
        assert body["MetadataOptions.HttpTokens"] == "required"
        assert body["InstanceInitiatedShutdownBehavior"] == "terminate"
        assert body["MaintenanceOptions.AutoRecovery"] == "disabled"
        disk = {k.rpartition(".")[2]: v for k, v in body.items() if k.startswith("BlockDeviceMapping.1.Ebs")}
        assert disk == {"VolumeSize": "40", "VolumeType": "gp3", "Encrypted": "true", "DeleteOnTermination": "true"}
        assert body["BlockDeviceMapping.1.DeviceName"] == "/dev/sda1"
        assert body["MinCount"] == "1" and len(body["ClientToken"]) == 32
        kinds = {v for k, v in body.items() if k.endswith("ResourceType")}
        assert kinds == {"instance", "volume", "network-interface"}
    assert second["MaxCount"] == "2" and first["UserData"] != second["UserData"]
    group = aws.backend.get_security_group_from_id(first["NetworkInterface.1.SecurityGroupId.1"])
    assert group.name.startswith("dask-cloudvm-")
    assert second["NetworkInterface.1.SecurityGroupId.1"] == group.id


def test_every_machine_learns_its_own_name(aws):
    it = subject("ec2")
    made = run(it.cluster(3))
    _, body = aws.sent("RunInstances")
    for index, vm in enumerate(made[1:]):
        spec = json.loads(files(body, index)["worker.json"])
        assert spec["opts"]["name"] == vm.name
        assert aws.backend.get_instance(vm.id).ami_launch_index == index


def test_workers_join_by_the_private_address_and_clients_by_the_public_one(aws):
    vm = run(subject("ec2").cloud.locate(scheduler()))
    assert vm.private_ip.startswith("172.31.") and vm.public_ip and not vm.public_ip.startswith("172.31.")
    assert vm.address == f"tcp://{vm.private_ip}:8786" and vm.external_address == f"tcp://{vm.public_ip}:8786"
    private = run(subject("ec2", use_private_ip=True).cloud.locate(scheduler(use_private_ip=True)))
    assert private.external_address == f"tcp://{private.private_ip}:8786"


def test_private_workers_with_a_public_scheduler(aws):
    run(subject("ec2", worker_use_private_ip=True).cluster(1))
    first, second = aws.sent("RunInstances")
    assert first["NetworkInterface.1.AssociatePublicIpAddress"] == "true"
    assert second["NetworkInterface.1.AssociatePublicIpAddress"] == "false"


def test_the_image_suits_the_architecture(aws):
    run(subject("ec2", scheduler_machine_type="m7i.large", worker_machine_type="m7g.large").cluster(1))
    first, second = aws.sent("RunInstances")
    assert first["ImageId"] == IMAGES["amd64"][0] and second["ImageId"] == IMAGES["arm64"][0]


def test_an_image_of_ones_own_brings_its_root_device(aws):
    aws.add_image("ami-00000000000000abc", root="/dev/xvda")
    scheduler(ami="ami-00000000000000abc")
    [body] = aws.sent("RunInstances")
    assert body["ImageId"] == "ami-00000000000000abc" and body["BlockDeviceMapping.1.DeviceName"] == "/dev/xvda"
    assert "GetParameters" not in aws.reads()


def test_gpus_are_seen_from_the_api_and_only_there_drivers_are_installed(aws):
    run(subject("ec2", scheduler_machine_type="m7i.large", worker_machine_type="g6.xlarge").cluster(1))
    first, second = aws.sent("RunInstances")
    assert "nvidia" not in userdata(first)
    made = files(second)
    assert "nvidia-container-toolkit" in made["install"] and "ubuntu-drivers" in made["install"]
    assert json.loads(made["worker.json"])["cls"] == "dask_cuda.CUDAWorker"
    run_json = json.loads(made["run.json"])
    assert run_json["argv"][run_json["argv"].index("--gpus") :][:2] == ["--gpus", "all"]


def test_user_data_that_is_too_large_is_refused_before_anything_is_made(aws):
    import random

    noise = "".join(random.Random(0).choices("0123456789abcdefghijklmnopqrstuvwxyz", k=40_000))
    message = refused("user-data has", env_vars={"NOISE": noise})
    assert "16,384 are allowed" in message and "env_vars" in message
    assert aws.writes() == ["CreateSecurityGroup", "AuthorizeSecurityGroupIngress"] or aws.writes() == []


def test_user_data_is_small(aws):
    from dask_cloudvm import tls
    from dask_cloudvm.userdata import pack

    many = {f"VARIABLE_{i}": f"value {i} of some length" for i in range(200)}
    for given, limit in (({}, 6 << 10), ({"spot": True}, 6 << 10), ({"spot": True, "env_vars": many}, 16 << 10)):
        it = subject("ec2", security=True, **given)
        for role, wanted in (("scheduler", [SCHEDULER]), ("worker", workers(10))):
            made = it.wanted(it.cloud.offline(), role, wanted, certificates=tls.make(CLUSTER))
            size = len(pack(made[-1].body["UserData"]))
            assert size < limit, size


HOSTILE = {
    "QUOTES": 'it\'s "so" `id` $HOME $(id) \\',
    "LINES": "a: b\n- c\r\n# d\t\n",
    "JINJA": "{{ x }} {% if %} {# no #} {{{{ }}}} %} }}",
    "UNICODE": "ü 漢 🎉 \u2028 \x85",
    "EMPTY": "",
}


def test_hostile_values_arrive_unchanged(aws):
    extra = ["echo 'a: b' \"$HOME\" {{ x }}", "cat <<X\n- é\nX"]
    run(subject("ec2", env_vars=HOSTILE, extra_bootstrap=extra).cluster(1))
    for body in aws.sent("RunInstances"):
        made = files(body)
        env = json.loads(made["run.json"])["env"]
        lines = dict(line.split("=", 1) for line in made["env"].split("\n") if line)
        assert {k: v for k, v in {**lines, **env}.items() if k in HOSTILE} == HOSTILE
        assert made["extra"] == "".join(f"{line}\n" for line in extra)
        for name in json.loads(made["run.json"])["argv"]:
            assert name not in HOSTILE.values() or name == ""


# Network


def test_the_shared_group_opens_what_the_firewall_says(aws):
    scheduler(firewall={"ports": [22, 8786], "cidr": ["10.1.2.3/8", "2001:db8::/32", "me"]})
    scheduler(firewall={"ports": [22, 8786], "cidr": ["10.0.0.0/8", "2001:db8::/32", "me"]})
    assert aws.count()["CreateSecurityGroup"] == aws.count()["AuthorizeSecurityGroupIngress"] == 1
    [group] = shared_groups()
    opened = {
        (rule["FromPort"], network.get("CidrIp") or network.get("CidrIpv6"))
        for rule in group["IpPermissions"]
        for network in [*rule["IpRanges"], *rule["Ipv6Ranges"]]
    }
    assert opened == {(p, c) for p in (22, 8786) for c in ("10.0.0.0/8", "2001:db8::/32", "203.0.113.7/32")}
    [inside] = [rule for rule in group["IpPermissions"] if rule["UserIdGroupPairs"]]
    assert inside["UserIdGroupPairs"][0]["GroupId"] == group["GroupId"] and inside["IpProtocol"] == "-1"


def test_another_port_of_the_scheduler_is_opened_instead_of_8786(aws):
    vm = scheduler(scheduler_options={"port": 9000})
    assert vm.port == 9000
    ports = {v for k, v in aws.sent("AuthorizeSecurityGroupIngress")[0].items() if k.endswith("FromPort")}
    assert ports == {"9000", "8787"}


def test_two_launchers_at_once_share_the_group(aws):
    async def both():
        return await asyncio.gather(*(subject("ec2").create("scheduler", [SCHEDULER]) for _ in range(4)))

    made = run(both())
    assert len({vm.id for [vm] in made}) == 4
    [group] = shared_groups()
    assert {body["NetworkInterface.1.SecurityGroupId.1"] for body in aws.sent("RunInstances")} == {group["GroupId"]}
    assert len(group["IpPermissions"]) == 3


def test_rules_that_a_broken_launcher_left_out_are_added(aws):
    aws.faults = [Fault("AuthorizeSecurityGroupIngress", "InternalError", "An internal error has occurred")]
    aws.faults[0].times = 100
    with pytest.raises(CloudError):
        scheduler()
    aws.faults = []
    scheduler()
    [group] = shared_groups()
    assert len(group["IpPermissions"]) == 3


def test_workers_that_another_launcher_adds_use_the_schedulers_group(aws):
    """Its own address, and so the shared group that it would make, is another."""
    it = subject("ec2")
    [vm] = run(it.create("scheduler", [SCHEDULER]))
    aws.me = "198.51.100.1"
    try:
        run(subject("ec2").create("worker", workers(1), vm))
    finally:
        aws.me = "203.0.113.7"
    first, second = aws.sent("RunInstances")
    assert first["NetworkInterface.1.SecurityGroupId.1"] == second["NetworkInterface.1.SecurityGroupId.1"]
    assert aws.count()["CreateSecurityGroup"] == 1


@pytest.mark.parametrize("there_before", [True, False])
def test_a_group_that_a_gc_has_just_removed_is_made_again(aws, monkeypatch, there_before):
    """Between the look at it, or its making, and the first machine."""
    monkeypatch.setattr(ec2, "PATIENCE", 0.1)
    if there_before:
        run(subject("ec2").cloud.delete([scheduler()]))
    it = subject("ec2")

    async def up():
        facts = await it.cloud.facts(None)
        *before, machine = it.wanted(facts, "scheduler", [SCHEDULER])
        for request in before:
            await it.cloud.create(request)
        [part] = await subject("ec2").cloud.parts()
        assert await subject("ec2").cloud.remove(part)
        made = await it.cloud.create(machine)
        return [*made, *await it.create("worker", workers(2))]

    assert [vm.name for vm in run(up())] == [SCHEDULER, *workers(2)]
    [group] = shared_groups()
    assert len(group["IpPermissions"]) == 3
    asked = [body["NetworkInterface.1.SecurityGroupId.1"] for body in aws.sent("RunInstances")]
    assert asked[0] != group["GroupId"] and set(asked[-2:]) == {group["GroupId"]}
    assert len({body["ClientToken"] for body in aws.sent("RunInstances")[-3:]}) == 3


def test_a_group_that_is_removed_again_and_again_is_an_error(aws, monkeypatch):
    monkeypatch.setattr(ec2, "PATIENCE", 0.1)
    aws.faults = [Fault("RunInstances", "InvalidGroup.NotFound", "The security group 'sg-1' does not exist", times=99)]
    refused("change security_group")
    assert aws.count()["CreateSecurityGroup"] == 1, "it is there"
    aws.calls.clear()
    refused("change security_group", security_group=shared_groups()[0]["GroupId"])
    assert aws.count()["CreateSecurityGroup"] == 0 and aws.count()["RunInstances"] == 1


def test_groups_and_subnets_of_ones_own(aws):
    vpc, subnets = network()
    group = client().create_security_group(GroupName="mine", Description="mine", VpcId=vpc)["GroupId"]
    run(subject("ec2", subnet_id=subnets, security_groups=group, zone=B).cluster(1))
    for body in aws.sent("RunInstances"):
        assert body["NetworkInterface.1.SubnetId"] == subnets[1]
        assert body["NetworkInterface.1.SecurityGroupId.1"] == group
    assert aws.count()["CreateSecurityGroup"] == 1
    aws.calls.clear()
    run(subject("ec2", security_groups=[group]).cluster(1))  # its VPC follows from the group
    assert aws.sent("RunInstances")[0]["NetworkInterface.1.SubnetId"] == subnets[0]
    run(subject("ec2", vpc=vpc).cluster(1))
    assert aws.sent("CreateSecurityGroup")[-1]["VpcId"] == vpc


def test_no_default_vpc_names_the_option(aws):
    for vpc in list(aws.backend.vpcs.values()):
        for by_zone in list(aws.backend.subnets.values()):
            for subnet in list(by_zone.values()):
                aws.backend.delete_subnet(subnet.id)
        aws.backend.vpcs.pop(vpc.id)
    refused("choose one by vnet (vpc) or subnet (subnet_id)")


def test_no_subnet_in_the_zone_names_the_option(aws):
    refused("change zone: there are subnets in us-east-1a, us-east-1b", zone="us-east-1x")


def test_a_subnet_of_another_vpc(aws):
    _, [other, _] = network()
    [default, *_] = client().describe_subnets(Filters=[{"Name": "default-for-az", "Values": ["true"]}])["Subnets"]
    refused("let vnet (vpc) and subnet (subnet_id) name one VPC", subnet=[other, default["SubnetId"]])
    refused("let vnet (vpc) and subnet (subnet_id) name one VPC", subnet=other, vnet=default["VpcId"])


def test_an_unknown_address_of_this_computer_names_the_firewall(aws, monkeypatch):
    monkeypatch.setenv("DASK_CLOUDVM_CHECKIP", "http://127.0.0.1:9/")
    refused("firewall: {cidr: 203.0.113.7/32}")


# Capacity


def capacity(aws, **settings):
    it = subject("ec2", **settings)
    made = run(it.cluster(10))
    return it, made[1:]


def test_what_one_place_leaves_over_the_next_one_takes(aws):
    aws.capacity = {(A, "m7i.xlarge", False): 4, (B, "m7i.xlarge", False): 0, (A, "m6i.xlarge", False): 5}
    it, made = capacity(aws, zone=[A, B], worker_machine_type=["m7i.xlarge", "m6i.xlarge"])
    assert [vm.name for vm in made] == workers(10) and it.cloud.shortfall == ""
    assert alive(run(it.cloud.list(CLUSTER))) == {SCHEDULER, *workers(10)}
    asked = [(b["InstanceType"], b["MaxCount"]) for b in aws.sent("RunInstances")[1:]]
    assert asked == [("m7i.xlarge", "10"), ("m7i.xlarge", "6"), ("m6i.xlarge", "6"), ("m6i.xlarge", "1")]
    for body in aws.sent("RunInstances")[
        1:
    ]:  # each machine knows its own name also where the first ones were left over
        tag = next(body[k[:-4] + ".Value"] for k, v in body.items() if v == "dask-cloudvm:names")
        spec = json.loads(files(body, 0)["worker.json"])
        assert spec["opts"]["name"] == names.expand(tag, CLUSTER, "worker")[0]
    assert len({b["ClientToken"] for b in aws.sent("RunInstances")}) == 5


def test_a_shortfall_is_no_error_and_is_explained(aws):
    aws.capacity = {(A, "m7i.xlarge", False): 3}
    it, made = capacity(aws, zone=A, worker_machine_type="m7i.xlarge")
    assert [vm.name for vm in made] == workers(3)
    assert "m7i.xlarge in subnet-" in it.cloud.shortfall and "give more entries in zone" in it.cloud.shortfall
    again = run(it.create("worker", workers(7, first=3), run(it.cloud.list(CLUSTER))[0]))
    assert again == [] and "InsufficientInstanceCapacity" in it.cloud.shortfall


def test_spot_is_for_workers_only(aws):
    it, made = capacity(aws, spot=True, max_price=0.5, zone=A)
    first, second = aws.sent("RunInstances")
    assert "InstanceMarketOptions.MarketType" not in first
    assert second["InstanceMarketOptions.MarketType"] == "spot"
    assert second["InstanceMarketOptions.SpotOptions.MaxPrice"] == "0.5"
    assert all(vm.spot for vm in run(it.cloud.list(CLUSTER)) if vm.role == "worker")
    aws.capacity = {(A, "m7i.large", True): 0}
    assert run(it.create("worker", workers(2, first=50), made[0])) == []  # true never takes on-demand


def test_spot_with_fallback_takes_on_demand_where_there_is_none(aws):
    aws.capacity = {(A, "m7i.large", True): 4, (B, "m7i.large", True): 1}
    it, made = capacity(aws, spot="fallback", zone=[A, B])
    assert [vm.name for vm in made] == workers(10)
    found = {vm.name: vm.spot for vm in run(it.cloud.list(CLUSTER)) if vm.role == "worker"}
    assert sum(found.values()) == 5
    assert "InstanceMarketOptions.MarketType" not in aws.sent("RunInstances")[-1]


def test_a_price_that_is_too_low_moves_on_to_on_demand(aws):
    aws.faults = [Fault("RunInstances", "SpotMaxPriceTooLow", "Your Spot request price is too low", times=0)]
    it = subject("ec2", spot="fallback", zone=A, max_price=0.001)
    [vm] = run(it.create("scheduler", [SCHEDULER]))
    aws.faults[0].times = 1
    assert len(run(it.create("worker", workers(2), vm))) == 2


def test_a_type_that_a_zone_does_not_offer_is_not_asked_for_there(aws):
    scheduler(zone=["us-east-1e", A], machine_type="m7i.large")  # us-east-1e has none
    assert len(aws.sent("RunInstances")) == 1
    refused("change zone: us-east-1a, us-east-1b", zone="us-east-1e", machine_type="m7i.large")


def test_machines_with_and_without_gpus_do_not_mix(aws):
    refused("worker_machine_type name one kind", worker_machine_type=["g6.xlarge", "m7i.large"])


def test_what_was_made_is_not_lost_for_an_error_afterwards(aws):
    aws.capacity = {(A, "m7i.large", False): 3}
    it = subject("ec2", zone=[A, B])
    [vm] = run(it.create("scheduler", [SCHEDULER]))
    aws.faults = [Fault("RunInstances", "InvalidSubnetID.NotFound", "gone", times=0)]

    async def workers_with_a_fault():
        facts = await it.cloud.facts(vm)
        [request] = it.wanted(facts, "worker", workers(5))
        real = it.cloud._run_instances

        async def then_fail(body):
            made = await real(body)
            aws.faults[0].times = 1
            return made

        it.cloud._run_instances = then_fail
        return await it.cloud.create(request)

    assert [w.name for w in run(workers_with_a_fault())] == workers(2)
    assert "InvalidSubnetID.NotFound" in it.cloud.shortfall


# Idempotence and lag


def test_the_same_request_makes_the_same_machines(aws):
    it = subject("ec2")

    async def twice():
        facts = await it.cloud.facts(None)
        group, rules, request = it.wanted(facts, "scheduler", [SCHEDULER])
        await it.cloud.create(group)
        await it.cloud.create(rules)
        return await it.cloud.create(request), await it.cloud.create(request)

    [one], [two] = run(twice())
    assert one.id == two.id and len(aws.instances()) == 1


def test_a_cluster_of_the_same_name_later_gets_new_machines(aws):
    one = scheduler()
    run(subject("ec2").cloud.delete([one]))
    assert scheduler().id != one.id


def test_a_call_whose_answer_was_lost_is_repeated_without_harm(aws):
    aws.faults = [Fault("RunInstances", "ServiceUnavailable", "try again", times=2, status=503)]
    scheduler()
    assert len(aws.instances()) == 1
    assert len({body["ClientToken"] for body in aws.sent("RunInstances")}) == 1


def test_new_machines_count_before_they_are_shown(aws):
    aws.lag = 3.0
    it = subject("ec2")

    async def check():
        made = await it.cluster(2)
        assert await subject("ec2").cloud.list(CLUSTER) == []
        assert {vm.name: vm.state for vm in await it.cloud.list(CLUSTER)} == {vm.name: "pending" for vm in made}
        await it.cloud.delete(made)  # waits until they are known
        assert await it.cloud.list(CLUSTER) == []

    run(check())
    assert aws.instances() == []


def test_a_machine_that_ended_by_itself_is_not_remembered(aws):
    it = subject("ec2")

    async def check():
        made = await it.cluster(1)
        aws.backend.terminate_instances([made[1].id])
        assert alive(await it.cloud.list(CLUSTER)) == {SCHEDULER}

    run(check())


def test_machines_that_aws_no_longer_knows_are_gone(aws):
    it = subject("ec2")
    made = run(it.cluster(1))

    strangers = [dataclasses.replace(made[0], id=f"i-{i:017x}") for i in range(2)]
    run(it.cloud.delete([*strangers, made[1]]))
    assert alive(run(it.cloud.list(CLUSTER))) == {SCHEDULER}


def test_lists_are_read_page_by_page(aws):
    it = subject("ec2")
    run(it.cluster(7))
    real = it.cloud.session.pages

    async def small(*args, **kwargs):
        kwargs["MaxResults"] = 5
        return await real(*args, **kwargs)

    it.cloud.session.pages = small
    assert len(run(it.cloud.list(CLUSTER))) == 8


def test_a_cluster_in_another_region_is_found_without_its_profile(aws):
    it = subject("ec2", region="us-west-2")
    made = run(it.cluster(1))
    assert all(vm.zone.startswith("us-west-2") for vm in made)
    other = subject("ec2").cloud  # which asks in us-east-1, and where this computer has made clusters
    assert alive(run(other.list(CLUSTER))) == {vm.name for vm in made}
    assert isinstance(run(other.console(made[0])), str)
    [more] = run(subject("ec2").create("worker", workers(1, first=9), made[0]))
    assert more.zone.startswith("us-west-2")
    run(other.delete([*made, more]))
    assert run(other.list(CLUSTER)) == [] and run(it.cloud.list(CLUSTER)) == []
    assert run(subject("ec2", region="us-east-1").cloud.list(CLUSTER)) == []


def broken(region, code="InternalError", action="DescribeInstances", status=400):
    """A region that refuses; 400, so that boto3 does not try again and again."""
    return Fault(action, code, "An error has occurred", times=99, status=status, region=region)


def test_a_region_that_does_not_answer_hides_no_other(aws):
    run(subject("ec2", region="us-west-2").cluster(1))
    scheduler(region="us-east-1")
    for region, machines in (("us-west-2", 1), ("us-east-1", 2)):
        aws.faults = [broken(region)]
        for name in (None, CLUSTER):
            with pytest.warns(UserWarning, match=f"list machines in {region}"):
                assert len(run(subject("ec2").cloud.list(name))) == machines
    aws.faults = [broken("us-west-2"), broken("us-east-1")]
    with pytest.raises(CloudError, match="list machines in us-"):
        run(subject("ec2").cloud.list())


def test_a_cluster_that_may_be_in_a_region_that_does_not_answer_is_not_denied(aws, monkeypatch, recwarn):
    monkeypatch.setattr(ec2_session, "ATTEMPTS", 1)
    run(subject("ec2", region="us-west-2").cluster(1))
    for code, status in (("InternalError", 500), ("RequestLimitExceeded", 503), ("ExpiredToken", 400)):
        aws.faults = [broken("us-west-2", code, status=status)]
        with pytest.raises(CloudError, match="list machines in us-west-2"):
            run(subject("ec2").cloud.list(CLUSTER))
        with pytest.raises(CloudError, match="list machines in us-west-2"):
            run(api.remove([CLUSTER], "ec2"))
    aws.faults = []
    assert run(api.remove([CLUSTER], "ec2")) and not recwarn.list


def test_a_region_that_is_closed_to_the_user_has_no_clusters(aws, recwarn):
    run(subject("ec2", region="us-west-2").cluster(1))
    for code in ("UnauthorizedOperation", "AuthFailure", "OptInRequired"):
        aws.faults = [broken("us-west-2", code)]
        for name in (None, CLUSTER):
            assert run(subject("ec2").cloud.list(name)) == []
        aws.faults = [broken("us-east-1", code)]  # but the one that is asked first should not be
        with pytest.raises(CloudError, match="list machines in us-east-1"):
            run(subject("ec2").cloud.list("another"))
    assert not recwarn.list


def test_a_launcher_that_knows_its_cluster_minds_no_other_region(aws, recwarn):
    run(subject("ec2", region="us-west-2").cluster(1))
    it = subject("ec2")
    made = run(it.create("scheduler", [SCHEDULER]))
    aws.faults = [broken("us-west-2")]
    assert [vm.id for vm in run(it.cloud.list(CLUSTER))] == [made[0].id]
    run(it.cloud.delete(made))
    assert run(it.cloud.list(CLUSTER)) == [] and not recwarn.list


def test_the_console_of_a_machine(aws):
    vm = scheduler()
    aws.consoles[vm.id] = "booting\nready\n"
    assert run(subject("ec2").cloud.console(vm)) == "booting\nready\n"


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("", ""),
        ("*", r"\*"),
        ("su*", r"su\*"),
        ("suit?", r"suit\?"),
        (r"a\b", r"a\\b"),
        ('x" OR labels.a:*', r'x" OR labels.a:\*'),
    ],
)
def test_odd_names_are_names_of_no_cluster(aws, name, sent):
    it = subject("ec2")
    made = run(it.cluster(1))
    aws.calls.clear()
    for launcher in (it, subject("ec2")):
        assert run(launcher.cloud.list(name)) == []
    assert {body["Filter.1.Value.1"] for body in aws.sent("DescribeInstances")} == {sent}
    with pytest.raises(ClusterNotFound):
        run(api.remove([name], "ec2"))
    assert alive(run(it.cloud.list(CLUSTER))) == {vm.name for vm in made}


def test_a_filter_that_finds_too_much_changes_nothing(aws, monkeypatch):
    it = subject("ec2")
    run(it.cluster(1))
    monkeypatch.setattr(ec2.wire, "cluster_filter", lambda name: {"Name": "tag-key", "Values": ["dask-cloudvm:*"]})
    assert run(subject("ec2").cloud.list("sui")) == [] and len(run(subject("ec2").cloud.list(CLUSTER))) == 2


# Rate limits


def test_a_hundred_workers_under_awss_rate_limits(aws):
    aws.limits = True
    it = subject("ec2")
    assert len(run(it.cluster(100))) == 101
    assert len(aws.sent("RunInstances")) == 2  # none of them was refused


def test_more_instances_than_the_limit_lets_through_are_waited_for(monkeypatch):
    """1,000 instances at once, two more a second."""
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    cloud = subject("ec2").cloud
    monkeypatch.setattr(ec2.asyncio, "sleep", sleep)
    for count in (1, 999, 10):
        run(cloud._pace(count))
    assert slept == [pytest.approx(5, abs=0.5)]


# Names


def test_compact_names():
    for chosen in ([0], [0, 1, 2], [3, 1, 2, 7], range(0, 30, 3)):
        some = [*(f"etl-worker-3fa9c1-{i}" for i in chosen), "etl-worker-ab12cd-5"]
        assert names.expand(names.compact(some), "etl", "worker") == some
    assert names.compact(["a-scheduler"]) == "" and names.expand("", "a", "scheduler") == ["a-scheduler"]


def test_offline_facts_are_pure():
    it = subject("ec2", zone=[A, B])
    assert it.cloud.offline() == ec2_facts.offline(it.options.values)
    bodies = [r.body for r in it.wanted(it.cloud.offline(), "worker", workers(2))]
    assert "<newest Ubuntu LTS for m7i.large>" in str(bodies) and "<dask_cuda.CUDAWorker where" in str(bodies)
    assert suite.TOKEN in str(bodies)


# Leftovers


def test_leftovers_are_found_in_every_region_and_strangers_are_left_alone(aws, monkeypatch):
    monkeypatch.setattr(leftovers, "GRACE", float("-inf"))
    for region in ("us-east-1", "us-west-2"):
        it = subject("ec2", region=region)
        run(it.cloud.delete(run(it.cluster(1))[:1]))
    vpc, _ = network()
    stranger = client().create_security_group(GroupName="dask-cloudvm-mine", Description="by hand", VpcId=vpc)
    (tls.state_folder() / "ec2-places").unlink()
    [(cloud, found)] = run(leftovers.find("ec2", network=True)).items()
    assert sorted(each.it.zone[:9] for each in found) == ["us-east-1", "us-west-2"], "groups are in use by workers"
    assert not run(leftovers.remove(cloud, found))
    [(cloud, found)] = run(leftovers.find("ec2", network=True)).items()
    assert sorted(each.it.place for each in found) == ["us-east-1", "us-west-2"]
    aws.faults.append(Fault("DeleteSecurityGroup", "DependencyViolation", "has a dependent object"))
    assert len(run(leftovers.remove(cloud, found))) == 1, "what is in use after all stays"
    [(cloud, [left])] = run(leftovers.find("ec2", network=True)).items()
    assert not run(leftovers.remove(cloud, [left]))
    assert client().describe_security_groups(GroupIds=[stranger["GroupId"]])["SecurityGroups"]


def gc(*arguments):
    done = CliRunner().invoke(verb.command, ["--cloud", "ec2", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.mark.parametrize("action", ["DescribeInstances", "DescribeSecurityGroups", "DescribeNetworkInterfaces"])
def test_gc_shows_what_it_finds_beside_a_region_that_it_may_not_look_at(aws, monkeypatch, action):
    monkeypatch.setattr(leftovers, "GRACE", float("-inf"))
    for region in ("us-east-1", "us-west-2"):
        it = subject("ec2", region=region)
        run(it.cloud.delete(run(it.cluster(1))))
    aws.faults = [broken("us-west-2", "UnauthorizedOperation", action, 403)]
    with pytest.warns(UserWarning, match=" in us-west-2: ") as warned:
        code, output = gc("--network")
    assert code == 1 and "security group" in output and "us-east-1" in output and len(warned) == 1
    aws.faults = []
    assert gc("--network", "--yes")[0] == 0
    assert gc("--network") == (0, "nothing is left over\n")


def test_gc_says_what_it_could_not_look_at(aws):
    aws.faults = [broken("us-west-2", "UnauthorizedOperation", status=403)]
    with pytest.warns(UserWarning, match="list machines in us-west-2"):
        assert gc() == (1, "nothing is left over where could be looked\n")
    with pytest.warns(UserWarning, match="list machines in us-west-2"):
        assert gc("-o", "json") == (1, "[]\n")


def test_gc_shows_machines_also_where_it_may_not_look_for_groups(aws, monkeypatch):
    monkeypatch.setattr(leftovers, "GRACE", float("-inf"))
    it = subject("ec2")
    run(it.cloud.delete(run(it.cluster(1))[:1]))
    aws.faults = [broken("", "UnauthorizedOperation", "DescribeSecurityGroups", 403)]
    with pytest.warns(UserWarning, match="look for security groups in us-"):
        code, output = gc("--network")
    assert code == 1 and workers(1)[0] in output


def test_a_group_without_its_time_is_an_old_one(aws):
    it = subject("ec2")
    run(it.cloud.delete([scheduler()]))
    [part] = run(it.cloud.parts())
    assert time.time() - part.created < 60 and not part.used
    for value in ("soon", ""):
        client().create_tags(Resources=[part.id], Tags=[{"Key": "dask-cloudvm:made", "Value": value}])
        assert run(it.cloud.parts())[0].created == 0
    client().delete_tags(Resources=[part.id], Tags=[{"Key": "dask-cloudvm:made"}])
    assert run(it.cloud.parts())[0].created == 0
    assert part.name in gc("--network")[1]
    assert "dask-cloudvm:made" not in str([r.body for r in it.wanted(it.cloud.offline(), "scheduler", [SCHEDULER])])


def test_machines_without_a_scheduler_do_not_hide_behind_a_cluster_of_another_region(aws, monkeypatch):
    monkeypatch.setattr(leftovers, "GRACE", float("-inf"))
    run(subject("ec2", region="us-east-1").cluster(2))
    it = subject("ec2", region="us-west-2")
    run(it.cloud.delete(run(it.cluster(1))[:1]))
    [(cloud, [left])] = run(leftovers.find("ec2", network=False)).items()
    assert left.it.zone.startswith("us-west-2") and left.why == f"cluster {CLUSTER} has no scheduler in us-west-2"
    assert not run(leftovers.remove(cloud, [left]))
    assert len(run(cloud.list(CLUSTER))) == 3
