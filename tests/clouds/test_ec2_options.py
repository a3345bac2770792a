"""Every option of cloudprovider.ec2 reaches the wire: the value in the table changes some call, or the reason is said.

A new option in the schema without a line here, or whose value changes nothing that is sent, makes this fail.
"""

from __future__ import annotations

import base64
import gzip

import pytest
import shared_options
from ec2_fake import IMAGES
from shared_options import IN_USER_DATA
from suite import run, subject

from dask_cloudvm import schema

OTHER = "ami-0000000000000b001"
# option -> a value that is not its default; what it must change in: scheduler, worker, both, group
WIRE = {
    "image": (OTHER, "both"),
    "scheduler_image": (OTHER, "scheduler"),
    "worker_image": (OTHER, "worker"),
    "zone": ("us-east-1b", "both"),
    "machine_type": ("m6i.large", "both"),
    "scheduler_machine_type": ("m6i.large", "scheduler"),
    "worker_machine_type": (["m6i.large", "m7i.large"], "worker"),
    "disk_size": (55, "both"),
    "scheduler_disk_size": (55, "scheduler"),
    "worker_disk_size": (55, "worker"),
    "disk_type": ("gp2", "both"),
    "vnet": ("<vpc>", "both"),
    "subnet": ("<subnet>", "both"),
    "scheduler_subnet": ("<default subnet>", "scheduler"),
    "worker_subnet": ("<default subnet>", "worker"),
    "security_group": ("<group>", "both"),
    "use_private_ip": (True, "both"),
    "scheduler_use_private_ip": (True, "scheduler"),
    "worker_use_private_ip": (True, "worker"),
    "iam_instance_profile": ("<profile>", "both"),
    "key_name": ("my-key", "both"),
    "volume_tags": ({"Team": "x"}, "both"),
    "instance_tags": ({"Team": "x"}, "both"),
    "enable_detailed_monitoring": (True, "both"),
    "spot": (True, "worker"),
    "max_price": (0.25, "worker", {"spot": True}),
    "firewall": ({"ports": [22], "cidr": "10.0.0.0/8"}, "group"),
    "extra_vm_options": ({"Placement": {"Tenancy": "dedicated"}}, "both"),
    "scheduler_extra_vm_options": ({"Placement": {"Tenancy": "dedicated"}}, "scheduler"),
    "worker_extra_vm_options": ({"Placement": {"Tenancy": "dedicated"}}, "worker"),
    **IN_USER_DATA,
}
NOT_SENT = {
    **shared_options.NOT_SENT,
    "region": "the host that is asked; see test_region_is_where_calls_go",
}


def sent(aws, **settings):
    """What the calls for a scheduler and a worker hold, user-data readable, without what differs each time."""
    aws.calls.clear()
    run(subject("ec2", **settings).cluster(1))
    group, rules = (next(iter(aws.sent(a)), {}) for a in ("CreateSecurityGroup", "AuthorizeSecurityGroupIngress"))
    scheduler, worker = (_comparable(body, settings) for body in aws.sent("RunInstances"))
    return {"group": group, "rules": rules, "scheduler": scheduler, "worker": worker}


def _comparable(body, settings):
    """Without tokens, digests and, unless it was chosen, the group, whose change another line is about."""
    body = {k: v for k, v in body.items() if k != "ClientToken"}
    body["UserData"] = gzip.decompress(base64.b64decode(body["UserData"])).decode()
    if "security_group" not in settings:
        body = {k: v for k, v in body.items() if "SecurityGroupId" not in k}
    digests = {k[: -len(".Key")] for k, v in body.items() if v == "dask-cloudvm:options"}
    return {k: v for k, v in body.items() if k.rpartition(".")[0] not in digests}


@pytest.fixture
def account(aws):
    """Things for options to name."""
    import boto3

    aws.add_image(OTHER)
    ec2 = boto3.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24", AvailabilityZone="us-east-1a")["Subnet"]["SubnetId"]
    subnets = ec2.describe_subnets(Filters=[{"Name": "default-for-az", "Values": ["true"]}])["Subnets"]
    [default] = [s for s in subnets if s["AvailabilityZone"] == "us-east-1c"]
    group = ec2.create_security_group(GroupName="mine", Description="mine", VpcId=default["VpcId"])["GroupId"]
    boto3.client("iam").create_instance_profile(InstanceProfileName="profile")
    return {
        "<vpc>": vpc,
        "<subnet>": subnet,
        "<default subnet>": default["SubnetId"],
        "<group>": group,
        "<profile>": "profile",
    }


def test_every_option_of_the_schema_is_in_the_table():
    assert {*WIRE, *NOT_SENT} == set(schema.options("ec2"))
    assert not set(WIRE) & set(NOT_SENT)


def test_every_option_reaches_the_wire(aws, account):
    """One account for all, since a fresh one costs more than the calls."""
    run(subject("ec2").create("scheduler", ["suite-scheduler"]))  # the shared group exists from here on
    usual = {(): sent(aws)}
    failed = []
    for option, line in WIRE.items():
        value, where, extra = (*line, {})[:3]
        key = tuple(extra)
        if key not in usual:
            usual[key] = sent(aws, **extra)
        value = account.get(value, value) if isinstance(value, str) else value
        got = sent(aws, **extra, **{option: value})
        changed = {label for label in ("scheduler", "worker") if got[label] != usual[key][label]}
        if where == "group":
            changed = {"group"} if got["group"] and got["rules"] else set()
        wanted = {"both": {"scheduler", "worker"}}.get(where, {where})
        if changed != wanted:
            failed.append(f"{option}: changed {sorted(changed) or 'nothing'}, should change {sorted(wanted)}")
    assert not failed, "\n".join(failed)


def test_region_is_where_calls_go(aws, monkeypatch):
    it = subject("ec2", region="us-west-2")
    assert run(it.cloud.session.region()) == "us-west-2"
    assert it.cloud.session._client("ec2").meta.region_name == "us-west-2"
    assert run(subject("ec2").cloud.session.region()) == "us-east-1"
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert run(subject("ec2").cloud.session.region()) == "eu-west-1"


def test_dask_cloudproviders_own_spellings_are_the_same(aws):
    old = {
        "availability_zone": "us-east-1b",
        "ami": IMAGES["amd64"][0],
        "scheduler_instance_type": "m7i.large",
        "worker_instance_type": "m6i.large",
        "filesystem_size": 50,
    }
    new = {
        "zone": "us-east-1b",
        "image": IMAGES["amd64"][0],
        "scheduler_machine_type": "m7i.large",
        "worker_machine_type": "m6i.large",
        "disk_size": 50,
    }
    sent(aws)
    assert sent(aws, **old) == sent(aws, **new)
