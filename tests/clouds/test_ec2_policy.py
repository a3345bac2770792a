"""``policy ec2`` is enough for the whole life of a cluster, and not more; ``doctor ec2`` says what is missing."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from ec2_fake import Fault
from suite import CLUSTER, run, subject, workers

from dask_cloudvm.cli import doctor, policy
from dask_cloudvm.clouds import ec2_policy
from dask_cloudvm.errors import CloudError

ROLE = "arn:aws:iam::123456789012:role/of-the-profile"


@pytest.fixture
def account(aws):
    import boto3

    boto3.client("iam").create_instance_profile(InstanceProfileName="profile")
    boto3.client("ec2").create_key_pair(KeyName="key")
    return aws


async def life(**settings):
    """Everything a launcher does in the life of a cluster."""
    it = subject("ec2", spot=True, key_name="key", iam_instance_profile="profile", zone="us-east-1a", **settings)
    assert await it.cloud.list(CLUSTER) == []
    scheduler, *_ = await it.cluster(2)
    scheduler = await it.cloud.locate(scheduler)
    await subject("ec2", zone="us-east-1a").create("worker", workers(1, first=5), scheduler)
    console = await it.cloud.console(scheduler)
    assert not console.startswith("("), console
    await it.cloud.delete(await it.cloud.list(CLUSTER))
    assert await it.cloud.list() == []


async def whole_life():
    """With the removal of what clusters share, which is the first part's."""
    await life()
    it = subject("ec2")
    await it.cloud.widen()
    for part in await it.cloud.parts():
        assert await it.cloud.remove(part)
    assert not it.cloud.unseen, it.cloud.unseen


def policies():
    return ec2_policy.policies(ROLE)


def test_the_policy_is_enough(account):
    account.policies = [*policies().values()]
    run(whole_life())
    assert account.count()["CreateSecurityGroup"] == 1


def test_without_the_first_part_later_clusters_work(account):
    account.policies = [*policies().values()]
    run(life())
    account.policies = [policies()["ongoing"]]
    run(life())
    with pytest.raises(CloudError, match="allow ec2:Create"):
        run(life(firewall={"ports": [22]}))


@pytest.mark.filterwarnings("ignore:cannot look for security groups")
@pytest.mark.parametrize("sid", [s["Sid"] for part in policies().values() for s in part["Statement"]])
def test_every_statement_is_needed(account, sid):
    if sid == "UseSpotTheFirstTime":
        pytest.skip("AWS itself makes this call for the user, once in the life of an account")
    account.policies = [
        {"Statement": [s for s in part["Statement"] if s["Sid"] != sid]} for part in policies().values()
    ]
    needed_by_the_doctor = sid == "ExplainRefusals"
    if needed_by_the_doctor:
        assert not all(check.ok for check in run(subject("ec2").cloud.doctor()))
        return
    with pytest.raises((CloudError, AssertionError), match=r"allow|\("):
        run(whole_life())


def test_machines_of_others_cannot_be_removed(account):
    import boto3

    ec2 = boto3.client("ec2")
    other = ec2.run_instances(ImageId="ami-0000000000000a001", InstanceType="m7i.large", MinCount=1, MaxCount=1)
    id = other["Instances"][0]["InstanceId"]
    account.policies = [*policies().values()]
    for call in (ec2.terminate_instances, ec2.run_instances):
        with pytest.raises(ec2.exceptions.ClientError, match="UnauthorizedOperation"):
            call(
                **(
                    {"InstanceIds": [id]}
                    if call == ec2.terminate_instances
                    else {"ImageId": "ami-0000000000000a001", "InstanceType": "m7i.large", "MinCount": 1, "MaxCount": 1}
                )
            )


def cli(command, *arguments):
    return CliRunner().invoke(command.command, list(arguments))


def test_the_verb_prints_both_parts_or_one_to_paste():
    assert json.loads(cli(policy, "ec2").output) == ec2_policy.policies()
    pasted = json.loads(cli(policy, "ec2", "--part", "ongoing", "--role", ROLE).output)
    assert pasted["Version"] == "2012-10-17" and pasted["Statement"][-1]["Resource"] == ROLE
    sids = [s["Sid"] for part in policies().values() for s in part["Statement"]]
    assert len(set(sids)) == len(sids) and all(sid.isalnum() for sid in sids)
    for part in policies().values():
        assert len(json.dumps(part, separators=(",", ":"))) < 6144  # of a managed policy


# doctor


def lines(*arguments):
    done = cli(doctor, *arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, {line[6:].split("  ")[0].strip(): line for line in done.output.splitlines()}


def test_a_healthy_account(aws):
    code, found = lines("ec2", "--set", "n_workers=10", "--set", "spot=true")
    assert code == 0, found
    assert list(found) == [
        "region", "credentials", "machine types", "image", "network", "firewall", "zones", "permissions", "quota",
    ]  # fmt: skip
    assert all(line.startswith("ok") for line in found.values())
    assert "m7i.large (2 vCPU, 8 GiB, x86_64)" in found["machine types"]
    assert "203.0.113.7/32" in found["firewall"] and "20 of 1280 vCPUs" in found["quota"]
    assert aws.instances() == [] and "TerminateInstances" not in aws.writes()
    assert all(body.get("DryRun") for body in aws.sent("RunInstances") + aws.sent("CreateSecurityGroup"))


def test_json(aws):
    found = json.loads(cli(doctor, "ec2", "-o", "json").output)
    assert {"what": "region", "ok": True, "text": "us-east-1"} in found


def test_too_small_a_quota(aws):
    aws.quota = 8
    code, found = lines("ec2", "--set", "n_workers=10")
    assert code == 1 and found["quota"].startswith("FAIL")
    assert "22 vCPUs are wanted, the quota L-1216C47A is 8; ask for more" in found["quota"]


def test_a_missing_permission(aws):
    setup, ongoing = policies().values()
    aws.policies = [setup, {"Statement": [s for s in ongoing["Statement"] if s["Sid"] != "MakeMachines"]}]
    code, found = lines("ec2")
    assert code == 1 and found["permissions"].startswith("FAIL") and "allow ec2:RunInstances" in found["permissions"]


def test_no_default_vpc(aws):
    aws.faults = [Fault("DescribeVpcs", "UnauthorizedOperation", "no", times=9, status=403)]
    code, found = lines("ec2")
    assert code == 1 and "allow ec2:DescribeVpcs" in found["network"] and "permissions" not in found


def test_wrong_credentials(aws, monkeypatch):
    aws.faults = [Fault("GetCallerIdentity", "InvalidClientTokenId", "The security token is invalid", status=403)]
    code, found = lines("ec2")
    assert code == 1 and "check the AWS credentials" in found["credentials"] and len(found) == 2
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    code, found = lines("ec2")
    assert code == 1 and "no AWS region is chosen" in found["region"] and len(found) == 1


def test_an_unknown_machine_type(aws):
    code, found = lines("ec2", "--set", "machine_type=m99.huge")
    assert code == 1 and "has no machine type m99.huge" in found["machine types"]


def test_a_type_that_the_zone_does_not_offer(aws):
    code, found = lines("ec2", "--set", "zone=us-east-1e")
    assert code == 1 and "us-east-1e" in found["zones"]
