"""What AWS refuses, and what the user reads: one message, with the option or the permission to change."""

from __future__ import annotations

import sys

import pytest
from ec2_fake import Fault
from suite import run, subject

from dask_cloudvm.clouds import ec2_session
from dask_cloudvm.errors import CloudError

# (call that fails, code, AWS's message, what the message must name)
REFUSALS = [
    ("RunInstances", "InvalidAMIID.NotFound", "The image id '[ami-1]' does not exist", "change image (ami)"),
    ("RunInstances", "InvalidKeyPair.NotFound", "The key pair 'x' does not exist", "change key_name"),
    ("RunInstances", "InvalidParameterValue", "Value (x) for parameter iamInstanceProfile.name is invalid",
     "change iam_instance_profile"),
    ("RunInstances", "InvalidBlockDeviceMapping", "Volume of size 8GB is smaller than snapshot", "raise disk_size"),
    ("RunInstances", "AuthFailure.ServiceLinkedRoleCreationNotPermitted", "The provided credentials do not have"
     " permission to create the service-linked role for EC2 Spot Instances.", "iam:CreateServiceLinkedRole"),
    ("RunInstances", "PendingVerification", "Your account is currently being verified.", "wait for AWS to verify"),
    ("RunInstances", "OptInRequired", "You are not subscribed to this service", "change cloudprovider.ec2.region"),
    ("DescribeInstanceTypes", "RequestExpired", "Request has expired.", "log in again"),
    ("DescribeInstanceTypes", "ExpiredToken", "The security token included in the request is expired", "log in again"),
    ("DescribeInstanceTypes", "AuthFailure", "AWS was not able to validate the provided access credentials",
     "check the AWS credentials, and that region is enabled"),
    ("GetParameters", "UnrecognizedClientException", "The security token included in the request is invalid.",
     "check the AWS credentials"),
    ("GetParameters", "AccessDeniedException", "User: arn:aws:iam::1:user/x is not authorized to perform:"
     " ssm:GetParameters on resource: y", "allow ssm:GetParameters"),
    ("CreateSecurityGroup", "SecurityGroupLimitExceeded", "The maximum number of security groups has been reached",
     "choose a security_group"),
    ("DescribeSubnets", "SomethingNew", "Nobody has seen this yet", "doctor ec2"),
]  # fmt: skip


def message(**settings):
    with pytest.raises(CloudError) as caught:
        run(subject("ec2", **settings).cluster(1))
    text = str(caught.value)
    assert text.startswith("cannot ") and "Traceback" not in text and "botocore" not in text, text
    return text


@pytest.mark.parametrize(("action", "code", "said", "hint"), REFUSALS, ids=[f"{r[0]}-{r[1]}" for r in REFUSALS])
def test_a_refusal_names_what_to_change(aws, action, code, said, hint):
    aws.faults = [Fault(action, code, said, times=100)]
    text = message()
    assert hint in text and said.rstrip(".") in text, text


def test_throttled_for_good(aws, monkeypatch):
    monkeypatch.setattr(ec2_session, "ATTEMPTS", 2)
    aws.faults = [Fault("DescribeInstanceTypes", "RequestLimitExceeded", "Request limit exceeded.", 100, 503)]
    assert "wait a minute" in message()


def test_a_permission_that_is_missing_is_decoded(aws):
    everything = [
        {"Effect": "Allow", "Action": ["ec2:D*", "ec2:CreateS*", "ec2:A*", "ssm:*", "sts:*"], "Resource": "*"}
    ]
    everything.append({"Effect": "Allow", "Action": "ec2:CreateTags", "Resource": "*:security-group/*"})
    aws.policies = [{"Statement": everything}]
    text = message()
    assert "missing is ec2:CreateTags on arn:aws:ec2:us-east-1:123456789012:instance/*" in text
    assert "allow ec2:CreateTags; 'dask-cloudvm policy ec2' prints all permissions" in text
    assert "Encoded authorization" not in text
    everything[0]["Action"].remove("sts:*")  # not even that: the message still names the permission
    assert "allow ec2:CreateTags" in message()


def test_an_unknown_machine_type(aws):
    text = message(machine_type="m99.huge")
    assert "region us-east-1 has no machine type m99.huge; change machine_type (instance_type) or region" in text
    assert aws.writes() == []


def test_an_unknown_image(aws):
    text = message(image="ami-00000000000000bad")
    assert "ami-00000000000000bad" in text and "change image (ami): ids differ from region to region" in text


def test_an_image_of_another_architecture(aws):
    aws.add_image("ami-00000000000000a64", "arm64")
    text = message(image="ami-00000000000000a64")
    assert "is for arm64, machine type m7i.large is x86_64; leave image (ami) out" in text


def test_a_disk_that_is_smaller_than_the_image(aws):
    assert "needs 15 GB, disk_size is 8; set disk_size to 15 or more" in message(disk_size=8)


def test_a_quota_is_a_shortfall_that_says_so(aws):
    aws.quota = 6
    it = subject("ec2", machine_type="m7i.large")
    assert len(run(it.cluster(10))) == 3
    assert len(run(it.create("worker", ["suite-worker-aaaaaa-0"]))) == 0
    assert "Service Quotas" in it.cloud.shortfall and "VcpuLimitExceeded" in it.cloud.shortfall


def test_no_credentials(aws, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "there are no AWS credentials; log in by aws sso login or aws configure" in message()


def test_half_the_credentials(aws, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "the AWS credentials are incomplete" in message()


def test_no_region(aws, monkeypatch):
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert "no AWS region is chosen; set cloudprovider.ec2.region, AWS_DEFAULT_REGION" in message()


def test_an_unknown_profile_of_aws(aws, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "(nobody) could not be found; change AWS_PROFILE" in message()


def test_a_region_that_does_not_answer(aws, monkeypatch):
    monkeypatch.setattr(ec2_session, "ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "no answer from AWS in region us-east-9" in message(region="us-east-9")


@pytest.mark.parametrize("package", ["boto3", "botocore"])
def test_without_boto3(aws, monkeypatch, package):
    for name in [n for n in sys.modules if n.split(".")[0] == package] + [package, f"{package}.exceptions"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert "boto3 is not installed; install it by: pip install 'dask-cloudvm[ec2]'" in message()
